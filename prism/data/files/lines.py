"""JSON Lines: a row a line."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prism.data.files.row_file import BOM, ROW_ERRORS, Found, RowFile, parse_line


class JsonLines(RowFile):
    """A row's place is the offset of its line. Empty lines are none."""

    container = "JSON Lines"

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        super().__init__(path)
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size
        self.lines = 0
        """Passed by the iteration, empty ones too."""
        self._passed, self._part = 0, self.size
        """Bytes: of the part that is iterated over, and all of that."""
        self._reading = threading.Lock()

    def __iter__(self) -> Iterator[Found]:
        return self.part(0)

    def middle(self) -> int:
        """Where the first line begins that is wholly in the second half; the file's end if there is none."""
        with self._reading:
            self._file.seek(self.size // 2)
            self._file.readline()
            return self._file.tell()

    def part(self, offset: int, end: int | None = None) -> Iterator[Found]:
        """The rows between two offsets at which lines begin; they are counted from the first."""
        begin, end = offset, self.size if end is None else end
        self._part = end - begin
        with self.path.open("rb", buffering=2**20) as file:
            file.seek(offset)
            for number, line in enumerate(file, 1):
                if offset >= end:
                    break
                start, offset = offset, offset + len(line)
                self.lines, self._passed = number, offset - begin
                line = line.removeprefix(BOM)  # of each file that was put behind another
                if line.isspace() or not line:
                    continue
                try:
                    yield Found(start, number, parse_line(line), text=line)
                except ROW_ERRORS as error:
                    yield Found(start, number, None, error, text=line)

    def read(self, place: int) -> Any:
        with self._reading:
            self._file.seek(place)
            line = self._file.readline()
        return parse_line(line.removeprefix(BOM))

    @property
    def progress(self) -> float:
        return self._passed / max(1, self._part)

"""A JSON array of rows, read as a stream: no more of it is in memory than one row and what was read beside it."""

import json
import os
import re
import threading
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any

from prism.data.files.row_file import BOM, HALF_A_PAIR, ROW_ERRORS, Found, RowFile, parse_line
from prism.errors import DataError

CHUNK = 2**20
MAX_ROW_BYTES = 2**30
NEAR_END = 16  # an error no further from what was read has its cause in what was not: half a word, half an escape
_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class JsonArray(RowFile):
    """A row's place is the offset of its first byte.

    Bytes are looked at as Latin-1, a letter each, to find where a row ends: all that JSON's syntax is made of is ASCII.
    """

    container = "JSON array"

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        super().__init__(path)
        self._file = path.open("rb")
        self._size = max(1, os.fstat(self._file.fileno()).st_size)
        self._done = 0
        self._reading = threading.Lock()

    def __iter__(self) -> Iterator[Found]:
        """Raises DataError, with the line, where the array itself is broken: no row after that can be told."""
        with self.path.open("rb") as file:
            window = _Window(file, self.path)
            if file.read(len(BOM)) == BOM:
                window.offset = len(BOM)
            else:
                file.seek(0)
            window.expect("[")
            row = 0
            while not (row == 0 and window.peek() == "]"):
                row += 1
                window.peek()
                place, line, note = window.offset + window.at, window.line, f"row {row}: "
                raw, value = window.take_value(note)
                self._done = window.offset + window.at
                try:
                    if not raw.isascii() or HALF_A_PAIR in raw.lower():
                        value = parse_line(raw)
                    yield Found(place, line, value, None, note, raw)
                except ROW_ERRORS as error:
                    yield Found(place, line, None, error, note, raw)
                if window.peek() != ",":
                    break
                window.expect(",")
            window.expect("]")
            if window.peek():
                raise window.broken("something follows the end of the array")

    def read(self, place: int) -> Any:
        with self._reading:
            self._file.seek(place)
            raw, _ = _Window(self._file, self.path, chunk=64 * 1024).take_value("")
        return parse_line(raw)

    @property
    def progress(self) -> float:
        return self._done / self._size


class _Window:
    """What was read of a file and not yet used; ``offset`` is the file's at its beginning."""

    def __init__(self, file: IO[bytes], path: Path, chunk: int = CHUNK) -> None:
        self._file, self._path, self._chunk = file, path, chunk
        self._text, self.offset, self.at, self.line, self._ended = "", 0, 0, 1, False

    def broken(self, what: str) -> DataError:
        return DataError(f"{self._path}:{self.line}: {what}; what follows cannot be read")

    def peek(self) -> str:
        """The next letter that is no blank; "" at the end."""
        while True:
            end = _BLANKS.match(self._text, self.at).end()  # pyright: ignore[reportOptionalMemberAccess]
            self._pass(end)
            if end < len(self._text) or self._ended:
                return self._text[end : end + 1]
            self._more()

    def expect(self, letter: str) -> None:
        if (found := self.peek()) != letter:
            raise self.broken(
                f"{letter!r} is expected, not {found!r}" if found else f"the file ends without {letter!r}"
            )
        self._pass(self.at + 1)

    def take_value(self, note: str) -> tuple[bytes, Any]:
        """The next value, as bytes and as it reads where they are ASCII. Raises DataError if it is broken."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
                if end < len(self._text) or self._ended:
                    raw = self._text[self.at : end].encode("latin-1")
                    self._pass(end)
                    return raw, value
            except JSONDecodeError as error:
                unended = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - NEAR_END
                if self._ended or not unended or len(self._text) - self.at > MAX_ROW_BYTES:
                    self._pass(min(error.pos, len(self._text)))
                    raise self.broken(f"{note}{error.msg}") from None
            except RecursionError:
                raise self.broken(f"{note}nested without end (recursion)") from None
            except ValueError as error:  # a number of thousands of digits
                raise self.broken(f"{note}{error}") from None
            self._more()

    def _pass(self, end: int) -> None:
        self.line += self._text.count("\n", self.at, end)
        self.at = end

    def _more(self) -> None:
        """As much again as there is, so that a long row is not begun too often."""
        kept = self._text[self.at :]
        self.offset += self.at
        new = self._file.read(max(self._chunk, len(kept)))
        self._text, self.at, self._ended = kept + new.decode("latin-1"), 0, not new

"""Large files of JSON Lines are looked at by two processes, half by half: what is done for each row takes all the time.

Rows, problems and their order are those of one process.
"""

import heapq
import os
import pickle
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from prism.data.checks import RowCheck
from prism.data.files import ROW_ERRORS, Found, RowFile
from prism.data.files.lines import JsonLines
from prism.data.index import RowIndex
from prism.data.look import Look
from prism.data.row import what_is_wrong
from prism.errors import DataError

SPLIT_BYTES = 256 * 2**20
"""Of a file; a smaller one is done before a second process would have begun."""
# Its own path of imports first, as this process has it: nothing of that may depend on how this one was started.
CHILD = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from prism.data.halves import look_at_half
look_at_half()
"""


@dataclass
class Half:
    """What a process has found. Lines are counted from 1 in its half."""

    index: RowIndex = field(default_factory=lambda: RowIndex(None))
    problems: list[tuple[int, str]] = field(default_factory=list)
    unsure: array = field(default_factory=lambda: array("q"))
    """Numbers of rows in the index that the use's own check has yet to see."""


class SecondHalf:
    """The process, while it is entered; or nothing, where the file is small, one row's check needs this process, or
    there is one core."""

    def __init__(self, file: RowFile, look: Look, check: RowCheck | None, *, wanted: bool) -> None:
        self._file, self._look, self._check = file, look, check
        self._fits: Callable[..., bool] | None = getattr(check, "fits", None)
        self._middle: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        can = check is None or self._fits is not None
        if wanted and can and isinstance(file, JsonLines) and file.size >= SPLIT_BYTES:
            self._middle = file.middle() if len(os.sched_getaffinity(0)) > 1 else None

    def __enter__(self) -> Self:
        if self._middle is not None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe)
            assert self._process.stdin
            with self._process.stdin as stdin:
                for told in (sys.path, (self._file, self._look, self._fits, self._middle)):
                    stdin.write(pickle.dumps(told))
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()

    def first(self) -> Iterator[Found]:
        """The rows that are left to this process."""
        if self._middle is None:
            return iter(self._file)
        assert isinstance(self._file, JsonLines)
        return self._file.part(0, self._middle)

    def join(self, index: RowIndex) -> Iterator[tuple[int, str]]:
        """Once the first half is done: adds the second's rows to its index, and gives line and problem of the others.

        Raises DataError if the process has ended early.
        """
        if self._process is None:
            return
        assert isinstance(self._file, JsonLines)
        assert self._process.stdout
        lines, told = self._file.lines, self._process.stdout.read()
        if code := self._process.wait():
            raise DataError(f"{self._file.path}: the process that reads its second half ended early, with {code}")
        half: Half = pickle.loads(told)  # noqa: S301  (of our own process)
        refused: list[int] = []
        for number, problem in heapq.merge(half.problems, self._checked(half, refused)):
            yield lines + number, problem
        half.index.leave_out(refused)
        index.extend(half.index, lines)

    def _checked(self, half: Half, refused: list[int]) -> Iterator[tuple[int, str]]:
        """What the use's own check says of the rows that may not pass; the places of those go to ``refused``."""
        for row in half.unsure:
            place, number = half.index.at(row)
            try:
                for one in self._look(Found(place, number, self._file.read(place)))[2]:
                    if self._check:
                        self._check(*one)
            except ROW_ERRORS as error:
                refused.append(place)
                yield number, what_is_wrong(error)


def look_at_half() -> None:
    """In the second process: told by stdin what to look at, and writes a Half to stdout."""
    file, look, fits, middle = pickle.load(sys.stdin.buffer)  # noqa: S301  (of our own process)
    sys.stdout.buffer.write(pickle.dumps(_look_at(file.part(middle), look, fits)))


def _look_at(rows: Iterator[Found], look: Look, fits: Callable[..., Any] | None) -> Half:
    half = Half()
    for found in rows:
        try:
            given, learnt, seen = look(found)
        except ROW_ERRORS as error:
            half.problems.append((found.number, found.note + what_is_wrong(error)))
            continue
        if fits and not all(fits(*one) for one in seen):
            half.unsure.append(len(half.index.numbers))
        half.index.add(found, given, learnt)
    return half

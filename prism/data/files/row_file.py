"""What all files of rows have in common."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic_core import from_json

BOM = b"\xef\xbb\xbf"
HALF_A_PAIR = b"\\ud"  # an escape of a surrogate, in lower case

# What reading a row raises, if something is wrong with it. (A number of 5,000 digits is a plain ValueError.)
ROW_ERRORS = (ValueError, RecursionError)


class Found(NamedTuple):
    """A row of a file, from its beginning."""

    place: int
    """Where it is read again."""
    number: int
    """Its line, from 1; in Parquet its row."""
    value: Any
    """What it holds, if that could be read."""
    problem: Exception | None = None
    """Else one of ROW_ERRORS."""
    note: str = ""
    """What the line alone does not say: the row's number in an array."""
    text: bytes | None = None
    """As it stands in a file of JSON."""


class RowFile(ABC):
    """Thread-safe in ``read``. May be sent to another process, which opens the file for itself."""

    container: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __iter__(self) -> Iterator[Found]:
        """Every row, from the beginning. Raises DataError where the rest cannot be read."""

    @abstractmethod
    def read(self, place: int) -> Any:
        """The value of a row. Raises one of ROW_ERRORS, should the file have been written to since."""

    @property
    @abstractmethod
    def progress(self) -> float:
        """Of the iteration, from 0 to 1."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)


def parse_line(line: bytes) -> Any:
    """Raises UnicodeError for what is no text: bytes that are no UTF-8, or half a surrogate pair in an escape."""
    try:
        # pydantic's parser takes a sixth of the time, and refuses all that Python's does; what it says is not as clear.
        return from_json(line, allow_inf_nan=True, cache_strings="keys")
    except ValueError:
        value = json.loads(line.decode())
    if HALF_A_PAIR in line.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value

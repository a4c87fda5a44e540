"""Files of rows, read from disk one at a time: JSON Lines, or Parquet as JSON Lines. (pyarrow for Parquet alone.)"""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, overload

from prism.errors import DataError
from prism.wire.messages import data_uri

PARQUET_KEYS = (
    "id", "messages", "prompt", "images", "response", "responses", "teacher", "policy", "gold", "kind", "options",
    "tokens", "meta",
)  # fmt: skip
BATCH_ROWS = 64  # of Parquet at a time: with images in them, rows are large

RowT = TypeVar("RowT")


def open_lines(path: Path) -> IO[bytes]:
    """The file, whose line n is its n-th row; of a Parquet file, a temporary file of JSON Lines that goes when closed.

    No row of Parquet can be read without the hundreds beside it, so a file is unpacked once (into TMPDIR) before its
    rows are read in any order. Raises OSError, and DataError for a Parquet file that cannot be read.
    """
    return _unpack(path) if path.suffix == ".parquet" else path.open("rb")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, counted from 1 with those that are. Raises as ``open_lines``."""
    with open_lines(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


class LazyRows(Sequence[RowT]):
    """Rows of a file by the offsets of their lines, each read and parsed when it is asked for. Thread-safe.

    They may be sent to another process, which opens the file for itself; ``file`` is what ``open_lines`` gave.
    """

    def __init__(
        self, path: Path, offsets: Sequence[int], parse: Callable[[bytes], RowT], file: IO[bytes] | None = None
    ) -> None:
        self._path, self._offsets, self._parse = path, offsets, parse
        self._file = file or open_lines(path)
        self._reading = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyRows, (self._path, self._offsets, self._parse)

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> RowT: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowT]: ...
    def __getitem__(self, index: int | slice) -> RowT | list[RowT]:
        """Raises what ``parse`` raises, should the file have been written to since its lines were found."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        with self._reading:
            self._file.seek(self._offsets[index])
            line = self._file.readline()
        return self._parse(line)


def _unpack(path: Path) -> IO[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet is read by pyarrow: pip install pyarrow") from None
    lines = tempfile.TemporaryFile(prefix="prism-rows-")  # noqa: SIM115  (whoever reads it closes it)
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            columns = [name for name in file.schema_arrow.names if name in PARQUET_KEYS]
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    lines.write(json.dumps(_as_json_lines_say_it(row), default=str).encode() + b"\n")
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"data file {path} cannot be unpacked from Parquet: {error}") from None
    lines.seek(0)
    return lines


def _as_json_lines_say_it(row: dict[str, Any]) -> dict[str, Any]:
    """A null is a key that is not there, ``messages`` may be JSON, an image may be ``{"bytes": ..., "path": ...}``."""
    plain = _plain(row)
    for key in ("messages", "meta", "options"):
        if isinstance(text := plain.get(key), str):
            try:
                plain[key] = json.loads(text)
            except (ValueError, RecursionError):
                continue  # whoever reads the row says that it is a text
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return data_uri(value) if isinstance(value, bytes) else value
    if "bytes" in value and value.keys() <= {"bytes", "path"}:
        return data_uri(value["bytes"]) if value["bytes"] is not None else value.get("path")
    return {key: _plain(one) for key, one in value.items() if one is not None}

"""Parquet, by its row groups. (pyarrow.)"""

import tempfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from prism.data.files.row_file import Found, RowFile
from prism.errors import DataError
from prism.wire.messages import data_uri

BATCH_ROWS = 64  # at a time: with images in them, rows are large
GROUP_BYTES = 64 * 2**20
"""Larger groups are split: no row can be read without all others of its group."""
CACHE_BYTES = 256 * 2**20
EXACT = 2**53  # beyond it, a float is no certain integer


class ParquetRows(RowFile):
    """A row's place is its number.

    A file whose row groups are large is first unpacked into a temporary file of small ones (in TMPDIR).
    """

    container = "Parquet"

    def __init__(self, path: Path) -> None:
        """Raises DataError if it is no Parquet file, or pyarrow is not there."""
        super().__init__(path)
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise DataError(f"{path}: Parquet is read by pyarrow: pip install pyarrow") from None
        self._errors = (pyarrow.ArrowException, OSError, UnicodeError)
        self._reading = threading.Lock()
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._done = 0
        try:
            self._file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
            found = self._file.metadata
            groups = [found.row_group(i) for i in range(found.num_row_groups)]
            self._batches = None
            if any(group.total_byte_size > GROUP_BYTES for group in groups):
                self._batches, counts = self._split(pyarrow)
            else:
                counts = [group.num_rows for group in groups]
        except self._errors as error:
            raise self._unreadable(error) from None
        self._ends = list(accumulate(counts))

    def __iter__(self) -> Iterator[Found]:
        number = 0
        try:
            for batch in self._file.iter_batches(BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    self._done = number = number + 1
                    yield Found(number - 1, number, plain(row))
        except self._errors as error:
            raise self._unreadable(error) from None

    def read(self, place: int) -> Any:
        group = bisect_right(self._ends, place)
        first = self._ends[group - 1] if group else 0
        try:
            with self._reading:
                rows = self._group(group).slice(place - first, 1)
            return plain(rows.to_pylist()[0])
        except self._errors as error:
            raise self._unreadable(error) from None

    @property
    def progress(self) -> float:
        return self._done / max(1, self._ends[-1] if self._ends else 0)

    @property
    def columns(self) -> list[str]:
        return self._file.schema_arrow.names

    def _group(self, number: int) -> Any:
        if self._batches is not None:
            return self._batches.get_batch(number)
        if number not in self._cache:
            self._cache[number] = self._file.read_row_group(number, use_threads=False)
            while len(self._cache) > 1 and sum(group.nbytes for group in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    def _split(self, pyarrow: Any) -> tuple[Any, list[int]]:
        """The rows in batches, in a temporary file that goes with this object, and how many each batch has."""
        unpacked = tempfile.TemporaryFile(prefix="prism-rows-")  # noqa: SIM115  (mapped as long as its rows are read)
        counts: list[int] = []
        with pyarrow.ipc.new_file(pyarrow.PythonFile(unpacked, "w"), self._file.schema_arrow) as writer:
            for batch in self._file.iter_batches(BATCH_ROWS, use_threads=False):
                writer.write_batch(batch)
                counts.append(batch.num_rows)
        unpacked.flush()
        self._unpacked = unpacked
        return pyarrow.ipc.open_file(pyarrow.memory_map(f"/proc/self/fd/{unpacked.fileno()}")), counts

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"data file {self.path} cannot be read as Parquet: {error}")


def plain(value: Any) -> Any:
    """A row as JSON has it.

    A null is a key that is not there, bytes are a data URI, an image may be ``{"bytes": ..., "path": ...}``; and an
    integer is one, though a column with nulls in it has made it a float.
    """
    if isinstance(value, dict):
        if "bytes" in value and value.keys() <= {"bytes", "path"}:
            return plain(value["bytes"]) if value["bytes"] is not None else value.get("path")
        return {key: plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return data_uri(value) if isinstance(value, bytes) else value

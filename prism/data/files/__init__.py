"""Files of rows, whichever way they are held: JSON Lines, a JSON array, Parquet. What a row means is others' concern.

A file is read from its beginning, row by row, or one row again by its place: a number of 8 bytes.
"""

import io
from collections.abc import Callable
from pathlib import Path

from prism.data.files.array import JsonArray
from prism.data.files.lines import JsonLines
from prism.data.files.parquet import ParquetRows
from prism.data.files.row_file import BOM, ROW_ERRORS, Found, RowFile, parse_line
from prism.errors import DataError

__all__ = ["ROW_ERRORS", "Found", "RowFile", "open_rows", "parse_line"]

WIDE = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # by its first bytes
HEAD = 64 * 1024


def open_rows(path: Path) -> RowFile:
    """By what the file holds, not by its name (``.parquet`` apart). Raises OSError, and DataError for other files."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if path.suffix == ".parquet" or head.startswith(b"PAR1"):
        return ParquetRows(path)
    if wide := WIDE.get(head[:2]):
        raise DataError(f"data file {path} is {wide}: save it as UTF-8")
    text = head.removeprefix(BOM).lstrip(b" \t\r\n")
    kind: Callable[[Path], RowFile] = JsonArray if text.startswith(b"[") else JsonLines
    if kind is JsonLines and text.startswith(b"{") and io.BytesIO(text).readline().strip() == b"{":
        raise DataError(
            f"data file {path} is one JSON object over many lines: rows are JSON Lines, a JSON array or Parquet"
        )
    return kind(path)

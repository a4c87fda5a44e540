"""The data files that a stage learns from, as its checkpoints and its result remember them.

Which row a step sees depends on their number: with other rows a resumed stage would be no run that can be made again.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism.data.rows import DataFile
from prism.errors import DataError
from prism.wire.weights import file_sha256

BLOCK = 2**20


def describe_data(files: Sequence[DataFile]) -> list[dict[str, Any]]:
    """Of each file its name, size, sha256, and the rows that can be used and cannot."""
    return [
        {
            "file": file.path.name,
            "bytes": file.path.stat().st_size,
            "sha256": file_sha256(file.path),
            "rows": len(file.rows),
            "bad_rows": file.bad_rows,
        }
        for file in files
    ]


def refuse_changed_data(
    files: Sequence[DataFile], before: list[dict[str, Any]], now: list[dict[str, Any]], checkpoint: Path
) -> None:
    """Raises DataError that says which file is not what the checkpoint was trained on, how, and what to do."""
    again = f"or delete {checkpoint.parent} to begin the stage again"
    if len(before) != len(now):
        raise DataError(f"{checkpoint} was trained on {len(before)} data files, these are {len(now)}: {again[3:]}")
    for file, old, new in zip(files, before, now, strict=True):
        then = f"since {checkpoint} was written ({old['rows']:,} rows then, {new['rows']:,} now)"
        if _starts_with(file.path, old):
            if new["bytes"] > old["bytes"]:
                raise DataError(
                    f"{file.path} has grown {then}, and the order of its rows depends on their number. Go on with the "
                    f"rows of then (head -c {old['bytes']} {file.path}), {again}"
                )
            if new["rows"] != old["rows"]:
                raise DataError(f"{file.path} holds other usable rows {then}: put its images back, {again}")
        else:
            raise DataError(f"{file.path} has changed {then}: put the old file back, {again}")


def _starts_with(path: Path, old: dict[str, Any]) -> bool:
    """Whether the first bytes of the file are the whole of the old one."""
    digest, left = hashlib.sha256(), int(old["bytes"])
    with path.open("rb") as file:
        while left and (block := file.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
    return not left and digest.hexdigest() == old["sha256"]

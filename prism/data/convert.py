"""``prism data convert``: rows of any format into JSON Lines or Parquet of PRISM's own."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism.data.images import image_size
from prism.data.rows import DataFile, DataRow, Mixture
from prism.errors import DataError
from prism.files import make_folder, partial_of, seal, write_bytes
from prism.wire.messages import ImagePart

GROUP_ROWS = 64
"""Of a Parquet file, at most: a row cannot be read without those of its group."""
GROUP_BYTES = 16 * 2**20
ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}

Write = Callable[[dict[str, Any]], None]


def convert(rows: Mixture, out: Path) -> int:
    """Write the rows and give how many there are. A turn that is learnt from is a row of its own.

    Images go beside JSON Lines, into a folder NAME.images, unless they lie below the folder of ``out`` already; in
    Parquet they stand in their messages. Raises DataError if ``out`` exists or has another ending than .jsonl and
    .parquet, or for an image that cannot be read.
    """
    if out.exists():
        raise DataError(f"{out} exists already: name another file")
    if out.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{out}: the name must end with .jsonl or .parquet")
    make_folder(out.parent)
    partial = partial_of(out)
    several = len(rows.files) > 1
    try:
        with (_parquet if out.suffix == ".parquet" else _json_lines)(partial) as write:
            for index in range(len(rows)):
                file, row = rows.at(index)
                number = f"{rows.number(index) + 1}:" if several else ""
                write(_own(row, file, out, number))
        seal(partial, out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return len(rows)


def _own(row: DataRow, file: DataFile, out: Path, number: str) -> dict[str, Any]:
    embed = out.suffix == ".parquet"

    def part(one: Any) -> dict[str, Any]:
        if not isinstance(one, ImagePart):
            return {"type": "text", "text": one.text}
        return {"type": "image", "image": _embedded(one.image, file) if embed else _beside(one.image, file, out)}

    own: dict[str, Any] = {"id": f"{number}{row.id}"}
    own["messages"] = [
        {
            "role": message.role,
            "content": message.content
            if isinstance(message.content, str) and not embed
            else [part(one) for one in message.parts],
        }
        for message in row.messages
    ]
    own |= {key: value for key in ("response", "teacher", "gold") if (value := getattr(row, key)) is not None}
    return own | graded_by(row)


def graded_by(row: DataRow) -> dict[str, Any]:
    """What of a row says how answers are graded beside ``gold``, and its ``meta``: keys that stand in it."""
    own: dict[str, Any] = {}
    if row.equivalent_answers:
        own["equivalent_answers"] = row.equivalent_answers
    if row.kind != "auto":
        own["kind"] = row.kind
    if row.options:
        own["options"] = row.options.model_dump(mode="json", exclude_unset=True)
    if row.meta:
        own["meta"] = row.meta
    return own


def _embedded(name: str, file: DataFile) -> dict[str, Any]:
    data = file.image(name)
    image_size(data, file.limits.max_image_pixels)
    return {"bytes": data, "path": None if name.startswith("data:") else Path(name).name}


def _beside(name: str, file: DataFile, out: Path) -> str:
    if not name.startswith("data:"):
        there = Path(os.path.realpath(file.images.find(name)))
        if there.is_relative_to(root := out.parent.resolve()):
            return str(there.relative_to(root))
    data = file.image(name)
    ending = next((ending for start, ending in ENDINGS.items() if data.startswith(start)), ".image")
    path = Path(f"{out.stem}.images") / f"{hashlib.sha256(data).hexdigest()}{ending}"
    if not (out.parent / path).is_file():
        write_bytes(out.parent / path, data, sync=False)
    return str(path)


@contextmanager
def _json_lines(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    """Raises DataError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet is written by pyarrow: pip install pyarrow") from None
    text = pyarrow.string()
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    part = pyarrow.struct([("type", text), ("text", text), ("image", image)])
    message = pyarrow.struct([("role", text), ("content", pyarrow.list_(part))])
    texts = [(name, text) for name in ("response", "teacher", "gold", "kind", "options", "meta")]
    schema = pyarrow.schema(
        [("id", text), ("messages", pyarrow.list_(message)), *texts, ("equivalent_answers", pyarrow.list_(text))]
    )
    held: list[dict[str, Any]] = []
    size = 0
    with parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            nonlocal size
            if held:
                writer.write_table(pyarrow.Table.from_pylist(held, schema))
            held.clear()
            size = 0

        def write(row: dict[str, Any]) -> None:
            nonlocal size
            tables = {key: json.dumps(row[key], ensure_ascii=False) for key in ("options", "meta") if key in row}
            held.append(row | tables)
            parts = (one for message in row["messages"] for one in message["content"])
            size += sum(len(one["image"]["bytes"]) if one["type"] == "image" else len(one["text"]) for one in parts)
            if len(held) >= GROUP_ROWS or size > GROUP_BYTES:
                flush()

        yield write
        flush()

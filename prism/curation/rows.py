"""Problems: read from data files once, their images in the job's blob store, and kept as rows of PRISM's own."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select

from prism.config import DataNames, LimitsConfig
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Problem
from prism.data.blobs import BlobStore
from prism.data.convert import graded_by
from prism.data.mixture import data_files
from prism.data.rows import DataFile, DataRow, Mixture, read_rows
from prism.errors import ConfigError, DataError
from prism.wire.messages import ImagePart
from prism.wire.v1 import rollout_pb2 as pb

CHUNK = 256
BLOB = "sha256:"


def load_problems(
    job: OpenJob,
    names: DataNames,
    resolve: Callable[[str], Path],
    blobs: BlobStore,
    limits: LimitsConfig,
    *,
    mined: bool,
) -> int:
    """Read what has not been read yet; gives how many problems there are. Without ``mined`` all go to the teacher.

    Raises ConfigError if the data is not what the job was begun with, DataError for data without a usable row. A row
    that cannot be used, or has no gold answer, is counted and its problem noted.
    """
    files = data_files(names, resolve)
    now = [{"path": str(path), "sha256": _digest(path)} for path, _ in files]
    known = job.facts().get("data")
    if known and [one["sha256"] for one in known] != [one["sha256"] for one in now]:
        raise ConfigError("data: the files are not those that the job was begun with: take another name, or --fresh")
    with job.store.reading() as connection:
        there = connection.scalar(select(func.count()).where(Problem.job == job.id)) or 0
    if known:
        return there
    data = [read_rows(path, "skip", ("gold",), limits=limits, entry=entry, images="exist") for path, entry in files]
    rows = Mixture(data)
    problems = [problem for file in data for problem in file.problems]
    for begin in range(there, len(rows), CHUNK):
        values = list[dict[str, Any]]()
        for position in range(begin, min(begin + CHUNK, len(rows))):
            file, row = rows.at(position)
            number = f"{rows.number(position) + 1}:" if len(data) > 1 else ""
            value = {"job": job.id, "position": position, "route": None if mined else "teacher", "reason": None}
            try:
                value["row"] = own_row(row, file, blobs, number)
            except DataError as error:  # an image that is none
                value |= {"row": {"id": number + row.id}, "route": "unjudged", "reason": str(error)}
            values.append(value)
        with job.store.writing() as connection:
            job.require_newest(connection)
            connection.execute(insert(Problem), values)
    told = [
        one | {"format": file.format, "rows": len(file.rows), "refused": file.bad_rows}
        for one, file in zip(now, data, strict=True)
    ]
    job.note(data=told, data_problems=problems[:20])
    return len(rows)


def own_row(row: DataRow, file: DataFile, blobs: BlobStore, number: str = "") -> dict[str, Any]:
    """Raises DataError for an image that cannot be read."""

    def part(one: Any) -> dict[str, str]:
        if isinstance(one, ImagePart):
            return {"type": "image", "image": BLOB + blobs.put(file.canonical_image(one.image))}
        return {"type": "text", "text": one.text}

    messages = [{"role": message.role, "content": [part(one) for one in message.parts]} for message in row.messages]
    own: dict[str, Any] = {"id": number + row.id, "messages": messages, "gold": row.gold}
    return own | graded_by(row)


def messages_of(row: dict[str, Any]) -> list[pb.Message]:
    def part(one: dict[str, str]) -> pb.Part:
        if one["type"] == "image":
            return pb.Part(image_sha256=one["image"].removeprefix(BLOB))
        return pb.Part(text=one["text"])

    return [pb.Message(role=message["role"], parts=map(part, message["content"])) for message in row["messages"]]


def images_of(row: dict[str, Any]) -> list[str]:
    """sha256 of each, in order."""
    parts = (part for message in row.get("messages", []) for part in message["content"])
    return [part["image"].removeprefix(BLOB) for part in parts if part["type"] == "image"]


def sizes_of(row: dict[str, Any], images: Mapping[str, bytes]) -> list[tuple[int, int]]:
    """Width and height of each image, in order. What the blob store holds are canonical PNGs: the header says it."""
    return [struct.unpack_from(">II", images[sha256], 16) for sha256 in images_of(row)]


def question_of(row: dict[str, Any]) -> str:
    """Its texts."""
    parts = (part for message in row.get("messages", []) for part in message["content"])
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def golds_of(row: dict[str, Any]) -> list[str]:
    return [row["gold"], *row.get("equivalent_answers", [])]


def _digest(path: Path) -> str:
    """Raises DataError for a file that is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"data file {path}: {error.strerror}") from None


def fingerprint(value: Any) -> str:
    """Of settings, to tell whether they are another's."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]

"""Data rows as users bring them: JSON Lines or Parquet of chat messages, images by path.

A row's ``messages`` end with the user's turn, or with the assistant's, which is then the demonstration ``response``.
``teacher`` is the closed teacher's text, ``gold`` the answer that a grader compares with, by ``kind`` and ``options``;
all are optional. Several golds, or ``equivalent_answers`` beside one, are equally right. A text that is null, NaN or
blank is not there.
"""

import io
import json
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from prism.config import LimitsConfig
from prism.data.blobs import BlobStore
from prism.data.images import canonical_image, decode_image, encode_canonical, naming_image, read_image
from prism.data.row_files import LazyRows, open_lines
from prism.data.table import NUMBERS_ARE_TEXTS, without_nan
from prism.errors import DataError
from prism.settings import describe
from prism.wire.grading import AnswerKind, GradeOptions
from prism.wire.messages import (
    Message,
    from_json,
    image_parts,
    is_data_uri,
    place_images,
    take_demonstration,
)
from prism.wire.response import parse_response
from prism.wire.v1 import rollout_pb2 as pb

MAX_EQUIVALENT = 63  # beside the gold answer: a grader takes 64
KEPT_PROBLEMS = 1_000  # texts; beyond them problems are counted
CHECKED_IMAGES = 16_384  # names of images known to be good: rows that share one mostly stand together
SAY_SECONDS = 10
BYTES_PER_PIXEL = 4.1  # three of a PNG that could not be compressed, in base64
REQUEST_BYTES = 64 * 1024  # of a request, beside texts and images

Size = tuple[int, int]
"""Width and height."""


# What reading a row raises, if something is wrong with it. (A number of 5,000 digits is a plain ValueError.)
ROW_ERRORS = (ValueError, RecursionError)


def _blank_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


OptionalText = Annotated[str | None, BeforeValidator(_blank_is_none)]


def _without_blanks(value: object) -> list[object]:
    """Texts and numbers of a list, without what is null, NaN or blank; a value alone is a list of one."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if _blank_is_none(v) is not None and not (isinstance(v, float) and v != v)]


def _grade_options(value: object) -> object:
    """Strictly, unlike all else of a row: a key that nobody reads would change what is right without a word."""
    if not isinstance(value, dict):
        return value
    given = {name: one for name, one in value.items() if one is not None}
    try:
        return GradeOptions.model_validate(without_nan(given)) if given else None
    except ValidationError as error:
        raise ValueError("; ".join(describe(error))) from None


class DataRow(BaseModel):
    """One line. Unknown keys are let through: data sets carry more than a trainer reads.

    An image is named by its path, relative to the file the row stands in, or given as a data: URL.
    """

    model_config = NUMBERS_ARE_TEXTS

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    response: OptionalText = None
    teacher: OptionalText = None
    gold: OptionalText = None
    equivalent_answers: Annotated[list[str], Field(max_length=MAX_EQUIVALENT), BeforeValidator(_without_blanks)] = []
    kind: AnswerKind = "auto"
    options: Annotated[GradeOptions | None, BeforeValidator(_grade_options)] = None
    meta: dict[str, object] = {}

    @model_validator(mode="before")
    @classmethod
    def _several_golds(cls, value: object) -> object:
        """Of several the first is the gold answer, and the others are equivalent."""
        if not isinstance(value, dict):
            return value
        if not isinstance(value.get("gold"), list) and value.get("equivalent_answers") is None:
            return value
        first, *others = _without_blanks(value.get("gold")) + _without_blanks(value.get("equivalent_answers")) or [None]
        return value | {"gold": first, "equivalent_answers": others}

    @model_validator(mode="before")
    @classmethod
    def _demonstration_in_messages(cls, value: object) -> object:
        return row_fields(value)

    @model_validator(mode="after")
    def _ends_with_user(self) -> "DataRow":
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's (or the assistant's demonstration after it)")
        if not all(self.image_paths):
            raise ValueError("an image of the messages has an empty path")
        return self

    @property
    def image_paths(self) -> list[str]:
        return [part.image for part in image_parts(self.messages)]


def row_fields(value: object) -> object:
    """A row's fields by their names, however they were given; what is no row is left as it is. Raises ValueError."""
    return take_demonstration(place_images(without_nan(value)))


RowCheck = Callable[[DataRow, Sequence[Size]], None]
"""Raises DataError for a row, with images of these sizes, that a use cannot take."""


@dataclass
class DataFile:
    """The usable rows of one file, and what was wrong with the others, each with file and line."""

    path: Path
    rows: Sequence[DataRow] = ()
    problems: list[str] = field(default_factory=list)
    """Of the first rows that cannot be used."""
    bad_rows: int = 0
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def image(self, name: str) -> bytes:
        """Raises DataError that names the image."""
        return read_image(name, self.path.parent)

    def decode_image(self, name: str) -> Image.Image:
        """Raises DataError that names the image."""
        data = self.image(name)
        with naming_image(name):
            return decode_image(data, self.limits.max_image_pixels)

    def canonical_image(self, name: str) -> bytes:
        """What ``decode_image`` sees, for other readers. Raises DataError that names the image."""
        data = self.image(name)
        with naming_image(name):
            return canonical_image(data, self.limits.max_image_pixels)


def read_rows(
    path: Path,
    on_bad_row: Literal["skip", "fail"],
    require: tuple[str, ...] = (),
    *,
    images: Literal["decode", "exist"] = "decode",
    say: Callable[[str], None] = lambda _: None,
    limits: LimitsConfig | None = None,
    check: RowCheck | None = None,
) -> DataFile:
    """Check every row and keep where it stands: 8 bytes a row, which is read again when it is asked for.

    An image that is missing or no image counts as a bad row; with ``images="exist"`` none is opened, so that only a
    missing one does. ``require`` names optional keys that this use needs, such as ``("teacher",)``; a teacher's text
    that is needed must be in the response format, or nobody can learn from it. ``say`` is told of progress, where it
    takes long. ``limits`` are of every prompt; ``check`` is this use's own; with ``images="exist"`` it is given no
    sizes.
    Raises DataError if the file is missing, holds no good row or, with ``on_bad_row="fail"``, a bad one.
    """
    if not path.is_file():
        raise DataError(f"data file {path} does not exist")
    result = DataFile(path, limits=limits or LimitsConfig())
    offsets, numbers, ids = array("q"), array("q"), array("Q")  # of the good rows

    def bad(number: int, text: str) -> None:
        result.bad_rows += 1
        if len(result.problems) < KEPT_PROBLEMS:
            result.problems.append(f"{path}:{number}: {text}")
        if on_bad_row == "fail":
            raise DataError(f'{path}:{number}: {text}\n(set on_bad_row = "skip" to count and skip such rows)')

    size_of = _image_check(result, decode=images == "decode")
    lines = open_lines(path)
    size, offset, said = lines.seek(0, io.SEEK_END), 0, time.monotonic()
    lines.seek(0)
    for number, line in enumerate(lines, 1):
        start, offset = offset, offset + len(line)
        if not line.strip():
            continue
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            say(f"checking {path}: {number:,} rows, {offset / size:.0%}")
        try:
            row = _parse_row(line)
            _refuse_unusable(row, require)
            if len(row.image_paths) > result.limits.max_images:
                raise DataError(
                    f"{len(row.image_paths)} images, over the limit of {result.limits.max_images} (max_images)"
                )
            sizes = [found for name in row.image_paths if (found := size_of(name))]
            _check_request(row, sizes, result)
            if check:
                check(row, sizes)
        except ROW_ERRORS as error:
            bad(number, what_is_wrong(error))
            continue
        offsets.append(start)
        numbers.append(number)
        ids.append(int.from_bytes(blake2b(row.id.encode(), digest_size=8).digest()))
    again = _repeated(ids)
    for index in again:
        lines.seek(offsets[index])
        bad(numbers[index], f"id {_parse_row(lines.readline()).id!r} stands twice in this file")
    if again:
        kept = np.delete(np.array(offsets), again)
        offsets = array("q", kept.tobytes())
    if not offsets:
        first = f"; the first problem: {result.problems[0]}" if result.problems else ""
        raise DataError(f"data file {path} holds no usable row{first}")
    result.rows = LazyRows(path, offsets, _parse_row, lines)
    return result


def _refuse_unusable(row: DataRow, require: tuple[str, ...]) -> None:
    """Raises DataError unless the row has each of these texts, and the teacher's has its three sections."""
    if missing := [key for key in require if getattr(row, key) is None]:
        raise DataError(f"{', '.join(missing)} is missing or empty, which this stage needs")
    if "teacher" in require and (problems := parse_response(row.teacher or "").problems):
        raise DataError(f"the teacher's text is not in the response format: {', '.join(problems)}")


def what_is_wrong(error: Exception) -> str:
    """With a row, in words; ``error`` is one of ROW_ERRORS."""
    return "; ".join(describe(error)) if isinstance(error, ValidationError) else str(error)


def _parse_row(line: bytes) -> DataRow:
    """Raises one of ROW_ERRORS."""
    return DataRow.model_validate(parse_line(line), extra="ignore")  # in the messages too, which HTTP takes strictly


def parse_line(line: bytes) -> object:
    """Raises UnicodeError for what is no text: bytes that are no UTF-8, or half a surrogate pair in an escape."""
    value = json.loads(line.decode())
    if b"\\ud" in line.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _repeated(ids: array) -> list[int]:
    """Places at which stands what stood before, in order; ``ids`` are 64-bit digests, which differ if ids do."""
    values = np.frombuffer(ids, np.uint64)
    order = np.argsort(values, kind="stable")
    return sorted(order[1:][values[order[1:]] == values[order[:-1]]].tolist())


def _image_check(data: DataFile, *, decode: bool) -> Callable[[str], Size | None]:
    """What raises DataError for a bad image and gives a good one's size, if it is decoded; the last are remembered."""

    def look(name: str) -> Size | None:
        if decode or is_data_uri(name):
            return data.decode_image(name).size
        with naming_image(name):
            (data.path.parent / name).stat()
        return None

    remembering = lru_cache(CHECKED_IMAGES)(look)
    return lambda name: look(name) if is_data_uri(name) else remembering(name)


def _check_request(row: DataRow, sizes: Sequence[Size], data: DataFile) -> None:
    """Raises DataError for a prompt that is too large to be sent; sizes that cannot be are found without encoding."""
    texts = sum(len(part.text.encode()) for message in row.messages for part in message.parts if part.type == "text")
    room = data.limits.body_limit - REQUEST_BYTES - texts
    if sum(BYTES_PER_PIXEL * width * height for width, height in sizes) <= room:
        return
    sent = sum(4 * len(encode_canonical(data.decode_image(name))) // 3 for name in row.image_paths)
    if sent > room:
        raise DataError(
            f"texts of {texts} bytes and images of {sent} as PNG in base64, over the limit of "
            f"{data.limits.body_limit} (body_limit)"
        )


def to_prompt(row: DataRow, data: DataFile, blobs: BlobStore) -> pb.Prompt:
    """The row as it travels: its images put into the blob store, as the learner sees them, and named by sha256."""
    return _to_prompt(row, lambda name: blobs.put(data.canonical_image(name)))


def _to_prompt(row: DataRow, name_image: Callable[[str], str]) -> pb.Prompt:
    return pb.Prompt(
        id=row.id,
        messages=from_json(row.messages, name_image),
        gold=row.gold or "",
        equivalent_answers=row.equivalent_answers,
        kind=row.kind,
        teacher=row.teacher or "",
        meta_json=json.dumps(row.meta),
        options_json=row.options.model_dump_json(exclude_unset=True) if row.options else "",
    )


class Prompts(Sequence[pb.Prompt]):
    """The rows of a file as they travel, each made when it is asked for; its images are stored then, once."""

    def __init__(self, data: DataFile, blobs: BlobStore) -> None:
        def stored(name: str) -> str:
            return blobs.put(data.canonical_image(name))

        self._rows, self._stored, self._remembered = data.rows, stored, lru_cache(CHECKED_IMAGES)(stored)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> pb.Prompt:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raises DataError for an image that has gone since it was checked, ServiceError where the store is away."""
        return _to_prompt(self._rows[index], self._name)

    def _name(self, image: str) -> str:
        return self._stored(image) if is_data_uri(image) else self._remembered(image)

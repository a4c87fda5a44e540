"""Data rows as users bring them: JSON Lines of chat messages, images by path.

A row's ``messages`` end with the user's turn, or with the assistant's, which is then the demonstration ``response``.
``teacher`` is the closed teacher's text, ``gold`` the answer a grader compares with; both are optional.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prism.blobs import BlobStore
from prism.errors import DataError
from prism.settings import describe
from prism.v1 import rollout_pb2 as pb

# What users bring; Pillow reads many more, some by starting other programs.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    type: Literal["image"]
    image: str = Field(min_length=1, description="path, relative to the file the row stands in")


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class Row(BaseModel):
    """One line. Unknown keys are let through: data sets carry more than a trainer reads."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str = Field(min_length=1)
    messages: list[ChatMessage] = Field(min_length=1)
    response: str | None = None
    teacher: str | None = None
    gold: str | None = None
    kind: Literal["auto", "math", "number", "choice", "text", "multi", "box", "judge"] = "auto"
    meta: dict[str, object] = {}

    @model_validator(mode="before")
    @classmethod
    def _demonstration_in_messages(cls, value: object) -> object:
        return take_demonstration(value)

    @model_validator(mode="after")
    def _ends_with_user(self) -> "Row":
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's (or the assistant's demonstration after it)")
        return self

    @property
    def image_paths(self) -> list[str]:
        return [part.image for message in self.messages for part in message.parts if isinstance(part, ImagePart)]


def take_demonstration(value: object) -> object:
    """The row with an assistant's last turn as its response; a copy, the caller's row stays as it was.

    Raises ValueError if that turn is not text.
    """
    if isinstance(value, dict) and isinstance(messages := value.get("messages"), list) and messages:
        last = messages[-1]
        if isinstance(last, dict) and last.get("role") == "assistant" and "response" not in value:
            content = last.get("content")
            if isinstance(content, list):
                texts = [part.get("text") if isinstance(part, dict) else None for part in content]
                content = "".join(text for text in texts if isinstance(text, str))
                if len(texts) != sum(isinstance(text, str) for text in texts):
                    raise ValueError("the assistant's message must consist of text parts")
            return {**value, "messages": messages[:-1], "response": content}
    return value


@dataclass
class DataFile:
    """The rows of one file and what was wrong with the others, each with file and line."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def image(self, name: str) -> bytes:
        return (self.path.parent / name).read_bytes()


def read_rows(path: Path, on_bad_row: Literal["skip", "fail"], require: tuple[str, ...] = ()) -> DataFile:
    """Read and check every row; an image that is missing or no image counts as a bad row.

    ``require`` names optional keys that this use needs, such as ``("teacher",)``.
    Raises DataError if the file is missing, holds no good row or, with ``on_bad_row="fail"``, a bad one.
    """
    if not path.is_file():
        raise DataError(f"data file {path} does not exist")
    result = DataFile(path)
    checked: set[str] = set()
    seen: set[str] = set()
    for number, line in numbered_lines(path):
        try:
            row = Row.model_validate(parse_line(line))
            missing = [key for key in require if getattr(row, key) is None]
            if missing:
                raise DataError(f"{', '.join(missing)} is missing, which this stage needs")
            if row.id in seen:
                raise DataError(f"id {row.id!r} stands twice in this file")
            for name in row.image_paths:
                if name not in checked:
                    _check_image(result, name)
                    checked.add(name)
        except (ValidationError, json.JSONDecodeError, DataError, UnicodeError, RecursionError) as error:
            text = "; ".join(describe(error)) if isinstance(error, ValidationError) else str(error)
            result.problems.append(f"{path}:{number}: {text}")
            if on_bad_row == "fail":
                raise DataError(
                    f'{result.problems[-1]}\n(set on_bad_row = "skip" to count and skip such rows)'
                ) from None
            continue
        seen.add(row.id)
        result.rows.append(row)
    if not result.rows:
        first = f"; the first problem: {result.problems[0]}" if result.problems else ""
        raise DataError(f"data file {path} holds no usable row{first}")
    return result


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, counted from 1 with those that are."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def parse_line(line: bytes) -> object:
    """Raises UnicodeError for what is no text: bytes that are no UTF-8, or half a surrogate pair in an escape."""
    value = json.loads(line.decode())
    if b"\\ud" in line.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _check_image(data: DataFile, name: str) -> None:
    try:
        open_image(data.image(name)).close()
    except (OSError, ValueError) as error:  # ValueError: no image, or no path at all (null bytes)
        raise DataError(f"image {name!r}: {getattr(error, 'strerror', None) or error}") from None


def open_image(data: bytes, max_pixels: int = 64_000_000) -> Image.Image:
    """An image as the model sees it: its first frame, turned as its EXIF says, in 8-bit RGB, what is transparent white.

    The policy server does the same to the bytes it is sent, but for 16 bits, which it clips instead of scaling them.
    Raises DataError if the bytes are no image, hold too many pixels or none, or have no agreed meaning as colours.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if not image.width * image.height:
            raise DataError("the image has no pixels")
        if image.width * image.height > max_pixels:
            raise DataError(f"the image has {image.width}x{image.height} pixels, over the limit of {max_pixels}")
        if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
            raise DataError("pixels of 32 bits have no agreed range: convert the image to 8 or 16 bits")
        return _rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # a reader raises whatever it comes upon in broken bytes; none says what it may be
        raise DataError(f"not a readable image: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips them at 255, and nearly all would be white
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGB", image.size, "white")
        image = image.convert("RGBA")
        opaque.paste(image, mask=image.getchannel("A"))
        return opaque
    return image.convert("RGB")


def to_prompt(row: Row, data: DataFile, blobs: BlobStore) -> pb.Prompt:
    """The row as it travels: its images put into the blob store and named by sha256."""
    return pb.Prompt(
        id=row.id,
        messages=[
            pb.Message(
                role=message.role,
                parts=[
                    pb.Part(text=part.text)
                    if isinstance(part, TextPart)
                    else pb.Part(image_sha256=blobs.put(data.image(part.image)))
                    for part in message.parts
                ],
            )
            for message in row.messages
        ],
        gold=row.gold or "",
        kind=row.kind,
        teacher=row.teacher or "",
        meta_json=json.dumps(row.meta),
    )

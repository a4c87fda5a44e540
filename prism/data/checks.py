"""What every row's images and size are held against when it is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from prism.data.images import encode_canonical
from prism.errors import DataError
from prism.wire.messages import Message, is_data_uri

if TYPE_CHECKING:
    from prism.data.rows import DataFile, DataRow

CHECKED_IMAGES = 16_384  # names of images known to be good: rows that share one mostly stand together
BYTES_PER_PIXEL = 4.1  # three of a PNG that could not be compressed, in base64
REQUEST_BYTES = 64 * 1024  # of a request, beside texts and images

Size = tuple[int, int]
"""Width and height."""

RowCheck = Callable[["DataRow", Sequence[Size]], None]
"""Raises DataError for a row, with images of these sizes, that a use cannot take.

It may have an attribute ``fits``: what says of a row and its sizes that they pass for certain, and can be sent to
another process.
"""

TEMPLATE_BYTES = 64  # that a chat template writes around a message, about; a shorter row is not tokenised
TEMPLATE_START = 512  # and before the first


@dataclass(frozen=True)
class FitsUncounted:
    """Whether a row cannot have more than ``limit`` tokens, without counting them."""

    limit: int
    target: str

    def __call__(self, row: "DataRow", sizes: Sequence[Size], image_tokens: int = 0) -> bool:
        """``image_tokens``: what images of these sizes come to; a row with any is not sure without it."""
        if sizes and not image_tokens:
            return False
        parts = [part for message in row.messages for part in message.parts]
        texts = [getattr(row, self.target) or "", *(part.text for part in parts if part.type == "text")]
        frame = TEMPLATE_START + TEMPLATE_BYTES * (1 + len(row.messages))
        # No token is less than a byte.
        return image_tokens + sum(len(text.encode()) for text in texts) + frame <= self.limit


def image_check(data: "DataFile", *, decode: bool) -> Callable[[str], Size | None]:
    """What raises DataError for a bad image and gives a good one's size, if it is decoded; the last are remembered."""

    def look(name: str) -> Size | None:
        if decode or is_data_uri(name):
            return data.decode_image(name).size
        data.images.find(name)
        return None

    remembering = lru_cache(CHECKED_IMAGES)(look)
    return lambda name: look(name) if is_data_uri(name) else remembering(name)


def check_request(row: "DataRow", sizes: Sequence[Size], data: "DataFile") -> None:
    """Raises DataError for a prompt that is too large to be sent; sizes that cannot be are found without encoding."""
    room = data.limits.body_limit - REQUEST_BYTES
    pixels = sum(BYTES_PER_PIXEL * width * height for width, height in sizes)
    if pixels + 4 * sum(map(_letters, row.messages)) <= room:  # no letter takes more than four bytes
        return
    texts = sum(len(part.text.encode()) for message in row.messages for part in message.parts if part.type == "text")
    room -= texts
    if pixels <= room:
        return
    sent = sum(4 * len(encode_canonical(data.decode_image(name))) // 3 for name in row.image_paths)
    if sent > room:
        raise DataError(
            f"texts of {texts} bytes and images of {sent} as PNG in base64, over the limit of "
            f"{data.limits.body_limit} (body_limit)"
        )


def _letters(message: Message) -> int:
    if isinstance(message.content, str):
        return len(message.content)
    return sum(len(part.text) for part in message.content if part.type == "text")

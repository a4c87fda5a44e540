"""Images as the model sees them, whatever form they come in.

Formats leave room: what is transparent, turned or 16 bits deep looks different to different readers. So there is one
reader, ``decode_image``, and what travels is what it saw, as ``canonical_image``.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prism.config import LimitsConfig
from prism.errors import DataError
from prism.wire.messages import data_uri_bytes, is_data_uri

# What users bring; Pillow reads many more, some by starting other programs.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = LimitsConfig().max_image_pixels
MAX_ASPECT = 200  # Qwen's processor refuses longer ones
COMPRESSION = 1  # of zlib: a fifth of the time that its default takes, for a few percent more bytes
PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def read_image(name: str | Path, folder: Path) -> bytes:
    """An image as rows name it: by its path, relative to ``folder``, or as a data: URL.

    Raises DataError that names the image.
    """
    with naming_image(name):
        if isinstance(name, str) and is_data_uri(name):
            return data_uri_bytes(name)
        return (folder / name).read_bytes()


@contextmanager
def naming_image(image: str | Path) -> Iterator[None]:
    """What goes wrong with an image becomes a DataError that names it."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: no image, no base64, or no path at all (null bytes)
        raise DataError(f"image {str(image)[:200]!r}: {getattr(error, 'strerror', None) or error}") from None


class OverLimit(DataError):
    """An image larger than it may be."""


def decode_image(data: bytes, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """An image as the model sees it: its first frame, turned as its EXIF says, in 8-bit RGB, what is transparent white.

    ``max_pixels`` is None for what was let in before. Raises OverLimit for an image that holds more pixels, DataError
    if the bytes are no image, have no agreed meaning as colours, or a shape that no model takes.
    """
    with _reading():
        image = _open(data, max_pixels)
        if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
            raise DataError("pixels of 32 bits have no agreed range: convert the image to 8 or 16 bits")
        return _rgb(ImageOps.exif_transpose(image))


def image_size(data: bytes, max_pixels: int | None = MAX_PIXELS) -> tuple[int, int]:
    """The sides of an image, by its header alone; which is its width depends on its EXIF.

    Raises as ``decode_image`` does, which also finds what is wrong with pixels.
    """
    with _reading():
        return _open(data, max_pixels).size


def _open(data: bytes, max_pixels: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(*image.size, max_pixels)
    return image


@contextmanager
def _reading() -> Iterator[None]:
    """What goes wrong in reading an image becomes a DataError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise OverLimit(f"the image may be a decompression bomb: {error}") from None
    except Exception as error:  # a reader raises whatever it comes upon in broken bytes; none says what it may be
        raise DataError(f"not a readable image: {error}") from None


def canonical_image(data: bytes, max_pixels: int | None = MAX_PIXELS) -> bytes:
    """The pixels of ``decode_image`` as a PNG of 8-bit RGB with nothing beside them: every reader sees the same.

    ``data`` itself if it is such a PNG already, which is not decoded then. Raises as ``decode_image``.
    """
    size = _canonical_size(data)
    if size:
        _check_size(*size, max_pixels)
        return data
    return encode_canonical(decode_image(data, max_pixels))


def encode_canonical(image: Image.Image) -> bytes:
    """``image`` is what ``decode_image`` gives."""
    out = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(out, "PNG", compress_level=COMPRESSION)
    return out.getvalue()


def _canonical_size(data: bytes) -> tuple[int, int] | None:
    """Width and height if ``data`` is a whole PNG of 8-bit RGB: a header, pixels, the end, and each as its sum says."""
    if not data.startswith(PNG_HEAD):
        return None
    place, kinds, size = 8, [], None
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data) or zlib.crc32(memoryview(data)[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return None
        if kind == b"IHDR":
            *size, depth, colours, packing, filtering, interlaced = struct.unpack_from(">IIBBBBB", data, place + 8)
            if (depth, colours, packing, filtering, interlaced) != (8, 2, 0, 0, 0):
                return None
        kinds.append(kind)
        place = end
    plain = kinds[:1] == [b"IHDR"] and kinds[-1:] == [b"IEND"] and set(kinds[1:-1]) == {b"IDAT"}
    return (size[0], size[1]) if plain and size and place == len(data) else None


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    if not width * height:
        raise DataError("the image has no pixels")
    if max_pixels is not None and width * height > max_pixels:
        raise OverLimit(f"the image has {width}x{height} pixels, over the limit of {max_pixels} (max_image_pixels)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"the image has {width}x{height} pixels, an aspect ratio over the model's limit of {MAX_ASPECT}"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips them at 255, and nearly all would be white
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGB", image.size, "white")
        image = image.convert("RGBA")
        opaque.paste(image, mask=image.getchannel("A"))
        return opaque
    return image.convert("RGB")

"""Images as the model sees them, whatever form they come in."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prism.errors import DataError
from prism.wire.messages import data_uri_bytes

# What users bring; Pillow reads many more, some by starting other programs.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")


def read_image(name: str | Path, folder: Path) -> bytes:
    """An image as rows name it: by its path, relative to ``folder``, or as a data: URL.

    Raises DataError that names the image.
    """
    with naming_image(name):
        if isinstance(name, str) and name.startswith("data:"):
            return data_uri_bytes(name)
        return (folder / name).read_bytes()


@contextmanager
def naming_image(image: str | Path) -> Iterator[None]:
    """What goes wrong with an image becomes a DataError that names it."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: no image, no base64, or no path at all (null bytes)
        raise DataError(f"image {str(image)[:200]!r}: {getattr(error, 'strerror', None) or error}") from None


def decode_image(data: bytes, max_pixels: int = 64_000_000) -> Image.Image:
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

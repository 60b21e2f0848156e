"""Bytes to pixels, or the reason why not: one kind of a short closed list, and a message."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from sif_batch.failures import ImageError

MAX_PIXELS = 100_000_000
MAX_BYTES = 512 * 2**20  # of a file
BACKGROUND = (255, 255, 255)  # what shows through transparency

ORIENTATION = 0x0112  # EXIF tag
QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height
# Not ImageOps.exif_transpose: it writes the EXIF anew, which odd tags make fail.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """pixels: RGB, upright, perhaps reduced while decoding; width, height: of the original, after EXIF."""

    pixels: Image.Image
    width: int
    height: int


def decode(
    data: bytes, at_least: int | None = None, side: Callable[..., int] = min, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Decode the first frame as RGB, upright by its EXIF orientation.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its shorter (side=min) or longer (max) side stays
    `at_least` pixels. Raises ImageError.
    """
    if not data:
        raise ImageError("not_an_image", "the file is empty")
    with _telling_why():
        return _decode(data, at_least, side, max_pixels)


def checked_rgb(image: Image.Image) -> Image.Image:
    """`upright_rgb` of an image that may not have been read yet. Raises ImageError."""
    if not (image.width and image.height):
        raise ImageError("not_an_image", f"it has {image.width} x {image.height} pixels")
    with _telling_why():
        image.load()
        return upright_rgb(image)


@contextlib.contextmanager
def _telling_why() -> Iterator[None]:
    """Whatever Pillow raises as ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", "no format that Pillow knows") from error
    except MemoryError as error:
        raise ImageError("too_large", "decoding it needs more memory than there is") from error
    except Exception as error:  # Pillow raises a dozen types on odd files, zlib.error and struct.error among them
        raise ImageError(_kind_of(error), f"{type(error).__name__}: {error}"[:500]) from error


def _decode(data: bytes, at_least: int | None, side: Callable[..., int], max_pixels: int) -> Decoded:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError("too_large", f"{width} x {height} pixels; the limit is {max_pixels}")
        if at_least is not None and image.format == "JPEG":
            factor = at_least / side(width, height)
            image.draft("RGB", (math.ceil(width * factor), math.ceil(height * factor)))
        image.load()
        if orientation_of(image) in QUARTER_TURNS:
            width, height = height, width
        return Decoded(upright_rgb(image), width, height)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where the EXIF cannot be read: its pixels can."""
    try:
        return image.getexif().get(ORIENTATION, 1)  # type: ignore[no-any-return]
    except Exception:
        return 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, as RGB."""
    turn = TURNS.get(orientation_of(image))
    return to_rgb(image if turn is None else image.transpose(turn))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: transparency composited on white, 16-bit and float scaled to 0..255."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits or float as 0..255: 0..65535 and 0..1 by their full range, others by their own."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        high, low = 1.0, 0.0
    elif low >= 0 and high <= 255:
        high, low = 255.0, 0.0
    elif low >= 0 and high <= 65535:
        high, low = 65535.0, 0.0
    return np.round((values - low) * (255 / (high - low or 1))).astype(np.uint8)


def _kind_of(error: BaseException) -> str:
    text = str(error).lower()
    if isinstance(error, Image.DecompressionBombError):
        return "too_large"
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text:
        return "truncated"
    missing = ("unsupported", "not available", "ghostscript", "cannot find loader")  # of Pillow, not of the file
    if isinstance(error, NotImplementedError) or any(words in text for words in missing):
        return "unsupported"
    return "corrupt"

"""Bytes to pixels, or the reason why not: one kind of a short closed list, and a message."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from sif_batch.failures import ImageError
from sif_batch.images.decode_limits import Reduction, check_pixels, decoder_bytes, halvings, jpeg2000_layout, room_for
from sif_batch.images.dicom_tiff import Read, read_dicom, read_tiff
from sif_batch.images.formats import is_dicom, is_tiff
from sif_batch.images.srgb import to_rgb

MAX_PIXELS = 100_000_000
MAX_BYTES = 512 * 2**20  # of a file
LARGE_PIXELS = 16_000_000  # larger ones are reduced by a whole factor where not all of them is asked for

ORIENTATION = 0x0112  # EXIF tag
SAMPLES = 277  # TIFF tag: how many bands
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

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, an image of more than LARGE_PIXELS reduced by any whole
    factor, as long as its shorter (side=min) or longer (max) side stays `at_least` pixels; one that would still have
    more than twice LARGE_PIXELS is reduced further. Raises ImageError.
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
    def reduction(width: int, height: int) -> int:
        if at_least is None or width * height <= LARGE_PIXELS:
            return 1
        return max(1, side(width, height) // at_least, math.ceil(math.sqrt(width * height / (2 * LARGE_PIXELS))))

    if is_dicom(data):
        return _upright(*read_dicom(data, max_pixels, reduction))
    try:
        return _upright(*_read_by_pillow(data, at_least, side, max_pixels, reduction))
    except Exception as error:
        beyond_pillow = is_tiff(data) and _kind_of(error) in ("not_an_image", "unsupported")
        if not beyond_pillow:
            raise
        return _upright(*read_tiff(data, max_pixels, reduction))


def _read_by_pillow(
    data: bytes, at_least: int | None, side: Callable[..., int], max_pixels: int, reduction: Reduction
) -> Read:
    with _freed_on_failure(Image.open(io.BytesIO(data))) as image:
        width, height = image.size
        check_pixels(width, height, max_pixels)
        _check_variant(image)
        if at_least is not None and image.format == "JPEG":
            factor = at_least / side(width, height)
            image.draft("RGB", (math.ceil(width * factor), math.ceil(height * factor)))
        if image.format == "JPEG2000" and (whole := reduction(width, height)) > 1:
            image.reduce = halvings(whole, jpeg2000_layout(data)[2])  # type: ignore[method-assign,assignment]
        with room_for(width, height, max_pixels, decoder_bytes(image, data, (width, height))):
            image.load()
            pixels = to_rgb(image, reduction(*image.size))
        return pixels, width, height, orientation_of(image)


def _check_variant(image: ImageFile) -> None:
    """Raise ImageError for a TIFF that Pillow reads wrongly, or cannot say why it does not read."""
    if image.format != "TIFF":
        return
    if image.tag_v2.get(SAMPLES, 1) > 1 and len(image.getbands()) == 1:  # type: ignore[attr-defined]
        raise ImageError("unsupported", "Pillow takes separate bands for grey")  # tifffile does not
    if image.info.get("compression") == "webp":
        raise ImageError("unsupported", "TIFF compressed as WebP")


def _upright(rgb: Image.Image, width: int, height: int, orientation: int) -> Decoded:
    if orientation in QUARTER_TURNS:
        width, height = height, width
    return Decoded(_turned(rgb, orientation), width, height)


@contextlib.contextmanager
def _freed_on_failure(image: ImageFile) -> Iterator[ImageFile]:
    """The image; its memory is given back when this fails, not when Python next looks for cycles."""
    try:
        yield image
    except BaseException:
        image.close()
        raise


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where the EXIF cannot be read: its pixels can."""
    try:
        return image.getexif().get(ORIENTATION, 1)  # type: ignore[no-any-return]
    except Exception:
        return 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, as RGB."""
    return _turned(to_rgb(image), orientation_of(image))


def _turned(rgb: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS.get(orientation)
    return rgb if turn is None else rgb.transpose(turn)


def _kind_of(error: BaseException) -> str:
    text = str(error).lower()
    if isinstance(error, ImageError):
        return error.kind
    if isinstance(error, UnidentifiedImageError):
        return "not_an_image"
    if isinstance(error, Image.DecompressionBombError) or "too large" in text:
        return "too_large"
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text:
        return "truncated"
    missing = ("unsupported", "not available", "ghostscript", "cannot find loader")  # of Pillow, not of the file
    if isinstance(error, NotImplementedError) or any(words in text for words in missing):
        return "unsupported"
    return "corrupt"

"""How much decoding an image may take: more is refused before it begins, and of large images one waits for another."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator

from PIL.ImageFile import ImageFile

from sif_batch.failures import ImageError

BYTES_A_PIXEL = 8  # decoding may hold so many bytes for each pixel of the limit: 800 MB by default
LARGE_BYTES = 128 * 2**20  # of images that take more, one is decoded at a time in a process
HUNGRY = {"WEBP": 16, "AVIF": 9}  # bytes a pixel that these decoders were seen to hold; no other exceeds 8
ALPHA_TOO = {"AVIF": 2, "HEIF": 2}  # and more with transparency

_one_large = threading.Lock()

Reduction = Callable[[int, int], int]  # of width and height: the whole factor to reduce by


@contextlib.contextmanager
def room_for(width: int, height: int, max_pixels: int, needed: int) -> Iterator[None]:
    """Decode inside this. needed: bytes that decoding holds at most. Raises ImageError before, if it is too much."""
    check_pixels(width, height, max_pixels)
    if needed > BYTES_A_PIXEL * max_pixels:
        limit = max_pixels * BYTES_A_PIXEL * width * height // needed
        raise ImageError(
            "too_large", f"{width} x {height} pixels; the limit is {limit} in a form that takes so much memory"
        )
    with _one_large if needed > LARGE_BYTES else contextlib.nullcontext():
        yield


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"it has {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels; the limit is {max_pixels}")


def decoder_bytes(image: ImageFile, data: bytes, size: tuple[int, int]) -> int:
    """What decoding an opened image of this size (before any draft) holds at most, its pixels included."""
    pixels = size[0] * size[1]
    form = image.format or ""
    if form == "JPEG":
        coefficients = 2 * len(image.getbands()) * pixels if image.info.get("progressive") else 0
        return max(coefficients, BYTES_A_PIXEL * image.width * image.height)
    if form == "JPEG2000":
        tile, bands, _ = jpeg2000_layout(data)
        power = getattr(image, "_reduce", 0)
        return (5 * bands * min(tile, pixels) + 4 * pixels) >> 2 * power
    transparent = image.mode in ("RGBA", "RGBa", "LA", "La")
    return pixels * (HUNGRY.get(form, BYTES_A_PIXEL) + (ALPHA_TOO.get(form, 0) if transparent else 0))


def jpeg2000_layout(data: bytes) -> tuple[int, int, int]:
    """Pixels of a tile, bands, and how often the size can be halved, from the main header (ISO 15444-1, annex A)."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        raise ImageError("truncated", "it ends in its header")
    word = [int.from_bytes(data[start + at : start + at + 4], "big") for at in range(8, 40, 4)]
    tile, bands, at = word[4] * word[5], int.from_bytes(data[start + 40 : start + 42], "big"), start + 2
    while data[at : at + 1] == b"\xff" and data[at + 1] not in (0x90, 0xD9):
        if data[at + 1] == 0x52 and len(data) > at + 9:
            return tile, bands, data[at + 9]
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return tile, bands, 0


def halvings(factor: int, most: int) -> int:
    """How often a size is halved by a decoder that may do so `most` times, no further than `factor`."""
    return min(most, int(math.log2(factor)))

"""Any kind of pixels as 8-bit sRGB: what palettes, transparency, many bits, many inks and colour profiles become."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from sif_batch.images.colour_profiles import to_srgb

BACKGROUND = (255, 255, 255)  # what shows through transparency
STRIP_PIXELS = 4_000_000  # converted at once, so that no second copy of a large image is ever made
MANY_BITS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """Any mode as RGB, reduced by a whole factor: transparency composited on white, more than 8 bits scaled to 0..255,
    colours converted to sRGB where a profile says what they are."""
    if image.mode == "RGB" and factor == 1 and not image.info.keys() & {"transparency", "icc_profile"}:
        return image
    levels = _levels(image) if image.mode in MANY_BITS else None
    if factor == 1 and image.width * image.height <= STRIP_PIXELS:
        return _convert(image, levels)
    return in_strips(
        image.width,
        image.height,
        factor,
        lambda top, bottom: _convert(image.crop((0, top, image.width, bottom)), levels),
    )


def in_strips(width: int, height: int, factor: int, strip: Callable[[int, int], Image.Image]) -> Image.Image:
    """The RGB image, reduced by a whole factor, that `strip` gives the rows `top` to `bottom` of."""
    rows = max(1, STRIP_PIXELS // width // factor) * factor
    if rows >= height:
        return _reduced(strip(0, height), factor)
    rgb = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    for top in range(0, height, rows):
        rgb.paste(_reduced(strip(top, min(top + rows, height)), factor), (0, top // factor))
    return rgb


def rows_of_strip(width: int) -> int:
    return max(1, STRIP_PIXELS // max(1, width))


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    return image if factor == 1 else image.reduce(factor)


def _convert(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        return _scaled(image, levels)
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return to_srgb(image, profile) if profile else image.convert("RGB")
    rgba = image.convert("RGBA")
    if profile:
        alpha = rgba.getchannel("A")
        opaque = image.convert("LA").getchannel("L") if image.mode in ("L", "LA", "La") else rgba.convert("RGB")
        rgba = to_srgb(opaque, profile).convert("RGBA")
        rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")


def _scaled(image: Image.Image, levels: tuple[float, float]) -> Image.Image:
    values = np.asarray(image)
    shades = to_eight_bits(values, *levels)
    clear = image.info.get("transparency")  # a grey value
    if isinstance(clear, int | float):
        shades[values == clear] = BACKGROUND[0]
    return Image.fromarray(shades).convert("RGB")


def _levels(image: Image.Image) -> tuple[float, float]:
    """`levels_of` an image, strip by strip."""
    rows = rows_of_strip(image.width)
    ends = [
        ends_of(np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))))
        for top in range(0, image.height, rows)
    ]
    return levels_of(min(low for low, _ in ends), max(high for _, high in ends))


def levels_of(low: float, high: float) -> tuple[float, float]:
    """Which values become 0 and 255: of 0..1, 0..255 and 0..65535 the full range, else the values' own."""
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return 0.0, top
    return low, high


def ends_of(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest of (h, w, ...) values, what is not finite taken for 0."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    ends = [(strip.min(), strip.max()) for strip in map(_finite, _row_strips(values))]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def to_eight_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(h, w, ...) values of any type as uint8, `low` as 0 and `high` as 255, of the same shape."""
    # Of floats near the largest the difference and its inverse do not fit: halved they do.
    unit = 255 / (high / 2 - low / 2 or 0.5)
    strips = [
        np.round((_finite(s).astype(np.float64) / 2 - low / 2) * unit).astype(np.uint8) for s in _row_strips(values)
    ]
    return strips[0] if len(strips) == 1 else np.concatenate(strips)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, posinf=0, neginf=0) if values.dtype.kind == "f" else values


def _row_strips(values: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, STRIP_PIXELS // max(1, values[0].size))
    yield from (values[top : top + rows] for top in range(0, len(values), rows))

"""Any kind of pixels as 8-bit sRGB: what palettes, transparency, many bits, many inks and colour profiles become."""

import functools
import io
import math

import numpy as np
from PIL import Image, ImageCms

BACKGROUND = (255, 255, 255)  # what shows through transparency
STRIP_PIXELS = 4_000_000  # converted at once, so that no second copy of a large image is ever made
MANY_BITS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
WITH_PROFILE = ("RGB", "CMYK", "L", "LAB")  # modes that a colour profile is applied to


def to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """Any mode as RGB, reduced by a whole factor: transparency composited on white, more than 8 bits scaled to 0..255,
    colours converted to sRGB where a profile says what they are."""
    if image.mode == "RGB" and factor == 1 and not image.info.keys() & {"transparency", "icc_profile"}:
        return image
    levels = _levels(image) if image.mode in MANY_BITS else None
    rows = max(1, STRIP_PIXELS // image.width // factor) * factor
    if rows >= image.height:
        return _reduced(_convert(image, levels), factor)
    size = (math.ceil(image.width / factor), math.ceil(image.height / factor))
    rgb = Image.new("RGB", size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_reduced(_convert(strip, levels), factor), (0, top // factor))
    return rgb


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    return image if factor == 1 else image.reduce(factor)


def _convert(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        return Image.fromarray(eight_bits(np.asarray(image), *levels)).convert("RGB")
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return _to_srgb(image, profile) if profile else image.convert("RGB")
    rgba = image.convert("RGBA")
    if profile and image.mode not in ("LA", "La"):
        alpha = rgba.getchannel("A")
        rgba = _to_srgb(rgba.convert("RGB"), profile).convert("RGBA")
        rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The image's colours in sRGB; a profile that is damaged or of another kind of image changes nothing."""
    if image.mode not in WITH_PROFILE:
        image = image.convert("RGB")
    transform = _transform(bytes(profile), image.mode)
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is for work in place
    return converted


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """How a profile's colours become sRGB, by relative colorimetry; None: they are sRGB, or nothing can be known.

    lcms2 copies its cache for each call, so one transform serves several threads.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _levels(image: Image.Image) -> tuple[float, float]:
    """`value_levels` of an image, strip by strip."""
    rows = max(1, STRIP_PIXELS // image.width)
    ends = [
        _finite_ends(np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))))
        for top in range(0, image.height, rows)
    ]
    return levels_of(min(low for low, _ in ends), max(high for _, high in ends))


def _finite_ends(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value, what is not finite taken for 0."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, posinf=0, neginf=0)
    return float(values.min()), float(values.max())


def levels_of(low: float, high: float) -> tuple[float, float]:
    """Which values become 0 and 255: of 0..1, 0..255 and 0..65535 the full range, else the values' own."""
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return 0.0, top
    return low, high


def eight_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values of any type as uint8, `low` as 0 and `high` as 255, of the same shape."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    return np.round((values - low) * (255 / (high - low or 1))).astype(np.uint8)

"""Colours in sRGB, as an embedded colour profile says."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

WITH_PROFILE = ("RGB", "CMYK", "L", "LAB")  # modes that a profile is applied to as they are
MAX_PROFILE_BYTES = 4 * 2**20  # real ones take up to 2.7 MB, for presses; 16 of them are held
SAME = 2  # a profile that moves no colour by more levels of 255 is sRGB by another name
GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(18, -1, 3)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """As RGB; a profile that is damaged, or of another kind of image, changes nothing."""
    if image.mode not in WITH_PROFILE:
        image = image.convert("RGB")
    transform = _transform(bytes(profile), image.mode) if len(profile) <= MAX_PROFILE_BYTES else None
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")  # a copy would cost an ordinary JPEG 2 %
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is for work in place
    return converted


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """How a profile's colours become sRGB, by relative colorimetry; None: they are sRGB, or nothing can be known.

    One transform serves several threads: without its one-pixel cache (as here) it holds nothing that changes.
    """
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE,
        )
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """By what it does, not by its name: the sRGB of many photos calls itself "c2"."""
    found = ImageCms.applyTransform(Image.fromarray(GRID), transform)
    return bool(np.abs(np.asarray(found).astype(int) - GRID).max() <= SAME)

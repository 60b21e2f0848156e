"""Thumbnails: an image scaled down, and its bytes as JPEG or PNG."""

import io

from PIL import Image

from sif_batch.images.decode import decode


def thumbnail(data: bytes, side: int) -> Image.Image:
    """The image upright as RGB, its longer side `side` pixels at most. Raises ImageError."""
    pixels = decode(data, at_least=side, side=max).pixels
    pixels.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    return pixels


def jpeg_bytes(image: Image.Image, quality: int = 80) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()


def png_bytes(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()

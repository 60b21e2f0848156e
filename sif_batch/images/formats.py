"""The formats that can be read: Pillow's own, HEIC by pi-heif, DICOM and many-banded TIFF by optional libraries."""

import functools

import pi_heif
from PIL import AvifImagePlugin, Image

# Threads are the caller's: one image each. Nothing but the picture itself is ever looked at.
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

DICOM_EXTENSIONS = {".dcm", ".dicom"}
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@functools.cache
def registered_extensions() -> frozenset[str]:
    """The extensions, in lower case, of files that may be images."""
    return frozenset(Image.registered_extensions()) | DICOM_EXTENSIONS


def is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def is_tiff(data: bytes) -> bool:
    return data[:4] in TIFF_MAGIC

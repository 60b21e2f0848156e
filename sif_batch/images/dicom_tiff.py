"""Images that Pillow does not read: DICOM by pydicom, TIFF of many bands by tifffile. Both are extras."""

import io
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from sif_batch.failures import ImageError
from sif_batch.images.decode_limits import LARGE_BYTES, Reduction, room_for
from sif_batch.images.srgb import ends_of, in_strips, levels_of, rows_of_strip, to_eight_bits

DEFLATED = b"1.2.840.10008.1.2.1.99"  # pydicom would unpack the whole of it before anything of it is known
YCC_BYTES = 40  # a pixel, that pydicom takes to turn YBR into RGB
TIFF_CODECS = {"NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "LZMA", "ZSTD"}  # none unpacks more than asked
TIFF_NUMBERS = (
    "imagewidth", "imagelength", "imagedepth", "samplesperpixel", "planarconfig",
    "rowsperstrip", "tilewidth", "tilelength", "tiledepth",
)  # fmt: skip
# Where in its window a value lies, 0..1 inside: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.
WINDOWS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "LINEAR": lambda x, centre, width: (x - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5,
    "LINEAR_EXACT": lambda x, centre, width: (x - centre) / width + 0.5,
    "SIGMOID": lambda x, centre, width: 1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700))),
}

Read = tuple[Image.Image, int, int, int]  # RGB, perhaps reduced; width and height of the whole; EXIF orientation


def read_dicom(data: bytes, max_pixels: int, reduction: Reduction) -> Read:
    """The first frame as RGB: rescaled, in the file's first window, else over its own range. Raises ImageError."""
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise ImageError("unsupported", "DICOM needs pydicom: pip install 'sif-batch[dicom]'") from error
    if DEFLATED in data[:4096]:
        raise ImageError("unsupported", "DICOM that is deflated as a whole")
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    if not (dataset.get("Rows") and dataset.get("Columns")):
        raise ImageError("unsupported", "the DICOM file holds no pixels")
    width, height, kind = int(dataset.Columns), int(dataset.Rows), str(dataset.get("PhotometricInterpretation"))
    samples = int(dataset.get("SamplesPerPixel") or 1)
    stored = samples * math.ceil(int(dataset.get("BitsAllocated") or 8) / 8)
    taken = YCC_BYTES if kind.startswith("YBR") else 2 * stored + 2
    with room_for(width, height, max_pixels, width * height * taken):
        try:
            values = pixel_array(io.BytesIO(data), index=0)
        except (NotImplementedError, RuntimeError, AttributeError) as error:
            raise ImageError("unsupported", f"DICOM of this kind: {error}"[:500]) from error
        if values.shape[:2] != (height, width):
            raise ImageError("corrupt", f"{values.shape} pixels where {height} x {width} were said to be")
        shade = _shading(values, dataset, kind)
        return in_strips(width, height, reduction(width, height), shade), width, height, 1


def _shading(values: np.ndarray, dataset: Any, kind: str) -> Callable[[int, int], Image.Image]:
    """What makes a strip of rows into an RGB image."""
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    def meant(top: int, bottom: int) -> np.ndarray:
        """The values that the stored ones stand for: (h, w), or (h, w, 3) in colour."""
        if kind == "PALETTE COLOR":
            return apply_color_lut(values[top:bottom], dataset)
        return values[top:bottom] if values.ndim == 3 else apply_modality_lut(values[top:bottom], dataset)

    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    colour = values.ndim == 3 or kind == "PALETTE COLOR"
    window = WINDOWS.get(str(dataset.get("VOILUTFunction") or "LINEAR"), WINDOWS["LINEAR"])
    if colour or centre is None or width is None or width <= 0:
        rows = rows_of_strip(values.shape[1])
        ends = [ends_of(meant(top, top + rows)) for top in range(0, len(values), rows)]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        low, high = levels_of(low, high) if colour else (low, high)

    def shade(top: int, bottom: int) -> Image.Image:
        found = meant(top, bottom)
        if colour or centre is None or width is None or width <= 0:
            grey = to_eight_bits(found, low, high)
        else:
            grey = np.round(np.clip(window(found.astype(np.float64), centre, width), 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(255 - grey if kind == "MONOCHROME1" else grey).convert("RGB")

    return shade


def _first(value: Any) -> float | None:
    """The first of one or several numbers, None for none."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def read_tiff(data: bytes, max_pixels: int, reduction: Reduction) -> Read:
    """The first page as RGB: of three and more bands the first three, else the first, each scaled on its own.

    Raises ImageError.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ImageError("unsupported", "TIFF of this kind needs tifffile: pip install 'sif-batch[tiff]'") from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of odd files stands in their rows
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        for name in TIFF_NUMBERS:
            if not isinstance(getattr(page, name), int):  # tifffile gives as many as the file says
                raise ImageError("corrupt", f"TIFF whose {name} is no number")
        width, height, count = page.imagewidth, page.imagelength, 3 if page.samplesperpixel >= 3 else 1
        if page.dtype is None or page.dtype.kind not in "buif":
            raise ImageError("unsupported", f"TIFF of {page.dtype} values")
        codec = getattr(page.compression, "name", str(page.compression))
        if codec not in TIFF_CODECS:
            raise ImageError("unsupported", f"TIFF of this kind, compressed by {codec}")
        with room_for(width, height, max_pixels, 4 * width * height + 2 * _piece_bytes(page)):
            shades = _shades(page, count)
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                np.subtract(255, shades, out=shades)
            image = in_strips(width, height, reduction(width, height), lambda top, bottom: _rgb(shades[top:bottom]))
        orientation = page.tags.get(274)
        return image, width, height, orientation.value if orientation is not None else 1


def _piece_bytes(page: Any) -> int:
    """Bytes of a strip or tile, unpacked: what is decoded at once."""
    across, down = page.imagewidth, min(page.rowsperstrip or page.imagelength, page.imagelength)
    if page.is_tiled:
        across, down = page.tilewidth, page.tilelength * max(1, page.tiledepth)
    return int(across * down * (page.samplesperpixel if page.planarconfig == 1 else 1) * page.dtype.itemsize)


def _shades(page: Any, count: int) -> np.ndarray:
    """The first bands, (h, w, count) uint8. Large images are decoded twice, piece by piece, rather than held."""
    held = list(_pieces(page, count)) if page.nbytes <= LARGE_BYTES else None
    lows, highs = np.full(count, np.inf), np.full(count, -np.inf)
    for band, _, _, values in held or _pieces(page, count):
        for i in range(values.shape[2]):
            low, high = ends_of(values[..., i])
            lows[band + i], highs[band + i] = min(lows[band + i], low), max(highs[band + i], high)
    shades = np.zeros((page.imagelength, page.imagewidth, count), np.uint8)
    for band, top, left, values in held or _pieces(page, count):
        for i in range(values.shape[2]):
            levels = levels_of(float(lows[band + i]), float(highs[band + i]))
            scaled = to_eight_bits(values[..., i], *levels)
            shades[top : top + len(scaled), left : left + scaled.shape[1], band + i] = scaled
    return shades


def _pieces(page: Any, count: int) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Strips or tiles: first band, top, left, values (h, w, bands), of the first `count` bands."""
    for segment, (band, depth, top, left, _), shape in page.segments(maxworkers=1):
        if band >= count or depth:
            continue
        values = np.zeros(shape, page.dtype) if segment is None else segment  # None: left out, as GDAL does
        yield band, top, left, values[0, : page.imagelength - top, : page.imagewidth - left, : count - band]


def _rgb(shades: np.ndarray) -> Image.Image:
    return Image.fromarray(shades[..., 0] if shades.shape[2] == 1 else shades).convert("RGB")

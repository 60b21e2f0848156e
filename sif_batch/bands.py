"""Images that Pillow does not read: DICOM by pydicom, TIFF of many bands by tifffile. Both are extras."""

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from sif_batch.failures import ImageError
from sif_batch.pixels import eight_bits, levels_of


def read_dicom(data: bytes, max_pixels: int) -> Image.Image:
    """The first frame as RGB: rescaled, in the file's first window, else over its own range. Raises ImageError."""
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_rescale
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise ImageError("unsupported", "DICOM needs pydicom: pip install 'sif-batch[dicom]'") from error
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise ImageError("unsupported", "the DICOM file holds no pixels")
    check_pixels(int(dataset.Columns), int(dataset.Rows), 1, max_pixels)
    try:
        values = pixel_array(dataset, index=0)
    except (NotImplementedError, RuntimeError, AttributeError) as error:
        raise ImageError("unsupported", f"DICOM of this kind: {error}"[:500]) from error
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    if values.ndim == 3:
        return Image.fromarray(eight_bits(values, *levels_of(float(values.min()), float(values.max()))), "RGB")
    grey = _in_window(apply_rescale(values, dataset).astype(np.float64), dataset)
    return Image.fromarray(255 - grey if kind == "MONOCHROME1" else grey).convert("RGB")


def _in_window(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Grey values in the first window, (h, w) uint8: DICOM PS3.3, C.11.2.1.2.1, the linear function."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        return eight_bits(values, float(values.min()), float(values.max()))
    scaled = (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _first(value: Any) -> float | None:
    """The first of one or several numbers, None for none."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def read_tiff(data: bytes, max_pixels: int) -> Image.Image:
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
        bands = page.samplesperpixel
        check_pixels(page.imagewidth, page.imagelength, bands, max_pixels)
        values = page.asarray()
        if "S" in page.axes:
            values = np.moveaxis(values, page.axes.index("S"), -1)
    values = values.reshape(page.imagelength, page.imagewidth, bands)
    if values.dtype.kind not in "buif":
        raise ImageError("unsupported", f"TIFF of {values.dtype} values")
    chosen = [values[..., band] for band in range(3 if bands >= 3 else 1)]
    shades = [eight_bits(band, *levels_of(*_ends(band))) for band in chosen]
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        shades = [255 - shade for shade in shades]
    return Image.fromarray(np.dstack(shades * 3 if len(shades) == 1 else shades))


def _ends(values: np.ndarray) -> tuple[float, float]:
    finite = np.nan_to_num(values, posinf=0, neginf=0) if values.dtype.kind == "f" else values
    return float(finite.min()), float(finite.max())


def check_pixels(width: int, height: int, bands: int, max_pixels: int) -> None:
    """Raise ImageError for an image of too many pixels; more than four bands count for as many more."""
    if width * height * max(1, bands / 4) > max_pixels:
        of_bands = f" of {bands} bands" if bands > 4 else ""
        raise ImageError("too_large", f"{width} x {height} pixels{of_bands}; the limit is {max_pixels}")

"""DICOM and TIFF of many bands against their own numbers."""

import builtins
import io
import struct
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from made_images import dicom_bytes
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)

from sif_batch.failures import ImageError
from sif_batch.images.decode import decode

VALUES = np.arange(12 * 10, dtype=np.int16).reshape(12, 10) * 20 - 1000


def decoded(data: bytes, **options: int) -> np.ndarray:
    image = decode(data, **options)
    assert image.pixels.size == (image.width, image.height)
    return np.asarray(image.pixels).astype(int)


def kind_of(data: bytes, **options: int) -> tuple[str, str]:
    with pytest.raises(ImageError) as raised:
        decode(data, **options)
    return raised.value.kind, str(raised.value)


def window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """DICOM PS3.3 C.11.2.1.2.1, one value after the other."""
    out = np.empty(values.shape)
    for place, x in np.ndenumerate(values):
        if x <= centre - 0.5 - (width - 1) / 2:
            out[place] = 0
        elif x > centre - 0.5 + (width - 1) / 2:
            out[place] = 255
        else:
            out[place] = ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return out


@pytest.mark.parametrize("inverted", [False, True])
def test_dicom_is_rescaled_and_seen_through_its_first_window(inverted: bool) -> None:
    tags = {"WindowCenter": [40, 500], "WindowWidth": [400, 900], "RescaleSlope": 0.5, "RescaleIntercept": -24}
    found = decoded(dicom_bytes(VALUES, "MONOCHROME1" if inverted else "MONOCHROME2", **tags))
    expected = window(VALUES * 0.5 - 24, 40, 400)
    expected = 255 - expected if inverted else expected
    assert np.abs(found - expected[..., None]).max() <= 0.51


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_dicom_windows_of_other_shapes(function: str) -> None:
    """PS3.3, C.11.2.1.3."""
    found = decoded(dicom_bytes(VALUES, WindowCenter=100, WindowWidth=300, VOILUTFunction=function))
    exact = np.clip((VALUES - 100) / 300 + 0.5, 0, 1) * 255
    sigmoid = 255 / (1 + np.exp(-4 * (VALUES - 100.0) / 300))
    assert np.abs(found - (exact if function == "LINEAR_EXACT" else sigmoid)[..., None]).max() <= 0.51


def test_a_dicom_palette_is_looked_up() -> None:
    palette = np.random.default_rng(0).integers(0, 65536, (3, 120)).astype("<u2")
    palette[:, 0] = 65535
    tags: dict[str, Any] = {}
    for colour, row in zip(("Red", "Green", "Blue"), palette, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [120, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = row.tobytes()
    places = np.arange(120, dtype=np.uint8).reshape(12, 10)
    found = decoded(dicom_bytes(places, "PALETTE COLOR", **tags))
    assert np.abs(found - palette.T[places] * (255 / 65535)).max() <= 0.51


@pytest.mark.parametrize("kind", ["MONOCHROME2", "YBR_FULL_422"])
def test_dicom_holding_jpeg(kind: str) -> None:
    values = np.linspace(0, 255, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)
    image = Image.fromarray(values if kind != "MONOCHROME2" else values[..., 0])
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=95)
    data = recoded(dicom_bytes(np.asarray(image), kind if kind == "MONOCHROME2" else "RGB"), image, kind, sink)
    with Image.open(sink) as reference:
        assert np.abs(decoded(data) - np.asarray(reference.convert("RGB")).astype(int)).max() <= 2


def recoded(data: bytes, image: Image.Image, kind: str, frame: io.BytesIO, syntax: str = JPEGBaseline8Bit) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = kind, len(image.getbands())
    if len(image.getbands()) == 3:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = encapsulate([frame.getvalue()])
    dataset["PixelData"].VR = "OB"
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, dataset)
    return sink.getvalue()


def test_dicom_in_a_form_that_is_not_read() -> None:
    image = Image.fromarray(np.zeros((4, 4), np.uint8))
    data = recoded(
        dicom_bytes(np.asarray(image)), image, "MONOCHROME2", io.BytesIO(b"\xff\xd8\xff\xd9"), JPEGLSLossless
    )
    assert kind_of(data)[0] == "unsupported"
    deflated = pydicom.dcmread(io.BytesIO(dicom_bytes(VALUES)))
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, deflated)
    assert kind_of(sink.getvalue()) == ("unsupported", "DICOM that is deflated as a whole")


def test_without_a_window_dicom_shows_its_whole_range() -> None:
    found = decoded(dicom_bytes(VALUES))
    expected = (VALUES - VALUES.min()) / (VALUES.max() - VALUES.min()) * 255
    assert np.abs(found - expected[..., None]).max() <= 0.51


def test_of_dicom_frames_the_first_is_taken() -> None:
    frames = np.stack([VALUES, VALUES[::-1]])
    assert np.array_equal(decoded(dicom_bytes(frames)), decoded(dicom_bytes(VALUES)))


def test_dicom_in_colour() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    assert np.array_equal(decoded(dicom_bytes(colours, "RGB")), colours)
    ycc = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    assert np.abs(decoded(dicom_bytes(ycc, "YBR_FULL")) - colours).max() <= 4


def test_dicom_that_cannot_be_used() -> None:
    data = dicom_bytes(VALUES)
    assert kind_of(data, max_pixels=100)[0] == "too_large"
    empty = pydicom.dcmread(io.BytesIO(data))
    del empty.PixelData
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, empty)
    assert kind_of(sink.getvalue())[0] == "unsupported" and "Pixel Data" in kind_of(sink.getvalue())[1]
    empty.Rows = None
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, empty)
    assert kind_of(sink.getvalue()) == ("unsupported", "the DICOM file holds no pixels")
    assert kind_of(data[:-50])[0] in ("corrupt", "truncated")
    assert kind_of(data[:140])[0] in ("corrupt", "truncated", "unsupported")


def tiff_bytes(values: np.ndarray, **options: Any) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, values, **options)
    return sink.getvalue()


BANDS = np.random.default_rng(0).integers(0, 10_000, (20, 30, 13)).astype(np.uint16)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_of_many_bands_the_first_three_are_shown(planar: str, compression: str | None) -> None:
    values = BANDS if planar == "contig" else np.moveaxis(BANDS, -1, 0)
    data = tiff_bytes(values, photometric="minisblack", planarconfig=planar, compression=compression)
    expected = np.round(BANDS[..., :3] * (255 / 65535))
    assert np.array_equal(decoded(data), expected)


def test_bands_of_floats_are_scaled_each_on_its_own() -> None:
    values = np.dstack(
        [np.linspace(low, high, 600).reshape(20, 30) for low, high in ((0, 1), (-5, 5), (0, 9e4), (7, 8))]
    )
    found = decoded(tiff_bytes(values.astype(np.float32), photometric="minisblack", planarconfig="contig"))
    for band in range(3):
        own = values[..., band]
        expected = (own - own.min()) / (own.max() - own.min()) * 255
        assert np.abs(found[..., band] - expected).max() <= 0.51


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_large_tiff_is_decoded_piece_by_piece_to_the_same_pixels(
    tile: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = BANDS[..., :5].astype(np.float64)
    data = tiff_bytes(values, photometric="minisblack", planarconfig="contig", tile=tile, rowsperstrip=3)
    whole = decoded(data)
    monkeypatch.setattr("sif_batch.images.dicom_tiff.LARGE_BYTES", 0)
    monkeypatch.setattr("sif_batch.images.srgb.STRIP_PIXELS", 50)
    assert np.array_equal(decoded(data), whole)


def test_an_orientation_turns_bands_too() -> None:
    data = tiff_bytes(BANDS, photometric="minisblack", planarconfig="contig", extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(decoded(data), np.rot90(np.round(BANDS[..., :3] * (255 / 65535)), -1))


def test_tiff_with_several_widths_is_corrupt() -> None:
    """A width is one number. Multiplied as the several that the file gives it would take gigabytes."""
    data = bytearray(tiff_bytes(BANDS, photometric="minisblack", planarconfig="contig"))
    entry = data.index(struct.pack("<HHI", 256, 4, 1))
    data[entry + 2 : entry + 12] = struct.pack("<HII", 3, 33, 8)
    assert kind_of(bytes(data)) == ("corrupt", "TIFF whose imagewidth is no number")


def test_tiff_in_a_codec_that_is_not_read() -> None:
    data = tiff_bytes(BANDS, photometric="minisblack", planarconfig="contig", compression="jpeg2000")
    assert kind_of(data)[0] == "unsupported"


def test_of_two_bands_the_first_is_grey() -> None:
    values = BANDS[..., :2].astype(np.float32)
    found = decoded(tiff_bytes(values, photometric="minisblack", planarconfig="contig"))
    assert np.array_equal(found, np.dstack([np.round(values[..., 0] * (255 / 65535))] * 3))


def test_tiff_whose_strips_are_too_large_or_of_complex_numbers() -> None:
    """A strip is decoded whole: 600 pixels of 13 bands of 2 bytes, held twice, and 4 bytes a pixel of the picture."""
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    assert kind_of(tiff_bytes(BANDS, **options), max_pixels=4199)[0] == "too_large"
    assert decoded(tiff_bytes(BANDS, **options), max_pixels=4200).shape == (20, 30, 3)
    assert decoded(tiff_bytes(BANDS, rowsperstrip=1, **options), max_pixels=600).shape == (20, 30, 3)
    assert kind_of(tiff_bytes(BANDS, rowsperstrip=1, **options), max_pixels=599)[0] == "too_large"
    assert kind_of(tiff_bytes(BANDS[..., 0].astype(np.complex64)))[0] == "unsupported"


@pytest.mark.parametrize(("library", "extra"), [("pydicom", "dicom"), ("tifffile", "tiff")])
def test_without_the_extra_the_row_says_what_to_install(
    library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (
        dicom_bytes(VALUES) if extra == "dicom" else tiff_bytes(BANDS, photometric="minisblack", planarconfig="contig")
    )
    honest = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return honest(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    kind, message = kind_of(data)
    assert kind == "unsupported" and f"pip install 'sif-batch[{extra}]'" in message

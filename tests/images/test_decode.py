import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from synthetic import checked

from sif_batch.failures import PERMANENT, TRANSIENT, ImageError
from sif_batch.images.decode import decode, orientation_of, to_rgb, upright_rgb

# 6 x 4 pixels, no two alike, so that every turn of it is another image.
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
ORIENTATION = 0x0112
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what a viewer shows, by the EXIF standard
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(sink, form, **options)
    return sink.getvalue()


def kind_of(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as raised:
        decode(data, **options)
    assert str(raised.value)
    return raised.value.kind


def test_the_kinds_of_failure_are_a_short_closed_list() -> None:
    assert not set(PERMANENT) & set(TRANSIENT) and len(PERMANENT | TRANSIENT) < 20


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_pixels_are_those_that_pillow_reads(form: str) -> None:
    data = encoded(PIXELS, form, **({"lossless": True} if form == "WEBP" else {}))
    decoded = decode(data)
    assert (decoded.width, decoded.height) == (6, 4)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(decoded.pixels), np.asarray(image.convert("RGB")))


def test_real_photos_are_decoded_as_pillow_does(photos: Callable[[int], Path]) -> None:
    for photo in sorted(photos(5).rglob("*.jpg")):
        decoded = decode(photo.read_bytes())
        with Image.open(photo) as image:
            assert np.array_equal(np.asarray(decoded.pixels), np.asarray(image.convert("RGB")))
            assert (decoded.width, decoded.height) == image.size


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(PIXELS, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    decoded = decode(data)
    expected = TURNED[orientation](PIXELS)
    assert np.array_equal(np.asarray(decoded.pixels), expected)
    assert (decoded.width, decoded.height) == (expected.shape[1], expected.shape[0])
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(decoded.pixels), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_jpeg_is_honoured_when_it_is_reduced(orientation: int) -> None:
    smooth = np.linspace(0, 255, 200 * 300 * 3).reshape(200, 300, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    decoded = decode(encoded(smooth, "JPEG", exif=exif), at_least=50)
    expected = TURNED[orientation](smooth)
    assert (decoded.width, decoded.height) == (expected.shape[1], expected.shape[0])
    assert decoded.pixels.size == (decoded.width // 4, decoded.height // 4)
    shrunk = np.asarray(Image.fromarray(expected).reduce(4)).astype(int)
    assert np.abs(np.asarray(decoded.pixels).astype(int) - shrunk).mean() < 6


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, count, 4 bytes of value)."""
    packed = b"".join(struct.pack("<HHI", tag, form, count) + value for tag, form, count, value in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


def test_exif_that_cannot_be_read_turns_nothing() -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        data = encoded(PIXELS, form, exif=b"Exif\0\0garbage", **({"lossless": True} if form == "WEBP" else {}))
        decoded = decode(data)
        assert decoded.pixels.size == (6, 4)
        assert form == "JPEG" or np.array_equal(np.asarray(decoded.pixels), PIXELS)


def test_exif_that_cannot_be_written_again_turns_the_image_all_the_same() -> None:
    six = (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))
    date_as_float = (0x0132, 11, 1, struct.pack("<f", 1.5))
    data = encoded(PIXELS, "PNG", exif=exif_of(six, date_as_float))
    with Image.open(io.BytesIO(data)) as image, pytest.raises(AttributeError):
        ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(decode(data).pixels), TURNED[6](PIXELS))


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_does_not_exist_turns_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    assert np.array_equal(np.asarray(decode(encoded(PIXELS, exif=exif)).pixels), PIXELS)


def test_a_pil_image_is_turned_as_its_file_is() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with Image.open(io.BytesIO(encoded(PIXELS, exif=exif))) as image:
        assert orientation_of(image) == 6
        assert np.array_equal(np.asarray(upright_rgb(image)), TURNED[6](PIXELS))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGB"])
def test_modes_without_transparency_become_rgb_as_in_pillow(mode: str) -> None:
    image = Image.fromarray(PIXELS)
    image = image.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (6, 4), (50, 20, 200))
    assert to_rgb(image).mode == "RGB"
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_transparency_shows_white() -> None:
    alpha = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)
    rgba = np.dstack([PIXELS, alpha])
    share = alpha[..., None] / 255
    expected = PIXELS * share + 255 * (1 - share)
    found = np.asarray(decode(encoded(rgba)).pixels).astype(float)
    assert np.abs(found - expected).max() <= 1
    grey = Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.fromarray(alpha)])
    found = np.asarray(decode(encoded(grey)).pixels).astype(float)
    assert np.abs(found - (PIXELS[..., :1] * share + 255 * (1 - share))).max() <= 1


def test_a_transparent_colour_shows_white() -> None:
    grey = Image.fromarray(np.array([[0, 100], [200, 100]], np.uint8))
    assert np.asarray(decode(encoded(grey, transparency=100)).pixels)[..., 0].tolist() == [[0, 255], [200, 255]]
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 10, 10, 20, 20, 20, 30, 30, 30])
    assert np.asarray(decode(encoded(palette, transparency=1)).pixels)[..., 0].tolist() == [[10, 255], [30, 255]]
    colour = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    found = np.asarray(decode(encoded(colour, transparency=(4, 5, 6))).pixels)
    assert found.tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535], [257 * 100, 257]], np.uint16), [[0, 255], [100, 1]]),
        (np.array([[0, 300]], np.uint16), [[0, 1]]),
        (np.array([[0.0, 1.0, 0.5]], np.float32), [[0, 255, 128]]),
        (np.array([[0.0, 255.0, 100.0]], np.float32), [[0, 255, 100]]),
        (np.array([[-1.0, 1.0, 0.0]], np.float32), [[0, 255, 128]]),
        (np.array([[-(2**20), 2**20]], np.int32), [[0, 255]]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [[0, 0, 255]]),
        (np.full((1, 2), 70_000, np.int32), [[0, 0]]),
        (np.full((1, 2), -5.0, np.float32), [[0, 0]]),
        (np.zeros((1, 2), np.uint16), [[0, 0]]),
    ],
)
def test_many_bits_are_scaled_to_eight(values: np.ndarray, expected: list[list[int]]) -> None:
    decoded = decode(encoded(values, "TIFF")).pixels
    assert decoded.mode == "RGB"
    assert np.asarray(decoded)[..., 0].tolist() == expected and np.ptp(np.asarray(decoded), axis=2).max() == 0


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_taken(form: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(decode(data).pixels)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("size", "at_least", "reduced"),
    [
        ((800, 600), 224, (400, 300)),
        ((800, 600), 75, (100, 75)),
        ((800, 600), 76, (200, 150)),
        ((800, 600), 601, (800, 600)),
        ((300, 200), 224, (300, 200)),
        ((4000, 100), 50, (2000, 50)),
    ],
)
def test_a_jpeg_is_reduced_while_its_shorter_side_stays_long_enough(
    size: tuple[int, int], at_least: int, reduced: tuple[int, int]
) -> None:
    decoded = decode(encoded(Image.new("RGB", size), "JPEG"), at_least=at_least)
    assert decoded.pixels.size == reduced and (decoded.width, decoded.height) == size


def test_by_the_longer_side_a_jpeg_is_reduced_further() -> None:
    data = encoded(Image.new("RGB", (4000, 160)), "JPEG")
    assert decode(data, at_least=500, side=max).pixels.size == (500, 20)
    assert decode(data, at_least=501, side=max).pixels.size == (1000, 40)


def test_only_a_jpeg_is_reduced() -> None:
    assert decode(encoded(Image.new("RGB", (800, 600))), at_least=10).pixels.size == (800, 600)


def test_what_is_no_image_is_not_an_image() -> None:
    for data in (b"", b"hello", b"\0" * 1000, b"<html></html>", b"%PDF-1.7", bytes(range(256)) * 10):
        assert kind_of(data) == "not_an_image"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM"])
def test_an_image_cut_short_is_never_taken_for_whole(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(noise, form)
    kinds = {kind_of(data[: len(data) * share // 10]) for share in range(1, 10)}
    assert kinds <= {"truncated", "corrupt", "not_an_image"}
    if form in ("JPEG", "PNG", "BMP"):
        assert "truncated" in kinds


def test_too_many_pixels_are_too_large() -> None:
    data = encoded(Image.new("1", (200, 100)))
    assert decode(data, max_pixels=20_000).width == 200
    assert kind_of(data, max_pixels=19_999) == "too_large"


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = bytearray(encoded(Image.new("1", (8, 8))))
    bomb[16:24] = struct.pack(">II", 100_000, 100_000)  # a width and height that the header claims
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    assert kind_of(bytes(bomb)) == "too_large"


def test_a_palette_with_transparency_is_converted_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        palette = Image.fromarray(PIXELS).convert("P")
        decode(encoded(palette, transparency=bytes(range(256))))


@settings(checked, max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damaged_bytes_give_an_image_or_a_reason(form: str, data: st.DataObject) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    whole = bytearray(encoded(noise, form))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(whole), max_pixels=10_000)
    except ImageError as error:
        assert error.kind in PERMANENT and str(error)
    else:
        assert decoded.pixels.mode == "RGB"


FRAMES = """
import sys
from sif_batch.images.decode import decode
with open(sys.argv[1], "rb") as file:
    data = file.read()
decode(data)
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_frames_that_follow_cost_no_memory(form: str, tmp_path: Path) -> None:
    """300 frames of 600 x 600 in RGB would be 324 MB."""
    frames = [Image.new("RGB", (600, 600), (i % 256, i // 2, 7)) for i in range(300)]
    peaks = []
    for count in (1, 300):
        path = tmp_path / f"{count}.image"
        options = {"compression": "tiff_deflate"} if form == "TIFF" else {}
        frames[0].save(path, form, save_all=True, append_images=frames[1:count], **options)
        done = subprocess.run([sys.executable, "-c", FRAMES, path], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 40

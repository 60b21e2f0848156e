"""Every kind of pixels against an independent calculation."""

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from benchmarks.heic import heic
from sif_batch.images import srgb
from sif_batch.images.colour_profiles import MAX_PROFILE_BYTES
from sif_batch.images.decode import decode
from sif_batch.images.srgb import to_rgb

RANDOM = np.random.default_rng(1)
COLOURS = RANDOM.integers(0, 256, (40, 30, 3)).astype(np.uint8)
ALPHA = RANDOM.integers(0, 256, (40, 30)).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def decoded(data: bytes, at_least: int | None = None) -> np.ndarray:
    return np.asarray(decode(data, at_least).pixels).astype(int)


# Colour profiles. Adobe RGB (1998) is a gamma of 2.2 (563/256) and these primaries, D50-adapted (its specification).

ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def s15(value: float) -> bytes:
    return round(value * 65536).to_bytes(4, "big", signed=True)


WHITE = s15(0.9642) + s15(1) + s15(0.8249)


def profile_of(matrix: np.ndarray, curve: float | bytes, name: str) -> bytes:
    """A profile, version 2, as ICC.1:2001 lays it out: a gamma or a curve, of three primaries, or of grey."""
    if isinstance(curve, float):
        curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(curve * 256).to_bytes(2, "big") + bytes(2)
    tags = {f"{letter}TRC".encode(): curve for letter in ("rgb" if matrix.size else "k")}
    for letter, column in zip("rgb", matrix.T, strict=False):
        tags[f"{letter}XYZ".encode()] = b"XYZ " + bytes(4) + b"".join(s15(value) for value in column)
    return icc(b"mntrRGB XYZ " if matrix.size else b"mntrGRAYXYZ ", tags, name)


def icc(spaces: bytes, tags: dict[bytes, bytes], name: str) -> bytes:
    text = name.encode() + b"\0"
    desc = b"desc" + bytes(4) + len(text).to_bytes(4, "big") + text + bytes(78)
    tags = {b"desc": desc, b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + WHITE
    table, body, offset = len(tags).to_bytes(4, "big"), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + (offset + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data + bytes(-len(data) % 4)
    size = (offset + len(body)).to_bytes(4, "big")
    head = size + bytes(4) + b"\x02\x10\0\0" + spaces + bytes(12) + b"acsp" + bytes(28) + WHITE
    return head + bytes(128 - len(head)) + table + body


CORNERS = np.array([[[255 * (i >> 3 - ink & 1) for ink in range(4)] for i in range(16)]], np.uint8)


def ink_profile(lab: np.ndarray) -> bytes:
    """A press with these Lab colours, (16, 3), for each set of full inks, the first ink slowest (lut8Type)."""
    ramp = bytes(range(256))
    table = np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], axis=-1).round().astype(np.uint8).tobytes()
    unit = b"".join(s15(float(i == j)) for i in range(3) for j in range(3))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + ramp * 4 + table + ramp * 3
    return icc(b"prtrCMYKLab ", {b"A2B0": lut, b"A2B1": lut}, "a press")


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """CIE Lab of D50 to sRGB, 0..255."""
    f = (lab[:, 0] + 16) / 116
    f = np.stack([f + lab[:, 1] / 500, f, f - lab[:, 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    linear = np.clip(xyz @ np.linalg.inv(SRGB).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


ADOBE_RGB = profile_of(ADOBE, 563 / 256, "Adobe RGB (1998)")


def adobe_to_srgb(values: np.ndarray) -> np.ndarray:
    linear = (values / 255) ** (563 / 256) @ ADOBE.T @ np.linalg.inv(SRGB).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_colours_with_a_profile_become_srgb(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    found = decoded(encoded(Image.fromarray(COLOURS), form, icc_profile=ADOBE_RGB, **options))
    assert np.abs(found - adobe_to_srgb(COLOURS)).max() <= 4  # lcms works with 8-bit tables
    assert np.abs(found - COLOURS).max() > 20


def test_a_jpeg_with_a_profile_becomes_srgb_when_it_is_reduced_too() -> None:
    smooth = np.linspace(0, 255, 400 * 400 * 3).reshape(400, 400, 3).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "JPEG", icc_profile=ADOBE_RGB, quality=95)
    plain = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    for at_least in (None, 100):
        expected = adobe_to_srgb(decoded(plain, at_least))
        assert np.abs(decoded(data, at_least) - expected).max() <= 4


def test_transparency_and_a_profile_together() -> None:
    image = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    share = ALPHA[..., None] / 255
    expected = adobe_to_srgb(COLOURS) * share + 255 * (1 - share)
    assert np.abs(decoded(encoded(image, "PNG", icc_profile=ADOBE_RGB)) - expected).max() <= 5


def test_an_srgb_or_damaged_profile_changes_nothing() -> None:
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (plain, b"no profile", ADOBE_RGB[:200], lab):
        assert np.array_equal(decoded(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=profile)), COLOURS)
    grey = Image.fromarray(ALPHA)
    found = decoded(encoded(grey, "PNG", icc_profile=ADOBE_RGB))  # a profile of three colours on one
    assert np.array_equal(found, np.dstack([ALPHA] * 3))


def test_a_palette_with_a_profile() -> None:
    palette = Image.fromarray(COLOURS).quantize(16)
    expected = adobe_to_srgb(np.asarray(palette.convert("RGB")))
    assert np.abs(decoded(encoded(palette, "PNG", icc_profile=ADOBE_RGB)) - expected).max() <= 4


def test_srgb_is_told_by_what_a_profile_does_not_by_its_name() -> None:
    grey_balance = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    curve = b"para" + bytes(4) + b"\0\3\0\0" + b"".join(map(s15, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    c2 = profile_of(grey_balance, curve, "c2")
    assert np.array_equal(decoded(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=c2)), COLOURS)
    lie = profile_of(ADOBE, 563 / 256, "sRGB IEC61966-2.1")
    found = decoded(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=lie))
    assert np.abs(found - adobe_to_srgb(COLOURS)).max() <= 4


@pytest.mark.parametrize("transparent", [False, True])
def test_grey_with_a_profile(transparent: bool) -> None:
    """Linear light: 55 of 255 is a reflectance of 21.6 %, which sRGB writes as 128."""
    profile = profile_of(np.zeros((0, 0)), 1.0, "linear grey")
    grey = Image.fromarray(np.array([[0, 55, 255]], np.uint8))
    if transparent:
        grey.putalpha(255)
    assert np.abs(decoded(encoded(grey, "PNG", icc_profile=profile)) - [[[0], [128], [255]]]).max() <= 1


def test_inks_with_a_profile() -> None:
    """A table of the sixteen full inks, each with its own Lab colour."""
    lab = np.stack([RANDOM.integers(30, 90, 16), RANDOM.integers(-30, 30, 16), RANDOM.integers(-30, 30, 16)], axis=-1)
    lab[0] = (100, 0, 0)  # lcms makes paper white
    found = decoded(encoded(Image.fromarray(CORNERS, "CMYK"), "TIFF", icc_profile=ink_profile(lab)))
    assert np.abs(found[0] - lab_to_srgb(lab)).max() <= 4


def test_a_profile_in_several_threads_gives_what_it_gives_in_one() -> None:
    images = [encoded(Image.fromarray(np.roll(COLOURS, i, axis=0)), "PNG", icc_profile=ADOBE_RGB) for i in range(200)]
    expected = [decoded(data) for data in images]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(np.array_equal, pool.map(decoded, images), expected))


def test_a_profile_too_large_to_be_one_changes_nothing() -> None:
    large = ADOBE_RGB + bytes(MAX_PROFILE_BYTES)
    assert np.array_equal(decoded(encoded(Image.fromarray(COLOURS), "TIFF", icc_profile=large)), COLOURS)


# Inks and other spaces.


def test_cmyk_is_what_its_inks_leave() -> None:
    inks = RANDOM.integers(0, 256, (40, 30, 4)).astype(np.uint8)
    found = decoded(encoded(Image.fromarray(inks, "CMYK"), "TIFF"))
    light = 255 - inks.astype(float)
    assert np.abs(found - light[..., :3] * light[..., 3:] / 255).max() <= 1


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    """Photoshop and Pillow write the inks of a JPEG inverted, with an Adobe marker."""
    inks = np.zeros((64, 64, 4), np.uint8)
    inks[:, :32] = (0, 255, 255, 0)  # red
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    found = decoded(data)
    assert np.abs(found[32, 8] - (255, 0, 0)).max() < 12 and np.abs(found[32, 56] - 255).max() < 12


def test_lab_is_converted_by_its_meaning() -> None:
    # L* 53.3, a* 81, b* 70, the red of sRGB: L* in 255ths of 100, a* and b* as signed bytes.
    image = Image.frombytes("LAB", (4, 4), bytes([136, 81, 70]) * 16)
    found = np.asarray(to_rgb(image)).astype(int)
    assert np.abs(found - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "LA", "RGBA"])
def test_each_way_to_be_transparent_shows_white(mode: str) -> None:
    image = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    if mode in ("LA", "La"):
        image = image.convert("LA")
    image = image.convert("RGBa" if mode == "RGBa" else mode) if mode not in ("PA", "La") else image
    if mode == "PA":
        image = image.convert("RGB").quantize(8).convert("PA")
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    expected = rgba[..., :3] * share + 255 * (1 - share)
    assert np.abs(np.asarray(to_rgb(image)) - expected).max() <= 1


def test_sixteen_bits_a_colour_are_read_by_their_high_bytes() -> None:
    """As Pillow reads them: 65535 becomes 255, nothing is clipped."""
    wide = COLOURS.astype(np.uint16) * 257
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide.reshape(40, -1))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30, 40, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert np.array_equal(decoded(data), COLOURS)


def test_a_transparent_grey_of_sixteen_bits_shows_white() -> None:
    values = np.array([[0, 1000, 65535, 1000]], np.uint16)
    found = decoded(encoded(Image.fromarray(values), "PNG", transparency=1000))
    assert found[0, :, 0].tolist() == [0, 255, 255, 255]


# Formats.


@pytest.mark.parametrize(("form", "feature"), [("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("WEBP", "webp")])
def test_newer_formats_are_read(form: str, feature: str) -> None:
    assert features.check(feature)
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    options = {"irreversible": False} if form == "JPEG2000" else {"quality": 95}
    found = decoded(encoded(Image.fromarray(smooth), form, **options))
    assert np.abs(found - smooth).mean() < 3


LUMA = RANDOM.integers(0, 256, (32, 64)).astype(np.uint8)
ORIENTED = b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)


def test_heic_holds_the_very_pixels_that_were_put_in() -> None:
    assert np.array_equal(decoded(heic([LUMA])), np.dstack([LUMA] * 3))


@pytest.mark.parametrize(("y", "cb", "cr"), [(120, 90, 170), (128, 128, 128), (76, 85, 255), (200, 150, 100)])
def test_heic_in_colour(y: int, cb: int, cr: int) -> None:
    expected = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    planes = [np.full(shape, value, np.uint8) for shape, value in (((32, 32), y), ((16, 16), cb), ((16, 16), cr))]
    assert np.abs(decoded(heic(planes)) - np.clip(expected, 0, 255)).max() <= 1  # BT.601


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_heic_is_turned_once_by_its_own_properties_and_not_by_exif(turns: int, mirror: int | None) -> None:
    expected = np.rot90(LUMA, turns)
    expected = expected if mirror is None else expected[::-1] if mirror == 0 else expected[:, ::-1]
    image = decode(heic([LUMA], turns=turns, mirror=mirror, exif=ORIENTED))
    assert np.array_equal(np.asarray(image.pixels)[..., 0], expected)
    assert (image.width, image.height) == expected.shape[::-1]


def test_of_heic_images_the_primary_one_is_taken() -> None:
    assert np.array_equal(decoded(heic([LUMA], others=2))[..., 0], LUMA)
    assert np.array_equal(decoded(heic([LUMA], tiles=(2, 3), others=1))[..., 0], np.tile(LUMA, (2, 3)))


def test_heic_with_a_profile_becomes_srgb() -> None:
    planes = [np.full(shape, value, np.uint8) for shape, value in (((32, 32), 120), ((16, 16), 90), ((16, 16), 170))]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    expected = adobe_to_srgb(decoded(heic(planes, profile=profile)))
    assert np.abs(decoded(heic(planes, profile=ADOBE_RGB)) - expected).max() <= 4


def test_a_real_heic(test_data: Callable[[str], Path]) -> None:
    found = decoded((test_data("odd-files") / "pillow/Tests/images/avif/hopper.heif").read_bytes())
    reference = decoded((test_data("odd-files") / "pillow/Tests/images/hopper.png").read_bytes())
    assert found.shape == reference.shape and np.abs(found - reference).mean() < 8


# Large images are converted in strips.


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA", "CMYK", "F", "I;16", "I", "RGB"])
@pytest.mark.parametrize("factor", [1, 3])
def test_strips_change_no_pixel(mode: str, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.dstack([COLOURS, ALPHA])).convert(mode if mode not in ("I;16",) else "I")
    if mode == "I;16":
        image = Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 200)
    if mode == "RGB":
        image.info["icc_profile"] = ADOBE_RGB
    whole = to_rgb(image, factor)
    monkeypatch.setattr(srgb, "STRIP_PIXELS", 30 * 3)
    assert np.array_equal(np.asarray(to_rgb(image, factor)), np.asarray(whole))
    assert whole.size == (30 // factor, -(-40 // factor))


def test_a_large_image_is_reduced_and_keeps_its_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.linspace(0, 255, 600 * 400 * 3).reshape(400, 600, 3).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "PNG")
    monkeypatch.setattr("sif_batch.images.decode.LARGE_PIXELS", 10_000)
    found = decode(data, at_least=100)
    assert (found.width, found.height, found.pixels.size) == (600, 400, (150, 100))
    expected = smooth.reshape(100, 4, 150, 4, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(found.pixels) - expected).max() <= 1
    assert decode(data).pixels.size == (600, 400)

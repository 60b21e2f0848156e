"""What decoding may take: refused before, or one large image after the other."""

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from made_images import dicom_bytes
from paths import REPOSITORY
from PIL import Image

from benchmarks.heic import heic
from sif_batch.failures import ImageError
from sif_batch.images.decode import decode
from sif_batch.images.decode_limits import BYTES_A_PIXEL, LARGE_BYTES, halvings, jpeg2000_layout, room_for

SIDE = 5000  # 25 million pixels


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def kind_of(data: bytes, max_pixels: int, at_least: int | None = None) -> str:
    with pytest.raises(ImageError) as raised:
        decode(data, at_least, max_pixels=max_pixels)
    return raised.value.kind


def test_of_large_images_one_waits_for_the_other() -> None:
    inside, most, lock, enough = 0, 0, threading.Lock(), threading.Barrier(4)

    def work(needed: int) -> None:
        nonlocal inside, most
        enough.wait()
        for _ in range(200):
            with room_for(1, 1, 10**9, needed):
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work, args=[LARGE_BYTES + 1]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_lock_is_free_again_after_a_failure() -> None:
    for _ in range(2):
        with pytest.raises(KeyError), room_for(1, 1, 10**9, LARGE_BYTES + 1):
            raise KeyError


@pytest.mark.parametrize(
    ("form", "mode", "share"),
    [("WEBP", "RGB", 2), ("AVIF", "RGB", 9 / 8), ("AVIF", "RGBA", 11 / 8), ("PNG", "RGBA", 1)],
)
def test_formats_whose_decoders_need_more_have_a_lower_limit(form: str, mode: str, share: float) -> None:
    data = encoded(Image.new(mode, (80, 60)), form)
    least = int(np.ceil(80 * 60 * share))
    assert decode(data, max_pixels=least).width == 80
    assert kind_of(data, least - 1) == "too_large"


def test_a_jpeg_2000_is_halved_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.linspace(0, 255, 256 * 512 * 3).reshape(256, 512, 3).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "JPEG2000", num_resolutions=3)
    assert jpeg2000_layout(data) == (256 * 512, 3, 2)
    tiled = encoded(Image.fromarray(smooth), "JPEG2000", tile_size=(64, 128))
    assert jpeg2000_layout(tiled)[:2] == (64 * 128, 3)
    # Whole, its three bands take 19 bytes a pixel; in tiles hardly more than its pixels; halved a quarter.
    assert decode(data, max_pixels=256 * 512 * 19 // 8).width == 512
    assert kind_of(data, 256 * 512 * 19 // 8 - 1) == "too_large"
    assert decode(tiled, max_pixels=256 * 512).width == 512
    monkeypatch.setattr("sif_batch.images.decode.LARGE_PIXELS", 100_000)
    found = decode(data, at_least=25, max_pixels=256 * 512)
    assert (found.width, found.height, found.pixels.size) == (
        512,
        256,
        (128, 64),
    )  # a tenth is allowed, two halvings are stored
    monkeypatch.setattr("sif_batch.images.decode.LARGE_PIXELS", 10**9)
    assert kind_of(data, 256 * 512, at_least=25) == "too_large"


@pytest.mark.parametrize(
    ("factor", "most", "times"), [(1, 5, 0), (2, 5, 1), (3, 5, 1), (4, 5, 2), (100, 5, 5), (9, 0, 0)]
)
def test_halvings_stop_before_the_factor(factor: int, most: int, times: int) -> None:
    assert halvings(factor, most) == times


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_no_pixels_are_no_image(shape: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="0"), room_for(*shape, 100, 0):
        pass


def test_other_formats_are_guarded_before_they_are_decoded() -> None:
    """Their ends are cut off, which is found only by decoding."""
    grey = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    sink = io.BytesIO()
    bands = np.dstack([grey.astype(np.uint16)] * 5)
    tifffile.imwrite(sink, bands, photometric="minisblack", planarconfig="contig", rowsperstrip=1)
    for data in (heic([grey]), dicom_bytes(grey), sink.getvalue(), encoded(Image.fromarray(grey), "PNG")):
        assert decode(data).width == 32
        assert kind_of(data[:-40], 32 * 32) in ("truncated", "corrupt")
        assert kind_of(data[:-40], 32 * 32 - 1) == "too_large"


def test_a_narrow_image_does_not_come_back_at_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sif_batch.images.decode.LARGE_PIXELS", 10_000)
    found = decode(encoded(Image.new("RGB", (40_000, 4)), "PNG"), at_least=4)
    assert (found.width, found.height, found.pixels.size) == (40_000, 4, (13_334, 2))


TWO_AT_ONCE = """
import sys, threading
from sif_batch.failures import ImageError
from sif_batch.images.decode import decode
def peak():
    with open("/proc/self/status") as file:
        return int(next(line.split()[1] for line in file if line.startswith("VmHWM"))) * 1024
with open(sys.argv[1], "rb") as file:
    data = file.read()
decode(open(sys.argv[2], "rb").read())
before, sizes = peak(), []
threads = [threading.Thread(target=lambda: sizes.append(decode(data, 448, max).pixels.size)) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(peak() - before, *sizes)
"""


def worst(kind: str) -> bytes:
    rows = (np.arange(SIDE) // 7 % 256).astype(np.uint8)
    grey = np.ascontiguousarray(np.broadcast_to(rows[:, None], (SIDE, SIDE)))
    plane = Image.fromarray(grey)
    sink = io.BytesIO()
    if kind == "bands":
        bands = np.stack([grey.astype(np.uint16) * 200] * 8, axis=-1)
        tifffile.imwrite(sink, bands, photometric="minisblack", planarconfig="contig", compression="deflate")
        return sink.getvalue()
    if kind == "dicom":
        return dicom_bytes(grey.astype(np.int16), WindowCenter=90, WindowWidth=100, RescaleSlope=2, RescaleIntercept=-5)
    if kind == "inks":
        return encoded(Image.merge("CMYK", [plane] * 4), "JPEG", progressive=True)
    if kind == "float":
        return encoded(Image.fromarray(grey.astype(np.float32)), "TIFF", compression="tiff_lzw", tiffinfo={278: SIDE})
    return encoded(Image.merge("RGBA", [plane] * 4), "PNG", compress_level=1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["bands", "dicom", "inks", "float", "alpha"])
def test_two_threads_at_the_worst_images_stay_within_what_is_allowed_one(kind: str, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(encoded(Image.new("RGBA", (9, 9)), "PNG"))
    (tmp_path / "worst").write_bytes(worst(kind))
    command = [sys.executable, "-c", TWO_AT_ONCE, tmp_path / "worst", tmp_path / "small"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=900)
    assert done.returncode == 0, done.stderr
    taken, sizes = done.stdout.split(maxsplit=1)
    assert sizes.strip() == ("(625, 625) (625, 625)" if kind == "inks" else "(455, 455) (455, 455)")
    strips = 100 * 2**20  # of the image in work, and the libraries that are loaded for it
    assert int(taken) < BYTES_A_PIXEL * SIDE * SIDE + strips

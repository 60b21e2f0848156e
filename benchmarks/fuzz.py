"""Real images of every format, mutated: whatever comes, decoding gives an image or one of the permanent failures.

python -m benchmarks.fuzz --minutes 10 [--seed N] [--json]
"""

import argparse
import contextlib
import functools
import io
import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.heic import heic
from sif_batch.failures import ImageError
from sif_batch.images.decode import decode
from sif_batch.machine.child import Child, ChildDied
from sif_batch.machine.memory import peak_bytes

BATCH = 200
STALL_S = 120
MAX_PIXELS = 4_000_000
MOST_MB = 400  # resident: 32 MB for the pixels, the rest for libraries
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {}, "PNG": {}, "GIF": {}, "WEBP": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "AVIF": {"speed": 10},
    "JPEG2000": {}, "ICO": {}, "TGA": {"compression": "tga_rle"}, "PCX": {}, "PPM": {}, "SGI": {}, "DDS": {}, "IM": {},
    "QOI": {}, "XBM": {}, "MPO": {}, "ICNS": {},
}  # fmt: skip


@dataclass
class Tried:
    """kinds: how many ended how; peak_mb: resident memory of the process at most."""

    kinds: Counter[str] = field(default_factory=Counter)
    peak_mb: float = 0.0


@functools.cache
def seeds() -> dict[str, bytes]:
    """A small image of each format, and of some modes."""
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 4)).astype(np.uint8)
    values[:, :, :3] //= 64
    values[:, :, :3] *= 64
    rgb, rgba = Image.fromarray(values[..., :3]), Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {name: _encoded(_suited(rgb, name), name, **options) for name, options in FORMATS.items()}
    made["progressive"] = _encoded(rgb.resize((200, 150)), "JPEG", progressive=True, exif=exif)
    made["cmyk"] = _encoded(rgb.convert("CMYK"), "JPEG")
    made["rgba"], made["palette"] = _encoded(rgba, "PNG"), _encoded(rgb.quantize(8), "PNG")
    made["16 bit"] = _encoded(Image.fromarray(values[..., 0].astype(np.uint16) * 257), "PNG")
    made["float"] = _encoded(Image.fromarray(values[..., 0].astype(np.float32)), "TIFF")
    luma, chroma = (
        np.kron(values[:4, :8, 0], np.ones((8, 8), np.uint8)),
        np.kron(values[:2, :4, :2], np.ones((8, 8, 1))),
    )
    planes = [luma, *np.moveaxis(chroma.astype(np.uint8), -1, 0)]
    made["heic"], made["heic grid"] = heic(planes, turns=1), heic(planes[:1], tiles=(2, 2), others=1)
    made |= _beyond_pillow(values)
    made["frames"] = _encoded(rgb, "GIF", save_all=True, append_images=[rgba.convert("RGB").rotate(90)])
    return made


def _beyond_pillow(values: np.ndarray) -> dict[str, bytes]:
    """What the extras read, if they are installed."""
    made = {}
    with contextlib.suppress(ImportError):
        import tifffile

        wide = values.astype(np.uint16) * 200
        options = ((None, None), ("lzw", None), ("deflate", (16, 16)), ("packbits", None))
        for codec, tile in options:
            sink = io.BytesIO()
            many = np.concatenate([wide, wide], axis=-1)
            tifffile.imwrite(sink, many, photometric="minisblack", planarconfig="contig", compression=codec, tile=tile)
            made[f"bands {codec}"] = sink.getvalue()
    with contextlib.suppress(ImportError):
        import pydicom
        from pydicom.encaps import encapsulate
        from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

        dataset = pydicom.Dataset()
        dataset.Rows, dataset.Columns = values.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.WindowCenter, dataset.WindowWidth, dataset.RescaleSlope, dataset.RescaleIntercept = 20000, 30000, 1, 0
        dataset.PixelData = (values[..., 0].astype(np.uint16) * 257).tobytes()
        made["dicom"] = _dicom_bytes(dataset, ExplicitVRLittleEndian)
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = encapsulate([_encoded(Image.fromarray(values[..., 0]), "JPEG")])
        dataset["PixelData"].VR = "OB"
        made["dicom jpeg"] = _dicom_bytes(dataset, JPEGBaseline8Bit)
    return made


def _dicom_bytes(dataset: Any, syntax: str) -> bytes:
    import pydicom

    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = dataset.SOPInstanceUID = "1.2.3"
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, dataset, enforce_file_format=True)
    return sink.getvalue()


def _suited(image: Image.Image, form: str) -> Image.Image:
    if form == "XBM":
        return image.convert("1")
    return image.resize((128, 128)) if form == "ICNS" else image


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def mutate(data: bytes, seed: int) -> bytes:
    """The bytes with one to four changes, decided by the seed alone."""
    choose = random.Random(seed)
    mutant = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        if mutant:
            choose.choice(MUTATIONS)(mutant, choose)
    return bytes(mutant)


def _place(mutant: bytearray, choose: random.Random) -> int:
    """Anywhere, but half of the time in the header."""
    return choose.randrange(min(len(mutant), 64) if choose.random() < 0.5 else len(mutant))


def _flip(mutant: bytearray, choose: random.Random) -> None:
    for _ in range(choose.choice((1, 1, 8, 64))):
        mutant[_place(mutant, choose)] ^= 1 << choose.randrange(8)


def _number(mutant: bytearray, choose: random.Random) -> None:
    width = choose.choice((1, 2, 4))
    value = choose.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1))
    at = _place(mutant, choose)
    mutant[at : at + width] = value.to_bytes(width, choose.choice(("big", "little")))


def _cut(mutant: bytearray, choose: random.Random) -> None:
    del mutant[choose.randrange(len(mutant)) :]


def _remove(mutant: bytearray, choose: random.Random) -> None:
    at = _place(mutant, choose)
    del mutant[at : at + choose.randint(1, 40)]


def _repeat(mutant: bytearray, choose: random.Random) -> None:
    at = _place(mutant, choose)
    mutant[at:at] = mutant[at : at + choose.randint(1, 200)] * choose.randint(1, 4)


def _splice(mutant: bytearray, choose: random.Random) -> None:
    other = choose.choice(list(seeds().values()))
    start = choose.randrange(len(other))
    mutant[_place(mutant, choose) :] = other[start:]


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (_flip, _number, _cut, _remove, _repeat, _splice)


def try_all(datas: list[bytes]) -> Tried:
    """Decode each; anything but an image in RGB or an ImageError raises."""
    tried = Tried()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, data in enumerate(datas):
            try:
                image = decode(data, 448 if number % 2 else None, max, MAX_PIXELS).pixels
            except ImageError as error:
                tried.kinds[error.kind] += 1
                continue
            if image.mode != "RGB" or not np.asarray(image).size:
                raise AssertionError(f"{image.mode} {image.size}")
            tried.kinds["image"] += 1
    tried.peak_mb = peak_bytes() / 2**20
    return tried


def try_in_child(report: Callable[[Any], None], datas: list[bytes]) -> Tried:
    return try_all(datas)


def fuzz(minutes: float, seed: int, keep: Path) -> dict[str, Any]:
    """Mutants for so long; what ends the process or hangs is kept as a file."""
    child, kinds, peak, bad = Child(), Counter[str](), 0.0, []
    whole, number, ends = list(seeds().values()), seed, time.monotonic() + 60 * minutes
    try:
        while True:
            datas = [mutate(whole[i % len(whole)], i) for i in range(number, number + BATCH)]
            number += BATCH
            for some in [datas, *([data] for data in datas)]:
                tried = _attempt(child, some)
                if not isinstance(tried, str):  # of the child's Tried, another class than this __main__'s
                    kinds, peak = kinds + tried.kinds, max(peak, tried.peak_mb)
                    if len(some) == len(datas):
                        break
                elif len(some) == 1:
                    bad.append(_keep(some[0], keep, tried))
            if time.monotonic() > ends:
                break
    finally:
        child.close()
    counts = dict(kinds.most_common())
    return {"seed": seed, "mutants": number - seed, "kinds": counts, "peak_rss_mb": round(peak), "bad": bad}


def _attempt(child: Child, datas: list[bytes]) -> Tried | str:
    """How they ended, or why that is no way to end."""
    try:
        tried: Tried = child.call("benchmarks.fuzz:try_in_child", stall_s=STALL_S, datas=datas)
    except (ChildDied, RuntimeError) as death:
        return str(death)
    if tried.peak_mb > MOST_MB:
        child.close()  # the next one begins anew
        return f"{tried.peak_mb:.0f} MB resident"
    return tried


def _keep(data: bytes, folder: Path, why: str) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.iterdir())):04d}.bin"
    path.write_bytes(data)
    return {"file": str(path), "reason": why.strip().splitlines()[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first mutant")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where inputs that crash are kept")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = fuzz(options.minutes, options.seed, options.keep)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['mutants']:,} mutants from seed {result['seed']}, at most {result['peak_rss_mb']} MB resident")
    for kind, count in result["kinds"].items():
        print(f"  {count:9,} {kind}")
    print(f"{len(result['bad'])} crashed, hung or raised what they must not")
    for bad in result["bad"]:
        print(f"  {bad['file']}: {bad['reason']}")
    raise SystemExit(bool(result["bad"]))


if __name__ == "__main__":
    main()

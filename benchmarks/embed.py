"""Files to Parquet: sif-batch beside what people use, interleaved on the same images.

    python -m benchmarks.embed [--images DIR] [--encoder efficientnet_lite0|resnet18] [--json]

Images per second count from the first image to the finished Parquet file; what comes before is the start-up. The
peers run in environments of their own (build/peers), made at the first run. The roofline is what decoding and the
network alone allow on all threads: 1 / (1 / decode + 1 / network). The overhead is what the whole embedding stage takes
over that, Beam's start, plan, parts and fsync included: a figure for 2,000 images or more.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.measuring import HERE, REPOSITORY, environment, watch

CONTENDERS = {  # name: environment and script; ours has neither
    "sif-batch fp32": None,
    "sif-batch int8": None,
    "torch, one at a time": ("torch", "torch_loop"),
    "DataLoader + torch": ("torch", "torch_loader"),
    "DataLoader + ONNX Runtime": ("torch", "ort_loader"),
    "Beam RunInference": ("beam", "beam_inference"),
    "Daft UDF": ("daft", "daft_udf"),
}
BEST_OF = ("torch, one at a time", "DataLoader + torch", "Beam RunInference", "Daft UDF")
ORT = "DataLoader + ONNX Runtime"
SIDE, GRAIN, QUALITY = 500, 5, 94  # of the images that are made: about 85 KB each


def make_images(source: Path, folder: Path, number: int) -> None:
    """Photos enlarged to 500 px with grain, as large as ImageNet's; repeated ones are mirrored or have other grain."""
    photos = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not photos:
        raise SystemExit(f"{source} holds no .jpg: give --images with a folder of photos")
    rng = np.random.default_rng(0)
    for i in range(number):
        with Image.open(photos[i % len(photos)]) as photo:
            image = ImageOps.mirror(photo.convert("RGB")) if i // len(photos) % 2 else photo.convert("RGB")
        scale = SIDE / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        noisy = np.asarray(image) + rng.normal(0, GRAIN, (image.height, image.width, 1))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=QUALITY)


def run_ours(images: Path, scratch: Path, encoder: str, precision: str, prepared: Path) -> dict[str, Any]:
    """A first night into a new ROOT that has its encoder already: exported, and lowered to int8, beforehand."""
    root = scratch / "root"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root)
    command = [
        sys.executable,
        "-m",
        "sif_batch.jobs.cli",
        "run",
        str(images),
        str(root),
        "--no-gate",
        "--no-report",
        "--json",
    ]
    ours = watch([*command, "--precision", precision])
    figures = ours["embedding"]
    return ours | {"images_per_s": figures["images_per_s"], "startup_s": figures["first_image_s"]}


def prepare_root(images: Path, scratch: Path, encoder: str, precision: str) -> tuple[Path, dict[str, Any] | None]:
    """A ROOT with the encoder, and no image: what --precision int8 measured."""
    root = scratch / f"prepared-{precision}"
    command = [
        sys.executable,
        "-m",
        "sif_batch.jobs.cli",
        "run",
        str(images),
        str(root),
        "--encoder",
        encoder,
        "--no-gate",
        "--no-report",
        "--json",
    ]
    command += ["--random-weights"] if encoder == "resnet18" else []
    found = watch([*command, "--precision", precision, "--min-kept", "0"])
    for name in (
        "parts",
        "plans",
        "catalog",
        "codes",
        "quantizers",
        "releases",
        "history",
        "listings",
        "runs",
        "LATEST",
    ):
        path = root / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return root, found.get("int8")


def run_peer(images: Path, scratch: Path, encoder: str, environment_name: str, script: str) -> dict[str, Any]:
    python = environment(environment_name)
    peer = watch([str(python), str(HERE / "peers" / f"{script}.py"), str(images), str(scratch / script), encoder])
    return peer | {
        "images_per_s": peer["images"] / (peer["ended"] - peer["first"]),
        "startup_s": peer["first"] - peer["started"],
    }


ROOFLINE = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from sif_batch.machine.devices import usable_cores
from sif_batch.embedding.child_cache import load_encoder
encoder = load_encoder(sys.argv[1], json.loads((Path(sys.argv[1]) / "root.json").read_text())["encoder"], "cpu")
files = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())[:256]]
def speed(work, items, images):
    with ThreadPoolExecutor(usable_cores()) as pool:
        started = time.perf_counter()
        done = list(pool.map(work, items))
        return images / (time.perf_counter() - started), done
speed(encoder.read_image, files[:32], 32)
decode, read = speed(encoder.read_image, files, len(files))
pixels = np.stack([square for square, _, _ in read])
batches = np.split(pixels, range(encoder.batch, len(pixels), encoder.batch))
encoder.embed(batches[0])
network, _ = speed(encoder.embed, batches, len(files))
print(json.dumps({"decode": decode, "network": network}))
"""


def measure(images: Path, scratch: Path, encoder: str, rounds: int, names: list[str]) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    roofs: dict[str, list[dict[str, float]]] = {}
    roots: dict[str, Path] = {}
    int8 = None
    for precision in ("fp32", "int8"):
        if f"sif-batch {precision}" in names:
            roots[precision], measured = prepare_root(images, scratch, encoder, precision)
            int8 = measured or int8
    for name in names:
        if (peer := CONTENDERS[name]) is not None:
            environment(peer[0])
    for number in range(rounds):
        for name in names:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            peer = CONTENDERS[name]
            if peer is None:
                precision = name.split()[-1]
                runs[name].append(run_ours(images, scratch, encoder, precision, roots[precision]))
                roof = watch([sys.executable, "-c", ROOFLINE, str(roots[precision]), str(images)])
                roofs.setdefault(name, []).append(roof)
            else:
                runs[name].append(run_peer(images, scratch, encoder, *peer))
    return summary(runs, roofs) | {"encoder": encoder, "images": len(list(images.iterdir())), "int8": int8}


def summary(runs: dict[str, list[dict[str, Any]]], roofs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds; ratios and shares are made within a round, then their median is taken."""

    def median(name: str, field: str) -> float:
        return statistics.median(run[field] for run in runs[name])

    report: dict[str, Any] = {
        "images_per_s": {},
        "spread": {},
        "cpu_s_per_image": {},
        "peak_rss_mb": {},
        "startup_s": {},
    }
    for name, found in runs.items():
        speeds = [run["images_per_s"] for run in found]
        images = found[0].get("images") or found[0]["listed"]
        report["images_per_s"][name] = round(statistics.median(speeds), 1)
        report["spread"][name] = [round(min(speeds), 1), round(max(speeds), 1)]
        report["cpu_s_per_image"][name] = round(median(name, "cpu_s") / images, 4)
        report["peak_rss_mb"][name] = round(median(name, "peak_mb"))
        report["startup_s"][name] = round(median(name, "startup_s"), 2)
    report |= {
        "ratio_to_best_peer": {},
        "ratio_to_onnxruntime": {},
        "roofline": {},
        "roofline_share": {},
        "overhead": {},
    }
    peers = [name for name in BEST_OF if name in runs]
    for name in (name for name in runs if CONTENDERS[name] is None):
        ours = [run["images_per_s"] for run in runs[name]]
        if peers:
            best = [max(rates) for rates in zip(*([r["images_per_s"] for r in runs[p]] for p in peers), strict=True)]
            report["ratio_to_best_peer"][name] = round(
                statistics.median(a / b for a, b in zip(ours, best, strict=True)), 2
            )
        if ORT in runs:
            ratios = [a / run["images_per_s"] for a, run in zip(ours, runs[ORT], strict=True)]
            report["ratio_to_onnxruntime"][name] = round(statistics.median(ratios), 2)
        roof = [1 / (1 / r["decode"] + 1 / r["network"]) for r in roofs[name]]
        report["roofline"][name] = {
            "decode": round(statistics.median(r["decode"] for r in roofs[name]), 1),
            "network": round(statistics.median(r["network"] for r in roofs[name]), 1),
            "both": round(statistics.median(roof), 1),
        }
        shares = [a / b for a, b in zip(ours, roof, strict=True)]
        report["roofline_share"][name] = round(statistics.median(shares), 3)
        over = [run["seconds"]["embed"] * b / run["listed"] - 1 for run, b in zip(runs[name], roof, strict=True)]
        report["overhead"][name] = round(statistics.median(over), 3)
    return report


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['encoder']}, {report['images']} images, files to Parquet", title_justify="left")
    for column in (
        "",
        "images/s",
        "spread",
        "CPU s/image",
        "peak MB",
        "start-up s",
        "of best peer",
        "of ORT",
        "of roofline",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for name, speed in report["images_per_s"].items():
        low, high = report["spread"][name]
        ratios = [report[field].get(name) for field in ("ratio_to_best_peer", "ratio_to_onnxruntime", "roofline_share")]
        figures = (speed, f"{low}-{high}", report["cpu_s_per_image"][name], report["peak_rss_mb"][name])
        table.add_row(
            name, *map(str, figures), str(report["startup_s"][name]), *("" if r is None else str(r) for r in ratios)
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for name, roof in report["roofline"].items():
        console.print(
            f"{name}: decode alone {roof['decode']}/s, network alone {roof['network']}/s, both {roof['both']}/s; "
            f"overhead of the whole stage {report['overhead'][name]:.1%}"
        )
    if report["int8"]:
        console.print(f"int8: {report['int8']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs; default: made from --photos")
    parser.add_argument("--photos", type=Path, default=REPOSITORY / "examples" / "photos", help="what they are made of")
    parser.add_argument("--number", type=int, default=800, help="how many are made (800)")
    parser.add_argument("--encoder", choices=["efficientnet_lite0", "resnet18"], default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sif-batch-") as folder:
        images = given.images
        if images is None:
            images = Path(folder) / "images"
            images.mkdir()
            make_images(given.photos, images, given.number)
        report = measure(images, Path(folder), given.encoder, given.rounds, given.contenders)
    print(json.dumps(report)) if given.json else show(report)


if __name__ == "__main__":
    main()

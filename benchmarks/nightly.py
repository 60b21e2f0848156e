"""What a night costs: everything new, one in a hundred changed, nothing changed.

python -m benchmarks.nightly [--cases images,rows] [--images 50000] [--rows 1000000] [--photos DIR] [--json]

images: real image files, embedded. rows: stored embeddings, made up; an inventory names their images, which are not
there, so that nothing is embedded: each night lists, plans, quantizes what is new, assembles, measures, publishes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import synthetic_roots

REPOSITORY = Path(__file__).parents[1]
PHOTOS = REPOSITORY / "examples" / "photos"
GOAL_SHARE, GOAL_FIXED_S, GOAL_UNCHANGED_S = 0.02, 5.0, 5.0
PART_ROWS, DIMENSION = 1000, 1280

Nights = dict[str, Any]


def make_images(photos: Path, into: Path, count: int, size: int) -> None:
    """`count` different small JPEGs, made of real photos by a shift of their window."""
    opened = []
    for path in sorted(photos.rglob("*.jpg")):
        with Image.open(path) as image:
            opened.append(image.convert("RGB").resize((size + 64, size + 64)))
    for number in range(count):
        folder = into / f"{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        round_, photo = divmod(number, len(opened))
        left, top = round_ % 64, round_ // 64 % 64
        opened[photo].crop((left, top, left + size, top + size)).save(folder / f"{number:06d}.jpg", quality=80)


def change_images(images: Path, share: float) -> int:
    """Give this share of the images, drawn at random, other bytes: each is turned upside down. Every hundredth would be
    all that was made of two photos, and held-out queries would lose their neighbours."""
    paths = sorted(images.rglob("*.jpg"))
    changed = np.random.default_rng(0).choice(len(paths), round(share * len(paths)), replace=False).tolist()
    for path in (paths[number] for number in changed):
        with Image.open(path) as image:
            turned = image.transpose(Image.Transpose.ROTATE_180)
        turned.save(path, quality=80)
    return len(changed)


def run_night(root: Path, *sources: Path) -> tuple[float, dict[str, Any]]:
    """The seconds of the whole command, and what it printed."""
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "run", *map(str, sources), str(root), "--json", "--no-gate"]
    started = time.perf_counter()
    done = subprocess.run([*command, "--no-report"], cwd=REPOSITORY, env=os.environ, capture_output=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise click.ClickException(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout)
    return seconds, result


def describe(nights: dict[str, tuple[float, dict[str, Any]]], work_s: float = 0.0) -> Nights:
    """Seconds and goals of the three nights. work_s: what the first would have taken to embed, had it to."""
    full_s, one_percent_s, unchanged_s = (seconds for seconds, _ in nights.values())
    return {
        "full_s": round(full_s, 2),
        "one_percent_s": round(one_percent_s, 2),
        "unchanged_s": round(unchanged_s, 2),
        "one_percent_goal_s": round(GOAL_SHARE * (full_s + work_s) + GOAL_FIXED_S, 2),
        "unchanged_goal_s": GOAL_UNCHANGED_S,
        "peak_mb": {name: peaks_mb(result["memory"]) for name, (_, result) in nights.items()},
        "stages": {name: result["seconds"] for name, (_, result) in nights.items()},
        "steps": {name: result["index"]["seconds"] for name, (_, result) in nights.items()},
    }


def peaks_mb(memory: dict[str, Any]) -> list[int]:
    """Of the run's process and of each worker."""
    return [size // 10**6 for size in (memory["main"], *memory["workers"])]


def measure_images(photos: Path, count: int, size: int, folder: Path) -> Nights:
    """Nights over image files."""
    images, root = folder / "images", folder / "root"
    make_images(photos, images, count, size)
    full = run_night(root, images)
    changed = change_images(images, 0.01)
    nights = {"full": full, "one_percent": run_night(root), "unchanged": run_night(root)}
    did = [result["embedded"] + result["reused"] for _, result in nights.values()]
    expect(did, [count, changed, 0], nights)
    return {"images": count, "images_per_s": full[1]["embedding"]["images_per_s"]} | describe(nights)


def measure_rows(rows: int, images_per_s: float | None, folder: Path) -> Nights:
    """Nights over stored embeddings. images_per_s: how fast they would have been embedded, where that is known."""
    inventory = folder / "inventory.parquet"
    store, encoder = synthetic_roots.make_root(folder / "root", inventory=str(inventory))
    parts = rows // PART_ROWS
    synthetic_roots.in_processes("parts", parts, store.url, encoder, DIMENSION, PART_ROWS)
    nights = {}
    for name, changed in (("full", 0), ("one_percent", -(-parts // 100)), ("unchanged", -(-parts // 100))):
        if name == "one_percent":
            for number in range(changed):  # as if they had just been embedded
                vectors = synthetic_roots.clustered(parts + number, PART_ROWS, DIMENSION)
                synthetic_roots.write_part(store, encoder, number, vectors, "2")
        write_inventory(inventory, parts, changed)
        nights[name] = run_night(Path(store.url))
    expect([result["in_index"] for _, result in nights.values()], [parts * PART_ROWS] * 3, nights)
    work_s = rows / images_per_s if images_per_s else 0.0
    return {"rows": parts * PART_ROWS, "embedding_s": round(work_s)} | describe(nights, work_s)


def write_inventory(file: Path, parts: int, changed: int) -> None:
    """A list of the images of all parts, of which the first have another version."""
    paths = [path for number in range(parts) for path in synthetic_roots.part_paths(number, PART_ROWS)]
    versions = ["2"] * (changed * PART_ROWS) + ["1"] * ((parts - changed) * PART_ROWS)
    pq.write_table(pa.table({"key": paths, "size": pa.repeat(1, len(paths)), "e_tag": versions}), file)


def expect(did: list[int], wanted: list[int], nights: dict[str, tuple[float, dict[str, Any]]]) -> None:
    outcomes = [result["outcome"] for _, result in nights.values()]
    if did != wanted or outcomes != ["published", "published", "unchanged"]:
        raise click.ClickException(f"the nights did {did} and ended {outcomes}, not {wanted}")


def meets(nights: Nights) -> bool:
    return bool(
        nights["one_percent_s"] <= nights["one_percent_goal_s"] and nights["unchanged_s"] <= nights["unchanged_goal_s"]
    )


def show(nights: Nights, title: str) -> None:
    table = Table("night", "seconds", "at most", "peak MB", "of it", box=box.SIMPLE_HEAD, title=title)
    goals = ("", f"{nights['one_percent_goal_s']:.1f}", f"{nights['unchanged_goal_s']:.1f}")
    for name, goal in zip(("full", "one_percent", "unchanged"), goals, strict=True):
        spent = nights["stages"][name] | nights["steps"][name]
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in spent.items() if seconds >= 0.05)
        table.add_row(name, f"{nights[f'{name}_s']:.1f}", goal, str(sum(nights["peak_mb"][name])), stages)
    Console(highlight=False, width=150).print(table)


@click.command()
@click.option("--cases", default="images,rows", show_default=True)
@click.option("--images", type=click.IntRange(min=100), default=50_000, show_default=True, help="How many.")
@click.option("--size", type=click.IntRange(min=16), default=96, show_default=True, help="Their sides in pixels.")
@click.option("--rows", type=click.IntRange(min=1000), default=1_000_000, show_default=True, help="Stored embeddings.")
@click.option(
    "--images-per-s", type=float, help="How fast rows would be embedded. Default: as the case images was, if it ran."
)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=PHOTOS,
    help="What images are made of. Default: examples/photos.",
)
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for images and ROOTs. Default: temporary.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def main(
    cases: str,
    images: int,
    size: int,
    rows: int,
    images_per_s: float | None,
    photos: Path,
    scratch: Path | None,
    as_json: bool,
) -> None:
    """Measure three nights of each case. Exit 1 if one misses its goal."""
    found: dict[str, Nights] = {}
    for case in cases.split(","):
        folder = Path(tempfile.mkdtemp(prefix="sif-batch-nightly-", dir=scratch))
        try:
            if case == "images":
                found[case] = measure_images(photos, images, size, folder)
                images_per_s = images_per_s or found[case]["images_per_s"]
            elif case == "rows":
                found[case] = measure_rows(rows, images_per_s, folder)
            else:
                raise click.UsageError(f"{case} is neither images nor rows")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:  # the first case's figures stand at the top too
        click.echo(json.dumps(next(iter(found.values())) | found))
    else:
        titles = {"images": f"{images:,} images", "rows": f"{rows:,} stored embeddings"}
        for case, nights in found.items():
            show(nights, titles[case])
    sys.exit(0 if all(meets(nights) for nights in found.values()) else 1)


if __name__ == "__main__":
    main()

"""What a night costs: all images new, one in a hundred changed, nothing changed.

python -m benchmarks.nightly [--images 50000] [--photos DIR] [--json]
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
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[1]
PHOTOS = REPOSITORY / "examples" / "photos"
GOAL_SHARE, GOAL_FIXED_S, GOAL_UNCHANGED_S = 0.02, 5.0, 5.0


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
    """Give this share of the images other bytes: each is turned upside down."""
    paths = sorted(images.rglob("*.jpg"))
    changed = paths[:: round(1 / share)]
    for path in changed:
        with Image.open(path) as image:
            turned = image.transpose(Image.Transpose.ROTATE_180)
        turned.save(path, quality=80)
    return len(changed)


def run_night(images: Path, root: Path) -> tuple[float, dict[str, Any]]:
    """The seconds of the whole command, and what it printed."""
    command = [sys.executable, "-m", "jobs.cli", "run", str(images), str(root), "--json", "--no-gate", "--no-report"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise click.ClickException(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout)
    return seconds, result


def measure(photos: Path, count: int, size: int, folder: Path) -> dict[str, Any]:
    """full_s, one_percent_s and unchanged_s, with what each night did."""
    images, root = folder / "images", folder / "root"
    make_images(photos, images, count, size)
    full_s, full = run_night(images, root)
    changed = change_images(images, 0.01)
    one_percent_s, one_percent = run_night(images, root)
    unchanged_s, unchanged = run_night(images, root)
    expected = (full["embedded"] + full["reused"], one_percent["embedded"] + one_percent["reused"])
    if expected != (count, changed) or unchanged["outcome"] != "unchanged":
        raise click.ClickException(f"the nights did {expected} and {unchanged['outcome']}, not {count} and {changed}")
    return {
        "images": count,
        "full_s": round(full_s, 2),
        "one_percent_s": round(one_percent_s, 2),
        "unchanged_s": round(unchanged_s, 2),
        "one_percent_goal_s": round(GOAL_SHARE * full_s + GOAL_FIXED_S, 2),
        "unchanged_goal_s": GOAL_UNCHANGED_S,
        "stages": {"full": full["seconds"], "one_percent": one_percent["seconds"], "unchanged": unchanged["seconds"]},
    }


@click.command()
@click.option("--images", type=click.IntRange(min=100), default=50_000, show_default=True, help="How many.")
@click.option("--size", type=click.IntRange(min=16), default=96, show_default=True, help="Their sides in pixels.")
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=PHOTOS,
    help="What they are made of. Default: examples/photos.",
)
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for images and ROOT. Default: temporary.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def main(images: int, size: int, photos: Path, scratch: Path | None, as_json: bool) -> None:
    """Measure three nights. Exit 1 if one misses its goal."""
    folder = Path(tempfile.mkdtemp(prefix="sif-batch-nightly-", dir=scratch))
    try:
        figures = measure(photos, images, size, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(figures))
    else:
        table = Table("night", "seconds", "at most", box=box.SIMPLE_HEAD, title=f"{images:,} images")
        table.add_row("all new", f"{figures['full_s']:.1f}", "")
        table.add_row("1 % changed", f"{figures['one_percent_s']:.1f}", f"{figures['one_percent_goal_s']:.1f}")
        table.add_row("nothing changed", f"{figures['unchanged_s']:.1f}", f"{figures['unchanged_goal_s']:.1f}")
        Console(highlight=False).print(table)
    met = figures["one_percent_s"] <= figures["one_percent_goal_s"] and figures["unchanged_s"] <= GOAL_UNCHANGED_S
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()

"""How good the answers are, and what they cost: sif-batch beside what people use, on any folder of labelled folders.

    python -m benchmarks.quality --images DIR [--contenders ...] [--json]

Leave-one-out: every image asks, relevant are the others of its folder. The same judge (evaluation.metrics) ranks the
peers' vectors by exact cosine; a release of ours is judged by its own answers. Seconds: from files to an index that can
be asked, the network being loaded; bytes: what an image takes in the index, queries included. The peers run in an
environment of their own (build/peers/quality), made at the first run.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import HERE, REPOSITORY, environment, watch
from sif_batch.evaluation.metrics import MAX_QUERIES, averages, judge_space, plan_trials
from sif_batch.evaluation.rankings import cosine
from sif_batch.evaluation.relevance import by_labels
from sif_batch.jobs.reports.evaluate import evaluate

CONTENDERS: dict[str, tuple[str, ...] | str] = {  # ours: options of `sif-batch run`; a peer: its script
    "sif-batch, flat": ("--family", "flat"),
    "sif-batch, ivf-pq": ("--family", "ivf-pq"),
    "sif-batch, int8, ivf-pq": ("--family", "ivf-pq", "--precision", "int8"),
    "one image at a time": "one_by_one",
    "imagededup CNN": "imagededup_cnn",
    "clip-retrieval's way": "flat_index",
}
FIGURES = ("map", "precision_at_1", "precision_at_10")


def measure(images: Path, scratch: Path, names: list[str]) -> dict[str, Any]:
    """The figures of each contender, by name."""
    return {name: run_one(images, scratch / str(i), name) for i, name in enumerate(names)}


def run_one(images: Path, scratch: Path, name: str) -> dict[str, Any]:
    print(f"{name}: {images}", file=sys.stderr)
    scratch.mkdir()
    contender = CONTENDERS[name]
    if isinstance(contender, tuple):
        return run_ours(images, scratch / "root", contender)
    return run_peer(images, scratch / "vectors.npy", contender)


def run_ours(images: Path, root: Path, options: tuple[str, ...]) -> dict[str, Any]:
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "run", str(images), str(root), *options]
    night = watch([*command, "--no-gate", "--no-report", "--json"])
    report = evaluate(str(root), "folder", cuts=(1, 10)).report
    parts = (root / "releases" / night["release"]).glob("segments/*/*")
    timed = report["timing"]["queries"][-1]["seconds_per_query"]
    return figures_of(report) | {
        "seconds": round(sum(night["seconds"].values()), 2),
        "images_per_s": night["embedding"]["images_per_s"],
        "bytes_per_image": round(sum(file.stat().st_size for file in parts) / report["rows"]),
        "query_ms": round(1000 * timed, 3),
        "images": report["rows"],
    }


def run_peer(images: Path, out: Path, script: str) -> dict[str, Any]:
    python = environment("quality")
    peer = watch([str(python), str(HERE / "peers" / f"{script}.py"), str(images), str(out)])
    labels = [path.rpartition("/")[0].rpartition("/")[2] for path in peer["paths"]]
    return judge_vectors(np.load(out), labels) | {
        "seconds": round(peer["seconds"], 2),
        "images_per_s": round(len(labels) / peer["seconds"], 1),
        "bytes_per_image": peer["bytes_per_image"],
        "query_ms": round(peer["query_ms"], 3),
        "images": len(labels),
    }


def judge_vectors(vectors: np.ndarray, labels: list[str]) -> dict[str, Any]:
    relevance = by_labels(labels)
    judged = judge_space(cosine(vectors), plan_trials(relevance, MAX_QUERIES), relevance, (1, 10))
    return figures_of(averages(judged.figures))


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "map": report["map"],
        "precision_at_1": report["precision"]["1"],
        "precision_at_10": report["precision"]["10"],
    }


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=report["images"], title_justify="left")
    columns = ("", "mAP", "P@1", "P@10", "seconds", "images/s", "bytes an image", "ms a query")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name, found in report["contenders"].items():
        values = [f"{found[figure]:.4f}" for figure in FIGURES]
        values += [str(found[figure]) for figure in ("seconds", "images_per_s", "bytes_per_image", "query_ms")]
        table.add_row(name, *values)
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, default=REPOSITORY / "examples" / "photos", help="a folder for each label"
    )
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.images.is_dir():
        raise SystemExit(f"{given.images} is no folder: give --images a folder that holds one for each label")
    with tempfile.TemporaryDirectory(prefix="sif-batch-") as folder:
        found = measure(given.images.resolve(), Path(folder), given.contenders)
    report = {"images": str(given.images), "contenders": found}
    print(json.dumps(report)) if given.json else show(report)


if __name__ == "__main__":
    main()

"""What each engine costs: its fixed time, and images per second on the same photos.

python -m benchmarks.engines [--images DIR] [--number 5000] [--only ENGINE …] [--json]
(python -m scripts.engines.fetch first; fixed time is that of a run on a few photos, less a local one's of the same;
spread: seconds of embedding by one worker of one thread, and by two)
"""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scripts.engines import fetch
from scripts.engines.clusters import flink_cluster, spark_cluster
from scripts.engines.stores import s3_server

REPOSITORY = Path(__file__).parents[1]
PHOTOS = REPOSITORY / "examples" / "photos"
FEW, SPREAD = 40, 2000
S3_PAIRS = 3  # of runs, the first from the one, then from the other place
TIMEOUT_S = 3600
PROCESS = "--environment_type=PROCESS"
ENGINES = ("local", "flink", "spark", "flink cluster", "spark cluster")


@dataclass(frozen=True)
class Ran:
    """A run: wall seconds, CPU seconds of it and its children, and what `--json` printed."""

    seconds: float
    cpu_s: float
    result: dict[str, Any]


@contextlib.contextmanager
def engine(name: str, folder: Path, workers: int = 2) -> Iterator[list[str]]:
    """The options of an engine, its cluster of so many workers running."""

    def flink(*more: str) -> list[str]:
        return ["--runner=FlinkRunner", f"--flink_job_server_jar={fetch.flink_jar()}", *more]

    def spark(*more: str) -> list[str]:
        return ["--runner=SparkRunner", f"--spark_job_server_jar={fetch.spark_jar()}", *more]

    if name == "local":
        yield []
    elif name == "flink":
        yield flink("--parallelism=2")
    elif name == "spark":
        yield spark("--spark_master_url=local[2]")
    elif name == "flink cluster":
        with flink_cluster(folder, workers) as cluster:
            yield flink(f"--flink_master={cluster.master}", PROCESS)
    else:
        with spark_cluster(folder, workers) as cluster:
            yield spark(f"--spark_master_url={cluster.master}", PROCESS)


def copies_of(images: Path, number: int, into: Path) -> Path:
    """`number` photos as links, the same ones again under other names where there are not enough."""
    photos = sorted(images.rglob("*.jpg"))
    for i in range(number):
        target = into / f"{i // len(photos):03d}" / photos[i % len(photos)].relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(photos[i % len(photos)], "rb") as source, open(target, "wb") as copy:
            copy.write(source.read() + i.to_bytes(4, "big"))  # other bytes, the same image: nothing is reused
    return into


def run(source: str, root: str, options: list[str], *more: str) -> Ran:
    command = [
        sys.executable,
        "-m",
        "sif_batch.jobs.cli",
        "run",
        source,
        root,
        "--json",
        "--shard-images",
        "250",
        *more,
    ]
    command += ["--", *options]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=env)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise click.ClickException(done.stderr[-1000:])
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(seconds, cpu_s, json.loads(done.stdout))


def measure(name: str, few: Path, many: Path, number: int, folder: Path) -> dict[str, Any]:
    with engine(name, folder) as options:
        small = run(str(few), str(folder / "few"), options)
        large = run(str(many), str(folder / "many"), options)
    return {
        "few_s": round(small.seconds, 2),
        "total_s": round(large.seconds, 2),
        "images_per_s": round((number - FEW) / (large.seconds - small.seconds), 1),
        "workers": len(large.result["embedding"]["shards_by_worker"]),
        "release": large.result["release"],
    }


def measure_spread(photos: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What a second worker brings, by engine. A worker of one thread: more would take both cores alone."""
    found = {}
    for name in ("local", "flink cluster", "spark cluster"):
        seconds, shards = [], {}
        for workers in (1, 2):
            place = folder / f"{name} {workers}".replace(" ", "-")
            place.mkdir(parents=True)
            threads = str(workers if name == "local" else 1)
            with engine(name, place, workers) as options:
                ran = run(str(photos), str(place / "root"), options, "--workers", threads)
            shards = ran.result["embedding"]["shards_by_worker"]
            seconds.append(round(ran.result["seconds"]["embed"], 2))
        found[name] = {"one_s": seconds[0], "two_s": seconds[1], "shards": sorted(shards.values())}
    return found


def measure_s3(many: Path, folder: Path) -> dict[str, Any]:
    """Client CPU seconds of whole runs from a bucket, over those of as many from the disk, in turns; ROOT is local."""
    spent: dict[str, list[float]] = {"s3": [], "local": []}
    with s3_server(folder) as bucket:
        shutil.copytree(many, bucket.folder / "photos")
        os.environ |= bucket.env
        places = {"s3": "s3://bucket/photos", "local": str(many)}
        for number in range(S3_PAIRS):
            for name in sorted(places, reverse=number % 2 == 0):
                root = folder / f"from-{name}"
                spent[name].append(round(run(places[name], str(root), []).cpu_s, 2))
                shutil.rmtree(root)
    ratio = round(sum(spent["s3"]) / sum(spent["local"]), 3)
    return {"s3_cpu_s": spent["s3"], "local_cpu_s": spent["local"], "s3_cpu_ratio": ratio}


@click.command(help=__doc__)
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), default=PHOTOS)
@click.option("--number", default=5000, show_default=True)
@click.option("--only", multiple=True, type=click.Choice([*ENGINES, "s3", "spread"]))
@click.option("--json", "as_json", is_flag=True)
def main(images: Path, number: int, only: tuple[str, ...], as_json: bool) -> None:
    report: dict[str, Any] = {"number": number, "engines": {}}
    with tempfile.TemporaryDirectory(prefix="sif-batch-engines-") as scratch:
        few = copies_of(images, FEW, Path(scratch, "few"))
        many = copies_of(images, number, Path(scratch, "many"))
        for place, name in enumerate(n for n in ENGINES if not only or n in only):
            folder = Path(scratch, str(place))
            folder.mkdir()
            try:
                report["engines"][name] = measure(name, few, many, number, folder)
            except fetch.Unavailable as reason:
                click.echo(f"{name}: cannot be had here: {reason}", err=True)
        found = report["engines"]
        for figures in found.values():
            figures["fixed_s"] = round(figures["few_s"] - found["local"]["few_s"], 2) if "local" in found else None
        report["identical"] = len({figures.pop("release") for figures in found.values()}) <= 1
        if not only or "s3" in only:
            (Path(scratch) / "s3").mkdir()
            report["s3"] = measure_s3(many, Path(scratch) / "s3")
        if not only or "spread" in only:
            report["spread"] = measure_spread(
                copies_of(images, SPREAD, Path(scratch, "spreading")), Path(scratch, "spread")
            )
    print(json.dumps(report)) if as_json else show(report)


def show(report: dict[str, Any]) -> None:
    table = Table("engine", "fixed s", "images/s", "workers", "total s")
    for name, figures in report["engines"].items():
        row = (figures["fixed_s"], figures["images_per_s"], figures["workers"], figures["total_s"])
        table.add_row(name, *map(str, row))
    Console().print(table, f"identical: {report['identical']}", report.get("s3", ""), report.get("spread", ""))


if __name__ == "__main__":
    main()

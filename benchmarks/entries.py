"""What millions of entries cost before any image is read: listing, catalog and plan, seconds and peak memory.

python -m benchmarks.entries [--files 1000000] [--entries 10000000] [--cases walk,inventory,csv,first,again] [--json]

walk: a real tree of empty files; inventory, csv: a ready list; first: a first night from such a list to its plan;
again: a night with one entry in a hundred changed, over the catalog of all. Each in a process of its own, made up.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from sif_batch.config import Source
from sif_batch.digests import sha256_of
from sif_batch.ledger.catalog import CATALOG_SCHEMA
from sif_batch.ledger.catalog_cache import CacheWriter, cache_path, load_catalog
from sif_batch.ledger.entry_digests import entry_digests
from sif_batch.ledger.plan import DEFAULT_LIMITS, make_plan, save_plan
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.machine.memory import peak_bytes, resident_bytes
from sif_batch.sources.listing import LISTING_SCHEMA, list_sources
from sif_batch.storage.store import Store

FOLDER_FILES = 1000
STEP = 2**20  # entries that are made at a time
ENCODER = "made-up"
GOAL_S, GOAL_MB, INVENTORY_GOAL_S, FULL = 180, 2000, 60, 10_000_000
PLACE = Source(name="made", url="/made/up")

Steps = dict[str, float]


def paths_of(start: int, end: int) -> pa.Array:
    """00000/0000000.jpg, ..., string in order."""
    numbers, folders = (pa.array(np.arange(start, end) // size).cast(pa.string()) for size in (1, FOLDER_FILES))
    padded = pc.utf8_lpad(folders, 5, "0"), pc.utf8_lpad(numbers, 8, "0")
    return pc.binary_join_element_wise(pc.binary_join_element_wise(*padded, "/"), ".jpg", "")


def entries_of(start: int, end: int, changed: int = 0) -> pa.Table:
    """LISTING_SCHEMA; the version of every so many-th entry is another."""
    numbers = np.arange(start, end)
    other = numbers % changed == 0 if changed else np.zeros(len(numbers), bool)
    versions = pc.if_else(pa.array(other), "51234-1800000000123456789", "51234-1700000000123456789")
    columns = [pa.repeat("made", len(numbers)), paths_of(start, end), np.full(len(numbers), 51_234), versions]
    return pa.table(columns, schema=LISTING_SCHEMA)


# Made beforehand, in processes of their own.


def make_tree(folder: Path, count: int) -> None:
    for start in range(0, count, FOLDER_FILES):
        inner = folder / "tree" / f"{start // FOLDER_FILES:05d}"
        inner.mkdir(parents=True)
        for number in range(start, min(count, start + FOLDER_FILES)):
            (inner / f"{number:08d}.jpg").touch()


def make_inventory(folder: Path, count: int, changed: int = 0, csv: bool = False) -> None:
    """list.parquet, or list.csv: key, size and e_tag."""
    schema = pa.schema([("key", pa.string()), ("size", pa.int64()), ("e_tag", pa.string())])
    writer = pyarrow.csv.CSVWriter if csv else pq.ParquetWriter
    with writer(str(folder / f"list.{'csv' if csv else 'parquet'}"), schema) as sink:
        for start in range(0, count, STEP):
            entries = entries_of(start, min(count, start + STEP), changed).select(["path", "size", "version"])
            sink.write_table(pa.table(entries.columns, schema))


def make_night(folder: Path, count: int) -> None:
    """A list of which one in a hundred changed, and a ROOT whose catalog is cached: of its parts there are the names
    alone."""
    make_inventory(folder, count, 100)
    store = Store(str(folder / "root"))
    size = DEFAULT_LIMITS.shard_images
    names = [f"{number:032x}" for number in range(-(-count // size))]
    for name in names:
        store.create(f"parts/{ENCODER}/{name}.parquet", b"")
    path = Path(store.path(cache_path(ENCODER)))
    path.parent.mkdir()
    with open(path, "wb") as file, CacheWriter(file) as writer:
        for start in range(0, count, size):
            writer.write(made_rows(start, min(count, start + size)))
        writer.describe(names, ["{}"] * len(names), {}, {})
    path.with_suffix(".parquet.sha256").write_text(sha256_of(path))


def made_rows(start: int, end: int) -> pa.Table:
    """CATALOG_SCHEMA of these entries."""
    entries, random, count = entries_of(start, end), np.random.default_rng(start), end - start
    contents = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), count, [None, pa.py_buffer(random.bytes(32 * count))]
    )
    made: dict[str, Any] = {
        "part": np.full(count, start // DEFAULT_LIMITS.shard_images, np.int32),
        "row": np.arange(count, dtype=np.uint16),
        "entry": entry_digests(entries),
        "key": pc.binary_join_element_wise(entries["source"], entries["path"], "/"),
        "hash": random.integers(2**63, size=count, dtype=np.uint64),
        "attempt": np.ones(count, np.int8),
        "width": np.full(count, 500, np.int32),
        "height": np.full(count, 375, np.int32),
        "sha256": contents,
    }
    made |= {name: entries[name] for name in ("source", "path", "version")}
    columns = [made.get(field.name, pa.nulls(count, field.type)) for field in CATALOG_SCHEMA]
    return pa.table(columns, schema=CATALOG_SCHEMA)


# Measured.


def step(steps: Steps, name: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    found = work()
    steps[name] = round(time.perf_counter() - started, 2)
    return found


def walk(folder: Path, count: int) -> Steps:
    steps: Steps = {}
    listing = step(steps, "list", lambda: list_sources([Source(name="made", url=str(folder / "tree"))]))
    check(len(listing.entries), count)
    return steps


def read_list(name: str) -> Callable[[Path, int], Steps]:
    def measured(folder: Path, count: int) -> Steps:
        steps: Steps = {}
        source = PLACE.model_copy(update={"inventory": str(folder / name)})
        check(len(step(steps, "list", lambda: list_sources([source])).entries), count)
        return steps

    return measured


def plan(todo_of: Callable[[int], int]) -> Callable[[Path, int], Steps]:
    """From the list of a night to its plan. todo_of: how many of so many entries are to do."""

    def measured(folder: Path, count: int) -> Steps:
        steps: Steps = {}
        store = Store(str(folder / "root"))
        source = PLACE.model_copy(update={"inventory": str(folder / "list.parquet")})
        listing = step(steps, "list", lambda: list_sources([source]))
        step(steps, "save listing", lambda: listing.save(store))
        catalog = step(steps, "catalog", lambda: load_catalog(store, ENCODER))
        standing = step(steps, "standing", lambda: standing_rows(listing.entries, catalog))
        todo = step(steps, "to do", lambda: spans_to_do(listing.entries, standing, catalog))
        check(len(todo), todo_of(count))
        made = step(steps, "plan", lambda: make_plan(ENCODER, todo, DEFAULT_LIMITS))
        step(steps, "save plan", lambda: save_plan(store, ENCODER, made, [PLACE]))
        return steps

    return measured


def check(found: int, wanted: int) -> None:
    if found != wanted:
        raise SystemExit(f"{found} entries were found, {wanted} are there")


CASES: dict[str, tuple[Callable[[Path, int], None], Callable[[Path, int], Steps]]] = {
    "walk": (make_tree, walk),
    "inventory": (make_inventory, read_list("list.parquet")),
    "csv": (partial(make_inventory, csv=True), read_list("list.csv")),
    "first": (make_inventory, plan(lambda count: count)),
    "again": (make_night, plan(lambda count: -(-count // 100))),
}


def in_process(task: str, case: str, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.entries", "--task", task, "--cases", case, "--folder", str(folder)]
    done = subprocess.run([*command, "--entries", str(count)], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(case: str, folder: Path, count: int) -> dict[str, Any]:
    """Seconds by step, `total_s` and `peak_mb` of the process that took them; entries."""
    folder = folder / case
    folder.mkdir()
    in_process("make", case, folder, count)
    return in_process("measure", case, folder, count) | {"entries": count}


@click.command()
@click.option("--files", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Of the case walk.")
@click.option("--entries", type=click.IntRange(min=100), default=FULL, show_default=True, help="Of the other cases.")
@click.option("--cases", default=",".join(CASES), show_default=True)
@click.option("--task", type=click.Choice(["make", "measure"]), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to make them. Default: temporary.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def main(files: int, entries: int, cases: str, task: str | None, folder: Path | None, as_json: bool) -> None:
    """Measure the cases. Exit 1 if listing and planning ten million entries would miss its goals."""
    if task is not None and folder is not None:
        make, work = CASES[cases]
        if task == "make":
            make(folder, entries)
            click.echo("{}")
        else:
            before = resident_bytes()
            steps = work(folder, entries)
            figures = {"total_s": round(sum(steps.values()), 2), "peak_mb": peak_bytes() // 10**6}
            click.echo(json.dumps({"steps": steps, "before_mb": before // 10**6} | figures))
        return
    with tempfile.TemporaryDirectory(prefix="sif-batch-entries-", dir=folder) as made:
        found = {case: measure(case, Path(made), files if case == "walk" else entries) for case in cases.split(",")}
    if as_json:
        click.echo(json.dumps(found))
    else:
        table = Table("case", "entries", "seconds", "peak MB", "of it", box=box.SIMPLE_HEAD)
        for case, row in found.items():
            named = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["steps"].items())
            table.add_row(case, f"{row['entries']:,}", f"{row['total_s']:.1f}", str(row["peak_mb"]), named)
        Console(highlight=False, width=140).print(table)
    sys.exit(0 if all(meets(case, row) for case, row in found.items()) else 1)


def meets(case: str, row: dict[str, Any]) -> bool:
    """Whether ten million would take no more than the goals, were each to take as much."""
    goal, times = INVENTORY_GOAL_S if case in ("inventory", "csv") else GOAL_S, FULL / row["entries"]
    peak_mb = row["before_mb"] + times * (row["peak_mb"] - row["before_mb"])
    return bool(times * row["total_s"] <= goal and peak_mb <= GOAL_MB)


if __name__ == "__main__":
    main()

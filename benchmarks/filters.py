"""Filters on a release of many rows: how good the answers are beside brute force, and what they cost.

python -m benchmarks.filters [--rows 1000000] [--scratch DIR] [--json]

Made-up vectors; a filter lets through folders, whose rows lie anywhere, or all that is nearest to sixty images, half of
the queries being others, to which all of it is far.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import synthetic_roots
from sif_batch.query.index import Index

DIMENSION, PART, QUERIES, K, BLOCK = 1280, 1000, 30, 10, 50_000
SHARES = (0.01, 0.033, 0.04, 0.1, 0.5, 0.8)  # of all folders
TOGETHER, SEEDS = 0.1, 60  # of all rows


def make(folder: Path, rows: int) -> None:
    store, encoder = synthetic_roots.make_root(folder)
    synthetic_roots.in_processes("parts", rows // PART, folder, encoder, DIMENSION, PART)
    synthetic_roots.write_listing(store, [PART] * (rows // PART), {})
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "index", str(folder), "--no-report"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def similarities(index: Index, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(q, n) float32, a query to itself aside, by brute force."""
    asked = index.vectors_of(queries)
    starts = range(0, len(rows), BLOCK)
    found = np.hstack([asked @ index.vectors_of(rows[start : start + BLOCK]).T for start in starts])
    return np.where(queries[:, None] == rows, -2, found)


def measure(index: Index) -> dict[str, Any]:
    """Figures of each filter, by what it is."""
    random, everything = np.random.default_rng(1), np.arange(len(index))
    queries = random.choice(everything, QUERIES, replace=False)
    nearest = similarities(index, random.choice(everything, SEEDS, replace=False), everything).max(axis=0)
    together = np.sort(np.argsort(-nearest)[: int(TOGETHER * len(index))])
    keys = index.column("key")
    filters: dict[str, Any] = {"none": None}
    filters |= {f"{share:.1%} of the folders": f"folder < '{int(share * len(index) / PART):05d}'" for share in SHARES}
    filters[f"the {TOGETHER:.0%} nearest to {SEEDS}"] = pc.field("key").isin(keys.take(pa.array(together)))
    found = {}
    for name, where in filters.items():
        rows = everything if where is None else index.rows_where(where)
        if len(rows) <= K:
            continue
        asked = queries
        if isinstance(where, pc.Expression):
            asked = np.concatenate([queries[: QUERIES // 2], random.choice(together, QUERIES // 2, replace=False)])
        best = -np.partition(-similarities(index, asked, rows), K - 1, axis=1)[:, K - 1]
        hits, seconds = [], []
        for query in asked.tolist():
            key = keys[query].as_py()
            began = time.perf_counter()
            hits.append(index.search(key=key, k=K, where=where))
            seconds.append(time.perf_counter() - began)
        outside = set(index.rows_of([hit.key for answer in hits for hit in answer]).tolist()) - set(rows.tolist())
        good = [
            sum(hit.similarity >= limit - 2e-5 for hit in answer) / K for answer, limit in zip(hits, best, strict=True)
        ]
        found[name] = {
            "rows": len(rows),
            "outside": len(outside),
            "recall_at_10": round(float(np.mean(good)), 4),
            "first_ms": round(1000 * seconds[0], 1),
            "median_ms": round(1000 * float(np.median(seconds[1:])), 1),
            "worst_ms": round(1000 * max(seconds[1:]), 1),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scratch", type=Path, help="keep the ROOT there, and take what is there already")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.scratch or Path(temporary)
        if not (folder / "LATEST").exists():
            make(folder, options.rows)
        found = measure(Index.open(folder))
    if options.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name:24} {', '.join(f'{what} {value:,}' for what, value in figures.items())}")


if __name__ == "__main__":
    main()

"""peer: sif-batch beside autofaiss, built and asked on the same synthetic vectors."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import synthetic_roots
from benchmarks.index.goals import GOAL_RECALL
from benchmarks.index.processes import REPOSITORY, ROUNDS, K, apart, sif_batch

AUTOFAISS = ["autofaiss==2.18.0", "faiss-cpu==1.8.0.post1", "numpy<2", "pyarrow<21", "setuptools<80"]


def peer(scratch: Path, rows: int, with_peer: bool = True) -> dict[str, Any]:
    queries_file, truth = make_vectors(scratch, rows)
    store, encoder = synthetic_roots.make_root(scratch / "root")
    size = 1000
    parts = -(-rows // size)
    synthetic_roots.in_processes("parts", parts, store.url, encoder, 512, scratch / "vectors.npy", size)
    synthetic_roots.write_listing(store, [min(size, rows - size * i) for i in range(parts)], {})
    ours = sif_batch("index", store.url, "--family", "ivf-pq", "--recall", "0.97")
    asked = apart("ask", store.url, queries_file, scratch / "truth.npy")
    chosen = asked["points"][0]
    enough = [point for point in asked["points"] if point["recall"] >= GOAL_RECALL] or [chosen]
    quickest = min(enough, key=lambda point: float(point["query_ms"]))
    found: dict[str, Any] = {
        "rows": rows,
        "build_s": {"sif-batch": ours["seconds"]["index"]},
        "cpu_s": {"sif-batch": ours["cpu_s"]},
        "seconds": ours["seconds"] | {"index": ours["index"]["seconds"]},
        "recall_at_10": {"sif-batch": chosen["recall"]},
        "query_ms": {"sif-batch": chosen["query_ms"]},
        "query_cpu_ms": {"sif-batch": chosen["query_cpu_ms"]},
        "quickest": quickest,
        "bytes_per_row": {"sif-batch": asked["bytes"] / rows},
        "shape": {"sif-batch": ours["index"]["shape"]},
        "gate": ours["gate"]["recall"],
        "curve": asked["points"][1:],
        "rss_mb": {"sif-batch": ours["rss_mb"]},
    }
    shutil.rmtree(scratch / "root")
    if with_peer:
        theirs = run_autofaiss(scratch, queries_file, asked["bytes"])
        found["build_s"]["autofaiss"], found["cpu_s"]["autofaiss"] = theirs["build_s"], theirs["cpu_s"]
        found["recall_at_10"]["autofaiss"] = recall(truth, np.load(scratch / "theirs.npy"))
        found["query_ms"]["autofaiss"] = theirs["query_ms"]
        found["bytes_per_row"]["autofaiss"] = theirs["bytes"] / rows
        found["shape"]["autofaiss"] = f"{theirs['key']}, {theirs['param']}"
        found["build_ratio"] = theirs["build_s"] / found["build_s"]["sif-batch"]
    return found


def make_vectors(scratch: Path, rows: int) -> tuple[Path, np.ndarray]:
    """Unit vectors for both, (rows, 512) in vectors.npy and embeddings/, 1,000 queries, and the least similarity that a
    right answer among their ten nearest has, (1000,)."""
    from sif_batch.machine.arithmetic import import_faiss

    faiss = import_faiss()
    made = faiss.contrib_datasets if hasattr(faiss, "contrib_datasets") else _datasets()
    data = made.SyntheticDataset(512, 0, rows, 1000)
    x, q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (data.get_database(), data.get_queries()))
    np.save(scratch / "vectors.npy", x.astype(np.float16))
    (scratch / "embeddings").mkdir()
    np.save(scratch / "embeddings/vectors.npy", x.astype(np.float16).astype(np.float32))
    np.save(scratch / "queries.npy", q.astype(np.float32))
    flat = faiss.IndexFlatIP(512)
    flat.add(x.astype(np.float16).astype(np.float32))
    similarity, _ = flat.search(q.astype(np.float32), K)
    np.save(scratch / "truth.npy", similarity)
    return scratch / "queries.npy", similarity[:, -1]


def _datasets() -> Any:
    from faiss.contrib import datasets

    return datasets


def recall(least: np.ndarray, similarities: np.ndarray) -> float:
    """Share of found rows that are as similar as the tenth of the truth. similarities: (q, 10), of what was found."""
    return float((similarities >= least[:, None] - 1e-5).mean())


def run_autofaiss(scratch: Path, queries: Path, limit_bytes: int) -> dict[str, Any]:
    script = REPOSITORY / "benchmarks/peers/autofaiss_build.py"
    command = [
        peer_python(),
        script,
        scratch / "embeddings",
        queries,
        f"{limit_bytes / 1e6:.0f}MB",
        os.cpu_count() or 1,
    ]
    rows = scratch / "theirs-rows.npy"
    done = subprocess.run([*map(str, command), str(rows)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"autofaiss failed:\n{done.stderr[-2000:]}")
    x = np.load(scratch / "embeddings/vectors.npy", mmap_mode="r")
    found = np.load(rows)
    similarities = [x[np.maximum(f, 0)] @ q - 9 * (f < 0) for f, q in zip(found, np.load(queries), strict=True)]
    np.save(scratch / "theirs.npy", np.stack(similarities))
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def peer_python() -> Path:
    """The Python of autofaiss's environment, installed if it is not there."""
    folder = REPOSITORY / "build/peers/autofaiss"
    if not (folder / ".installed").exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        python = str(folder / "bin/python")
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *AUTOFAISS], check=True)
        (folder / ".installed").touch()
    return folder / "bin/python"


def ask(root: str, queries: str, truth: str) -> dict[str, Any]:
    """Ask one query after the other at the release's operating point, then at each point of its curve, in rounds.

    What they find is judged by the similarities of the vectors themselves. A point's milliseconds are the median of
    its quickest round; `slowest_ms` that of its slowest.
    """
    from sif_batch.query.index import Index
    from sif_batch.query.segments import OperatingPoint

    index = Index.open(root)
    q, least = np.load(queries), np.load(truth)[:, -1]
    x = np.load(Path(truth).parent / "vectors.npy", mmap_mode="r")
    places = np.array([_place(key) for key in index.column("key").to_pylist()])
    index.ranked(q[:100], K)
    described = [index.manifest["operating_point"], *index.manifest["curve"]]
    points = [OperatingPoint(point["cells"], point["rerank"]) for point in described]

    def one_by_one(point: OperatingPoint) -> tuple[np.ndarray, list[np.ndarray]]:
        """The medians of wall and CPU milliseconds, (2,), and what each query finds."""
        elapsed, found = [], []
        for query in q:
            started, before = time.perf_counter(), time.process_time()
            ((rows, _),) = index.ranked(query[None], K, None, point)
            elapsed.append((time.perf_counter() - started, time.process_time() - before))
            found.append(places[rows])
        return 1000 * np.median(elapsed, axis=0), found

    rounds = [[one_by_one(point) for point in points] for _ in range(ROUNDS)]
    measured = []
    for point, asked in zip(points, zip(*rounds, strict=True), strict=True):
        exact = np.stack([x[f].astype(np.float32) @ query for f, query in zip(asked[0][1], q, strict=True)])
        medians = np.stack([medians for medians, _ in asked])
        wall, cpu = medians.min(axis=0).tolist()
        figures = {"recall": recall(least, exact), "query_ms": wall, "query_cpu_ms": cpu}
        figures["slowest_ms"] = float(medians[:, 0].max())
        measured.append({"cells": point.cells, "rerank": point.rerank} | figures)
    files = index.manifest["files"].items()
    in_use = sum(file["size"] for name, file in files if name.startswith("segments/"))
    return {"bytes": in_use, "points": measured}


def _place(key: str) -> int:
    _, part, row = key.removesuffix(".jpg").split("/")
    return 1000 * int(part) + int(row)

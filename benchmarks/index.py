"""The index stage: beside autofaiss, at tens of millions of rows, after a night's change, and on photos.

    python -m benchmarks.index [--rows 500000] [--cases peer millions hundred night photos families] [--json]

peer: faiss's SyntheticDataset of 512 dimensions, built by `sif-batch index` and by autofaiss 2.18 at the same size
limit, in an environment of its own (build/peers), which is made at the first run; one query at a time, one thread.
millions: 10M rows of 128 dimensions, assembled and opened. hundred: 100M made-up codes, in segments.
night: 1M rows of 256 dimensions in 1,000 parts, of which one changes. photos: mAP of an ivf-pq beside exact search.
families: each kind of index on the vectors of random crops of the photos. Up to 15 GB of disk, below --scratch.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import synthetic_roots

REPOSITORY = Path(__file__).parents[1]
AUTOFAISS = ["autofaiss==2.18.0", "faiss-cpu==1.8.0.post1", "numpy<2", "pyarrow<21", "setuptools<80"]
CASES = ("peer", "millions", "hundred", "night", "photos", "families")
PROMISED = ("build_s", "build_ratio", "recall_at_10", "query_ms")  # keys that stay at the report's top
K = 10
ROUNDS = 5  # of the same queries, one point after the other: a shared machine slows down for seconds
GOAL_RECALL = 0.97
FAMILIES: dict[str, list[str]] = {
    "flat": [],
    "ivf-flat": [],
    "ivf-pq": [],
    "ivf-pq, 8 bits": ["--bits", "8"],
    "ivf-rabitq": [],
    "hnsw": [],
}
CROPS, SMALLEST = 100, 0.3  # of each photo, and the side of a crop at least


def sif_batch(*arguments: object) -> dict[str, Any]:
    """Run the command line with --json; `rss_mb`: the peak of a run's process and of each of its workers, added up."""
    started, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "sif_batch.jobs.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise SystemExit(
            f"sif-batch {' '.join(map(str, arguments))} failed:\n{done.stdout[-600:]}{done.stderr[-1500:]}"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    memory = found.get("memory", {"main": 0, "workers": []})
    rss_mb = (memory["main"] + sum(memory["workers"])) / 2**20
    return found | {"wall_s": time.perf_counter() - started, "cpu_s": cpu_s, "rss_mb": rss_mb}


def apart(task: str, *arguments: object) -> dict[str, Any]:
    """A task of this module in a process of its own, for its memory."""
    command = [sys.executable, "-m", "benchmarks.index", "--task", task, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def anonymous_mb() -> float:
    """What this process has in memory beside the files that it maps."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


# peer: sif-batch and autofaiss.


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


# millions, hundred: assembling and opening.


def assemble_case(scratch: Path, rows: int, parts: int, kinds: Sequence[str]) -> dict[str, Any]:
    """kinds: "rows": codes and kept rows, "codes": no rows. What they hold is made up: assembling does not look."""
    store, encoder = synthetic_roots.make_root(scratch / "root")
    report: dict[str, Any] = {"of": rows, "parts": parts}
    sizes = np.bincount(synthetic_roots.spread(rows, parts)[0], minlength=parts).tolist()
    (scratch / "sizes.json").write_text(json.dumps(sizes))
    for kind in kinds:
        record = synthetic_roots.make_quantizer(store, encoder, 128, min(rows, 10**7), kind == "rows")
        synthetic_roots.in_processes("codes", parts, store.url, record.id, scratch / "sizes.json")
        found = apart("assemble", store.url, record.id, rows, parts, scratch / "release")
        opened = apart("open", scratch / "release")
        report[kind] = found | opened
        shutil.rmtree(scratch / "release")
        shutil.rmtree(store.path(f"codes/{record.id}"))
    return report


def assemble(root: str, quantizer_id: str, rows: str, parts: str, into: str) -> dict[str, Any]:
    from sif_batch.index.quantizer import load_quantizer
    from sif_batch.machine.memory import peak_bytes, resident_bytes
    from sif_batch.release.assembly import assemble as write_release
    from sif_batch.release.manifest import files_of, seal
    from sif_batch.release.placement import Placement
    from sif_batch.storage.store import Store

    store, n = Store(root), int(rows)
    quantizer = load_quantizer(store, quantizer_id)
    part, row, hashes = synthetic_roots.spread(n, int(parts))
    made_mb = resident_bytes() / 2**20
    started, before = time.perf_counter(), time.process_time()
    placement = Placement(part, row, hashes, [f"{number:05d}" for number in range(int(parts))])
    Path(into).mkdir()
    write_release(store, Path(into), quantizer, placement)
    assemble_s, cpu_s = time.perf_counter() - started, time.process_time() - before
    peak = peak_bytes() / 2**20
    write_images(Path(into) / "images.arrow", hashes)
    manifest = {"quantizer": {"id": quantizer_id, **quantizer.spec.model_dump(mode="json")}, "rows": n}
    manifest |= {
        "segments": len(list(Path(into, "segments").iterdir())),
        "operating_point": {"cells": 32, "rerank": 200},
    }
    seal(Path(into), manifest, files_of(Path(into)))
    codes_mb = sum(file.stat().st_size for file in Path(into).rglob("index.faiss")) / 2**20
    return {
        "assemble_s": assemble_s,
        "assemble_cpu_s": cpu_s,
        "peak_rss_mb": peak,
        "before_mb": made_mb,
        "codes_mb": codes_mb,
        "segments": manifest["segments"],
    }


def write_images(path: Path, hashes: np.ndarray) -> None:
    """images.arrow of made-up keys, batch by batch."""
    import pyarrow as pa

    schema = pa.schema(
        [(name, pa.large_string()) for name in ("key",)]
        + [("hash", pa.uint64())]
        + [(name, pa.large_string()) for name in ("uri", "source", "folder")]
    )
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, len(hashes), 16_384):
            some = hashes[start : start + 16_384]
            key = pa.array([f"made/{value:016x}.jpg" for value in some.tolist()], pa.large_string())
            plain = pa.repeat(pa.scalar("made", pa.large_string()), len(some))
            writer.write_batch(pa.record_batch([key, pa.array(some), key, plain, plain], schema=schema))


def open_release(folder: str) -> dict[str, Any]:
    from sif_batch.machine.memory import resident_bytes
    from sif_batch.query.index import Index

    before, used = resident_bytes() / 2**20, time.process_time()
    started = time.perf_counter()
    index = Index.open(folder)
    open_s, open_cpu_s = time.perf_counter() - started, time.process_time() - used
    queries = synthetic_roots.clustered(7, 20, index.dimension).astype(np.float32)
    asked = time.perf_counter()
    for query in queries:
        index.ranked(query[None], K)
    query_ms = 1000 * (time.perf_counter() - asked) / len(queries)
    return {
        "open_s": open_s,
        "open_cpu_s": open_cpu_s,
        "reader_mb": anonymous_mb(),
        "reader_before_mb": before,
        "query_ms": query_ms,
    }


# night: one part of 1,000 changes.


def night(scratch: Path, parts: int, size: int = 1000) -> dict[str, Any]:
    store, encoder = synthetic_roots.make_root(scratch / "root")
    synthetic_roots.in_processes("parts", parts, store.url, encoder, 256, size)
    synthetic_roots.write_listing(store, [size] * parts, {})
    first = sif_batch("index", store.url, "--family", "ivf-pq")
    synthetic_roots.write_part(store, encoder, 7, synthetic_roots.clustered(10**5, size, 256), "2")
    synthetic_roots.write_listing(store, [size] * parts, {7: "2"})
    second = sif_batch("index", store.url)
    return {
        "rows": parts * size,
        "full_s": first["seconds"]["index"],
        "one_part_s": second["seconds"]["index"],
        "one_part_seconds": second["index"]["seconds"],
        "wall_s": second["wall_s"],
        "recall_at_10": second["gate"]["recall_at_10"],
        "rss_mb": second["rss_mb"],
        "outcome": second["outcome"],
    }


# photos, families: real vectors.


def photos_case(scratch: Path, photos: Path) -> dict[str, Any]:
    sif_batch("run", photos, scratch / "root", "--family", "ivf-pq")
    report = sif_batch("evaluate", scratch / "root", "--labels", "folder")
    return {"map": report["map"], "map_exact": report["exact"]["map"], "queries": report["n_queries"]}


def families_case(scratch: Path, photos: Path, at_most: int) -> dict[str, Any]:
    """The families beside each other on the vectors of crops, at --recall .97."""
    count = make_crops(scratch, photos, at_most)
    store, encoder = synthetic_roots.make_root(scratch / "root")
    size = 1000
    parts = -(-count // size)
    synthetic_roots.in_processes("parts", parts, store.url, encoder, 1280, scratch / "vectors.npy", size)
    synthetic_roots.write_listing(store, [min(size, count - size * i) for i in range(parts)], {})
    report: dict[str, Any] = {"rows": count, "families": {}}
    for name, options in FAMILIES.items():
        found = sif_batch("index", store.url, "--family", name.split(",")[0], "--recall", "0.97", "--no-gate", *options)
        manifest = json.loads(Path(store.path(f"releases/{found['release']}/release.json")).read_bytes())
        report["families"][name] = {
            "build_s": found["seconds"]["index"],
            "recall_at_10": found["gate"]["recall_at_10"],
            "interval": found["gate"]["recall"]["interval"]["at_10"],
            "codes_scanned": manifest["codes_scanned"],
            "query_ms": found["index"]["query_ms"],
            "bytes_per_row": sum(f["size"] for n, f in manifest["files"].items() if n.startswith("segments/")) / count,
        }
        if options:  # a ROOT records them
            record = json.loads(store.read("root.json"))
            store.replace("root.json", json.dumps(record | {"index": {}}).encode())
    return report


def make_crops(scratch: Path, photos: Path, at_most: int) -> int:
    """vectors.npy: the default encoder's vectors of random crops, mirrored by half."""
    from PIL import Image

    from sif_batch.encoders.installed import built_in_spec
    from sif_batch.encoders.networks import BUILT_IN
    from sif_batch.encoders.runtime import Encoder

    encoder = Encoder(built_in_spec("efficientnet_lite0"), BUILT_IN["efficientnet_lite0"] / "model.onnx")
    random = np.random.default_rng(0)
    files = sorted(file for file in photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    each = min(CROPS, max(1, at_most // max(1, len(files))))
    found = []
    for file in files[: max(1, at_most // each)]:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        crops = []
        for _ in range(each):
            side = random.uniform(SMALLEST, 1, 2) * image.size
            left, top = random.uniform(0, 1, 2) * (image.size - side)
            crop = image.crop((int(left), int(top), int(left + side[0]) + 1, int(top + side[1]) + 1))
            crops.append(
                encoder.prepare(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop)
            )
        found.append(encoder.embed(np.stack(crops)))
    vectors = np.concatenate(found)
    np.save(scratch / "vectors.npy", vectors[random.permutation(len(vectors))].astype(np.float16))
    return len(vectors)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"ask": ask, "assemble": assemble, "open": open_release}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    share = min(1.0, given.rows / 500_000)  # --rows makes every case as small
    cases = {
        "peer": lambda folder: peer(folder, given.rows, not given.no_peer),
        "millions": lambda folder: assemble_case(folder, int(10_000_000 * share), 1000, ("rows", "codes")),
        "hundred": lambda folder: assemble_case(folder, int(100_000_000 * share), 2000, ("codes",)),
        "night": lambda folder: night(folder, max(10, int(1000 * share))),
        "photos": lambda folder: photos_case(folder, given.photos),
        "families": lambda folder: families_case(folder, given.photos, max(1000, int(20_000 * share))),
    }
    report: dict[str, Any] = {"cores": os.cpu_count()}
    for name in given.cases:
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="sif-batch-", dir=given.scratch) as folder:
            found = cases[name](Path(folder))
        report[name] = found
        if name == "peer":
            report |= {key: found[key] for key in PROMISED if key in found}
    return report


def goals(report: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What is asked for, what was reached, and whether it is enough."""
    rows: list[tuple[str, str, str, bool]] = []

    def goal(what: str, wanted: str, value: float, reached: bool, form: str = ".2f") -> None:
        rows.append((what, wanted, f"{value:{form}}", reached))

    if found := report.get("peer"):
        build, quickest = found["build_s"]["sif-batch"], found["quickest"]
        if "build_ratio" in found:
            goal("build, times faster than autofaiss", ">= 50", found["build_ratio"], found["build_ratio"] >= 50, ".1f")
        goal("build, seconds", "", build, True)
        reached = quickest["recall"]
        goal("recall@10, one query, one thread", ">= .97", reached, reached >= GOAL_RECALL, ".4f")
        goal("milliseconds a query there", "<= 0.3", quickest["query_ms"], quickest["query_ms"] <= 0.3, ".3f")
        size = found["bytes_per_row"]["sif-batch"]
        goal("bytes a row", "<= 560", size, size <= 560, ".1f")
    if found := report.get("millions"):
        for kind, limit in (("rows", 40), ("codes", 8)):
            spent = found[kind]["assemble_s"]
            goal(f"10M rows: assemble {kind}, s", f"<= {limit}", spent, spent <= limit)
        for kind in ("rows", "codes"):
            codes, peak = found[kind]["codes_mb"], found[kind]["peak_rss_mb"]
            goal(f"10M {kind}: peak MB", f"<= {2 * codes + 1024:.0f}", peak, peak <= 2 * codes + 1024, ".0f")
            opened, reader = found[kind]["open_s"], found[kind]["reader_mb"]
            goal(f"10M {kind}: open, s", "<= 1", opened, opened <= 1)
            goal(f"10M {kind}: reader MB", f"<= {codes + 300:.0f}", reader, reader <= codes + 300, ".0f")
    if found := report.get("hundred"):
        spent = found["codes"]["assemble_s"] + found["codes"]["open_s"]
        goal("100M codes: assemble and open, s", "<= 180", spent, spent <= 180, ".1f")
        peak = max(found["codes"]["peak_rss_mb"], found["codes"]["reader_mb"]) / 1024
        goal("100M codes: peak GB", "<= 16", peak, peak <= 16, ".1f")
    if found := report.get("night"):
        goal("one part of 1,000 changed: index stage, s", "<= 8", found["one_part_s"], found["one_part_s"] <= 8)
    if found := report.get("photos"):
        lost = found["map_exact"] - found["map"]
        goal("photos, ivf-pq: mAP lost to exact search", "<= .005", lost, lost <= 0.005, ".4f")
    return rows


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title="index", title_justify="left")
    for column in ("", "goal", "reached", ""):
        table.add_column(column)
    for what, wanted, value, reached in goals(report):
        table.add_row(what, wanted, value, "" if reached else "missed")
    console.print(table)
    if found := report.get("peer"):
        for name, shape in found["shape"].items():
            figures = (found["build_s"][name], found["recall_at_10"][name], found["query_ms"][name])
            console.print(f"{name}: build {figures[0]:.1f} s, recall@10 {figures[1]:.4f}, {figures[2]:.3f} ms; {shape}")
        for point in found["curve"]:
            console.print(f"  {point}")
    if found := report.get("families"):
        table = Table(title=f"families, {found['rows']} crops of photos, --recall .97", title_justify="left")
        for column in ("", "build s", "recall@10", "codes scanned", "ms a query", "bytes a row"):
            table.add_column(column, justify="right" if column else "left")
        for name, f in found["families"].items():
            row = f"{f['build_s']:.1f}", f"{f['recall_at_10']:.4f}", f"{f['codes_scanned']:.0f}", f"{f['query_ms']:.3f}"
            table.add_row(name, *row, f"{f['bytes_per_row']:.0f}")
        console.print(table)


def main() -> None:
    if sys.argv[1:2] == ["--task"]:
        print(json.dumps(TASKS[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000, help="of the peer case; fewer make every case as small")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--no-peer", action="store_true", help="leave autofaiss out")
    parser.add_argument("--photos", type=Path, default=REPOSITORY / "examples" / "photos", help="a folder per label")
    parser.add_argument("--scratch", type=Path, help="where the data is made; default: the system's folder")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report = measure(given)
    print(json.dumps(report)) if given.json else show(report)


if __name__ == "__main__":
    main()

"""How long the duplicates of a large collection take, and how many of those that were put there are found.

    python -m benchmarks.duplicates [--rows 1000000] [--dimension 1280] [--scratch DIR] [--build] [--json]

Made-up vectors in 1,000 clusters, a part for every 1,000; of each hundred rows one is another one's bytes, and two are
another one's vector with some noise, at a cosine of about 0.98. The release is made in DIR, once; --build does no more.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import synthetic_roots
from benchmarks.measuring import REPOSITORY, watch
from sif_batch.digests import digest
from sif_batch.index.codes import codes_path
from sif_batch.index.quantize_part import encode_codes
from sif_batch.index.quantizer import load_quantizer
from sif_batch.release.assembly import assemble
from sif_batch.release.manifest import files_of, seal
from sif_batch.release.placement import Placement
from sif_batch.storage.store import Store

THRESHOLD = 0.95
EXACT, NEAR = 100, 50  # one row of so many is a copy, is nearly one
NOISE = 0.2


def copied(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a part's rows the copies, and those nearly so, (m,) each; they stand at its end, their originals at its
    beginning, in the same order."""
    exact = np.arange(size - size // EXACT, size)
    near = np.arange(size - size // EXACT - size // NEAR, size - size // EXACT)
    return exact, near


def vectors_of_part(number: int, size: int, dimension: int) -> np.ndarray:
    """(size, dimension) float16."""
    x = synthetic_roots.clustered(number, size, dimension).astype(np.float32)
    exact, near = copied(size)
    x[exact] = x[: len(exact)]
    spread = np.linalg.norm(x[: len(near)], axis=1, keepdims=True) / np.sqrt(dimension)
    noise = np.random.default_rng(number).standard_normal((len(near), dimension), np.float32)
    x[near] = x[: len(near)] + NOISE * spread * noise
    return x.astype(np.float16)


def write_codes(store: Store, quantizer_id: str, numbers: range, sizes: list[int]) -> None:
    quantizer = load_quantizer(store, quantizer_id)
    for number in numbers:
        x = vectors_of_part(number, sizes[number], quantizer.spec.dimension)
        data = encode_codes(quantizer, np.arange(len(x), dtype=np.uint16), x, "")
        store.create(codes_path(quantizer_id, f"{number:05d}"), data)


def write_images(path: Path, part: np.ndarray, row: np.ndarray, hashes: np.ndarray, sizes: list[int]) -> None:
    """images.arrow: keys that say part and row, and sha256 that copies share."""
    text = pa.large_string()
    schema = pa.schema([("key", text), ("hash", pa.uint64()), ("uri", text)])
    schema = schema.append(pa.field("sha256", pa.binary(32))).append(pa.field("folder", text))

    firsts = [copied(size)[0].min(initial=size) for size in sizes]
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, len(hashes), 16_384):
            at = slice(start, start + 16_384)
            names = list(zip(part[at].tolist(), row[at].tolist(), strict=True))
            keys = pa.array([f"made/{p:05d}/{r:05d}.jpg" for p, r in names], text)
            same = [(p, r - firsts[p] if r >= firsts[p] else r) for p, r in names]
            sha = pa.array([bytes.fromhex(digest(f"{p} {r}".encode())) for p, r in same], pa.binary(32))
            folder = pa.array([f"{p:05d}" for p, _ in names], text)
            writer.write_batch(pa.record_batch([keys, pa.array(hashes[at]), keys, sha, folder], schema=schema))


def make_release(scratch: Path, rows: int, dimension: int) -> Path:
    """The release folder, made unless it stands."""
    release, parts = scratch / "release", max(1, rows // 1000)
    if (release / "release.json").exists():
        return release
    store, encoder = synthetic_roots.make_root(scratch / "root")
    record = synthetic_roots.make_quantizer(store, encoder, dimension, rows, True)
    part, row, hashes = synthetic_roots.spread(rows, parts)
    sizes = np.bincount(part, minlength=parts).tolist()
    (scratch / "sizes.json").write_text(json.dumps(sizes))
    command = [sys.executable, "-m", "benchmarks.duplicates", "--codes", store.url, record.id, scratch / "sizes.json"]
    running = [subprocess.Popen([*map(str, command), str(first)], cwd=REPOSITORY) for first in range(2)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("making codes failed")
    release.mkdir()
    quantizer = load_quantizer(store, record.id)
    assemble(store, release, quantizer, Placement(part, row, hashes, [f"{number:05d}" for number in range(parts)]))
    write_images(release / "images.arrow", part, row, hashes, sizes)
    shutil.rmtree(store.path("codes"))
    manifest = {"quantizer": {"id": record.id, **record.spec.model_dump(mode="json")}, "rows": rows}
    manifest |= {"segments": len(list((release / "segments").iterdir()))}
    seal(release, manifest | {"operating_point": {"cells": 32, "rerank": 200}}, files_of(release))
    return release


def found_share(table: pa.Table, rows: int) -> dict[str, float]:
    """Of the copies that were put there, exact and near, the share that is in its original's group."""
    parts = max(1, rows // 1000)
    sizes = np.bincount(synthetic_roots.spread(rows, parts)[0], minlength=parts).tolist()
    group = dict(zip(table["key"].to_pylist(), table["group"].to_pylist(), strict=True))
    found: dict[str, list[bool]] = {"exact": [], "near": []}
    for part, size in enumerate(sizes):
        for kind, copies in zip(found, copied(size), strict=True):
            for original, copy in enumerate(copies.tolist()):
                own = group.get(f"made/{part:05d}/{copy:05d}.jpg")
                found[kind].append(own is not None and own == group.get(f"made/{part:05d}/{original:05d}.jpg"))
    return {kind: round(float(np.mean(good)), 5) for kind, good in found.items()}


def measure(scratch: Path, rows: int, dimension: int, only_build: bool) -> dict[str, Any]:
    began = time.perf_counter()
    release = make_release(scratch, rows, dimension)
    report: dict[str, Any] = {"rows": rows, "dimension": dimension, "made_s": round(time.perf_counter() - began, 1)}
    if only_build:
        return report
    out = scratch / "duplicates.parquet"
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "duplicates", str(release), "--threshold", str(THRESHOLD)]
    found = watch([*command, "--out", str(out), "--json"])
    report |= {name: found[name] for name in ("groups", "exact", "near", "largest", "seconds")}
    return report | {"peak_mb": round(found["peak_mb"]), "found": found_share(pq.read_table(out), rows)}


def main() -> None:
    if sys.argv[1:2] == ["--codes"]:
        root, quantizer, sizes, first = sys.argv[2:]
        numbers = json.loads(Path(sizes).read_text())
        write_codes(Store(root), quantizer, range(int(first), len(numbers), 2), numbers)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=1280)
    parser.add_argument("--scratch", type=Path, help="where the release is made and stays; default: a temporary folder")
    parser.add_argument("--build", action="store_true", help="make the release, and no more")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sif-batch-") as temporary:
        scratch = given.scratch or Path(temporary)
        scratch.mkdir(exist_ok=True)
        report = measure(scratch, given.rows, given.dimension, given.build)
    print(json.dumps(report, indent=None if given.json else 2))


if __name__ == "__main__":
    main()

"""millions, hundred: releases of made-up codes, assembled and opened."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import synthetic_roots
from benchmarks.index.processes import K, anonymous_mb, apart


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

"""night: the index stage after one part of many has changed."""

from pathlib import Path
from typing import Any

from benchmarks import synthetic_roots
from benchmarks.index.processes import sif_batch


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

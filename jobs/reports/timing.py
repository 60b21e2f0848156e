"""How the time of embedding and of asking grows with the number of images."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.errors import SifBatchError
from sif_batch.evaluation.rankings import METRICS
from sif_batch.failures import ImageError
from sif_batch.index.quantizer import load_quantizer
from sif_batch.ledger.catalog import Catalog
from sif_batch.query.index import Index
from sif_batch.release.assembly import assemble
from sif_batch.release.placement import Placement
from sif_batch.release.write_files import write_images
from sif_batch.sources.originals import read_uri
from sif_batch.storage.store import Store

K = 10
TIMED_IMAGES = (1, 4, 16, 64)
TIMED_QUERIES = 64
TIMED_SHARES = (8, 4, 2, 1)  # of which the rows are a part
MOST_TIMED_ROWS = 200_000


def time_images(index: Index) -> list[dict[str, Any]] | None:
    """Seconds from a file to its vector, one thread, for more and more images. None: they cannot be read from here."""
    uris = index.column("uri").slice(0, max(TIMED_IMAGES)).to_pylist()
    try:
        data = [read_uri(uri) for uri in uris]
        index.embed(data[:1])
    except (ImageError, SifBatchError, OSError):
        return None
    timed = []
    for count in sorted({min(count, len(data)) for count in TIMED_IMAGES}):
        started = time.perf_counter()
        index.embed([read_uri(uri) for uri in uris[:count]])
        spent = time.perf_counter() - started
        timed.append({"images": count, "seconds": round(spent, 4), "seconds_per_image": round(spent / count, 5)})
    return timed


def time_queries(
    store: Store, index: Index, catalog: Catalog, live: pa.Table, vectors: np.ndarray
) -> list[dict[str, Any]]:
    """Seconds of one query after the other for ten images, of releases of ever more of these rows, and exactly."""
    top = min(len(live), MOST_TIMED_ROWS)
    manifest = index.manifest
    quantizer = load_quantizer(store, manifest["quantizer"]["id"])
    asked = vectors[:TIMED_QUERIES].astype(np.float32)
    timed = []
    for rows in sorted({max(1, top // share) for share in TIMED_SHARES}):
        with tempfile.TemporaryDirectory(prefix="sif-batch-") as folder:
            scratch = Path(folder)
            some = live.slice(0, rows).combine_chunks()
            assemble(store, scratch, quantizer, Placement.of(some, catalog.parts))
            write_images(some, scratch / "images.arrow")
            sizes = {"rows": rows, "segments": len(list((scratch / "segments").iterdir())), "files": None}
            part = Index(Store(str(scratch)), "", manifest | sizes)
            ours = _seconds(lambda q, part=part: part.ranked(q[None], K), asked)
        unit = METRICS["cosine"](vectors[:rows]).rows
        exact = _seconds(lambda q, unit=unit: np.argpartition(-(unit @ q), min(K, len(unit) - 1))[:K], asked)
        timed.append({"rows": rows, "seconds_per_query": ours, "seconds_per_exact_query": exact})
    return timed


def _seconds(ask: Any, queries: np.ndarray) -> float:
    """The median over the queries."""
    ask(queries[0])
    spent = []
    for query in queries:
        started = time.perf_counter()
        ask(query)
        spent.append(time.perf_counter() - started)
    return round(float(np.median(spent)), 6)

"""Made-up collections: vectors in clusters, each decided by its path alone; parts, ROOTs and releases of them.

Nothing here decodes an image or runs a network. The arithmetic under test is never used to make expectations.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import settings

from sif_batch.config import GateSettings, IndexSettings, RootRecord, Source
from sif_batch.gate import checks, operating_point
from sif_batch.gate.ground_truth import exact_neighbours
from sif_batch.index.feasibility import Prospect
from sif_batch.index.quantize_part import quantize_part
from sif_batch.index.quantizer import QuantizerRecord, load_quantizer
from sif_batch.index.quantizer_spec import choose_spec
from sif_batch.index.recall import Truth
from sif_batch.index.train_quantizer import train_quantizer
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.live import live_rows
from sif_batch.ledger.parts import encode_part, part_path
from sif_batch.ledger.plan import DEFAULT_LIMITS, SPAN_SCHEMA, part_name
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.query.index import Index
from sif_batch.release import history
from sif_batch.release.assembly import Assembled
from sif_batch.release.assembly import assemble as assemble_segments
from sif_batch.release.manifest import MANIFEST, files_of, inputs_digest, seal
from sif_batch.release.placement import SEGMENT_ROWS, Placement
from sif_batch.release.write_files import copy_encoder, write_images
from sif_batch.sources.files import find_files
from sif_batch.sources.listing import LISTING_SCHEMA
from sif_batch.sources.names import hash_of, key_of
from sif_batch.storage.store import Store

ENCODER = "synthetic-0123456789ab"
DIMENSION = 48
CLUSTERS = 12
SOURCE = Source(name="photos", url="/photos")

import_faiss().omp_set_num_threads(1)  # the same bytes, and tests beside a busy neighbour take a tenth of the time

# Hypothesis without its database (the tests leave nothing behind), without deadlines (the cores are shared) and
# with the same examples every time.
checked = settings(deadline=None, database=None, derandomize=True, max_examples=50)


@dataclass(frozen=True)
class Row:
    """A row of a part. vector: None: as its path decides; kind: None: good, else why it failed."""

    path: str
    version: str = "1-1"
    attempt: int = 1
    kind: str | None = None
    vector: np.ndarray | None = field(default=None, compare=False)
    source: str = "photos"

    def encoded(self) -> dict[str, Any]:
        """As `encode_part` takes it."""
        key = key_of(self.source, self.path)
        made = vector_of(self.path) if self.vector is None else self.vector
        return {
            "key": key,
            "source": self.source,
            "path": self.path,
            "member": None,
            "version": self.version,
            "attempt": self.attempt,
            "hash": hash_of(key),
            "sha256": hashlib.sha256(f"{self.path}{self.version}".encode()).digest(),
            "width": 300,
            "height": 200,
            "fields": None,
            "embedding": None if self.kind else made.astype(np.float16),
            "error_kind": self.kind,
            "error": f"it is {self.kind}" if self.kind else None,
        }


def seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def vector_of(path: str, dimension: int = DIMENSION) -> np.ndarray:
    """(dimension,) float16: the centre of the path's cluster and some noise of its own."""
    random = np.random.default_rng(seed_of(path))
    centre = np.random.default_rng(random.integers(CLUSTERS)).normal(size=dimension)
    return (centre + 0.6 * random.normal(size=dimension)).astype(np.float16)


def paths(count: int, start: int = 0) -> list[str]:
    """Paths in four folders."""
    return [f"{'abcd'[i % 4]}/{i:05d}.jpg" for i in range(start, start + count)]


def spans_of(rows: Sequence[Row]) -> pa.Table:
    """SPAN_SCHEMA: the spans that these rows come from, in their order."""
    spans = [
        {
            "source": row.source,
            "path": row.path,
            "size": 1,
            "version": row.version,
            "first": 0,
            "last": 0,
            "end": True,
            "attempt": row.attempt,
            "duplicate": row.kind == "duplicate_key",
        }
        for row in rows
    ]
    return pa.Table.from_pylist(spans, schema=SPAN_SCHEMA)


def part_bytes(rows: Sequence[Row], fingerprint: str = "this") -> bytes:
    return encode_part([row.encoded() for row in rows], spans_of(rows).to_pylist(), ENCODER, {"machine": fingerprint})


def write_part(store: Store, rows: Sequence[Row], name: str | None = None, fingerprint: str = "this") -> str:
    """Put a part of these rows into ROOT, under its own name or another. Returns the name."""
    name = name or part_name(ENCODER, spans_of(rows).to_pylist(), DEFAULT_LIMITS)
    store.create(part_path(ENCODER, name), part_bytes(rows, fingerprint))
    return name


def write_parts(store: Store, rows: Sequence[Row], size: int) -> list[str]:
    """Parts of `size` rows each."""
    return [write_part(store, rows[start : start + size]) for start in range(0, len(rows), size)]


def entries_of(rows: Iterable[Row]) -> pa.Table:
    """The listing that names these rows, in order of (source, path)."""
    entries = sorted({(row.source, row.path, row.version) for row in rows})
    columns = [{"source": source, "path": path, "size": 1, "version": version} for source, path, version in entries]
    return pa.Table.from_pylist(columns, schema=LISTING_SCHEMA)


def make_root(url: str | Path, rows: Sequence[Row], size: int = 100) -> Store:
    """A ROOT with an encoder that is none, and parts of `size` rows."""
    store = Store(str(url))
    record = RootRecord(sources=(SOURCE,), encoder=ENCODER, index=IndexSettings())
    store.create("root.json", record.canonical())
    store.create(f"encoders/{ENCODER}/model.onnx", b"no network")
    store.create(f"encoders/{ENCODER}/encoder.json", b"{}")
    write_parts(store, rows, size)
    return store


@dataclass(frozen=True)
class Live:
    """The live rows of a ROOT. parts: their parts' names by number; table: in order of (hash, key), with uri."""

    parts: list[str]
    fingerprints: list[str]
    table: pa.Table

    @property
    def keys(self) -> list[str]:
        return self.table["key"].to_pylist()

    @property
    def used(self) -> list[str]:
        """The parts that hold live rows, in order of their numbers."""
        return [self.parts[number] for number in sorted(pc.unique(self.table["part"]).to_pylist())]


def find_live(store: Store, entries: pa.Table, sources: Sequence[Source] = (SOURCE,), encoder: str = ENCODER) -> Live:
    catalog = load_catalog(store, encoder)
    standing = standing_rows(entries, catalog)
    return Live(catalog.parts, catalog.fingerprints, live_rows(catalog, standing.row[standing.good], sources))


def quantize(
    store: Store, live: Live, family: str = "flat", encoder: str = ENCODER, **changes: object
) -> QuantizerRecord:
    """Train a quantizer and make the codes of all parts that hold live rows."""
    settings = IndexSettings.model_validate({"family": family} | changes)
    record = train_quantizer(store, encoder, settings, live.parts, live.table, None)
    for part in live.used:
        quantize_part(lambda report: None, store.url, record.id, part)
    return record


def record_of(**changes: object) -> QuantizerRecord:
    """A record of an IVF that was trained for 20,000 rows, or of another shape."""
    spec = choose_spec(IndexSettings(), "ivf-pq", ENCODER, DIMENSION, 20_000)
    return QuantizerRecord(
        id="x",
        spec=spec.model_copy(update=changes),
        trained_for_rows=20_000,
        training_rows=1,
        held_out=1,
        vectors_sha256="",
        explained=1,
        prospect=Prospect(rows=0, k=10),
        service=None,
        seen_to=0,
        fingerprint={},
        files={},
    )


@dataclass(frozen=True)
class Placed:
    """What the gate needs of an assembled release."""

    placement: Placement
    assembled: Assembled


def assemble(
    store: Store, live: Live, record: QuantizerRecord, into: Path, max_rows: int = SEGMENT_ROWS
) -> tuple[dict[str, Any], Placed]:
    """A release, not sealed, in the folder `into`: what its manifest would say so far, and what was placed where."""
    into.mkdir(parents=True)
    placement = Placement.of(live.table, live.parts)
    assembled = assemble_segments(store, into, load_quantizer(store, record.id), placement, max_rows)
    write_images(live.table, into / "images.arrow")
    copy_encoder(store, record.spec.encoder, into / "encoder")
    decided: dict[str, Any] = {
        "encoder": record.spec.encoder,
        "quantizer": {"id": record.id, **record.spec.model_dump(mode="json")},
        "settings": IndexSettings().model_dump(mode="json"),
        "rows": len(live.table),
        "listed": len(live.table),
        "failed": 0,
    }
    inputs = inputs_digest(live.table, live.fingerprints, decided)
    manifest = decided | {"inputs": inputs, "segments": len(list((into / "segments").iterdir()))}
    return manifest, Placed(placement, assembled)


def find_truth(store: Store, live: Live, record: QuantizerRecord, placed: Placed) -> Truth:
    """The exact neighbours of the held-out queries."""
    quantizer = load_quantizer(store, record.id)
    number = {key: i for i, key in enumerate(live.keys)}
    own = np.array([number.get(key, -1) for key in quantizer.query_keys], np.int64)
    return exact_neighbours(store, quantizer, placed.placement, placed.assembled, own)


def measure(
    store: Store,
    live: Live,
    record: QuantizerRecord,
    folder: Path,
    manifest: dict[str, Any],
    placed: Placed,
    target: float = 0.95,
    k: int = 10,
) -> tuple[dict[str, Any], Truth]:
    """The operating point and recall of an assembled release, and the truth that they were measured by."""
    quantizer = load_quantizer(store, record.id)
    index = Index(Store(str(folder)), "", manifest)
    truth = find_truth(store, live, record, placed)
    curve = operating_point.measure_curve(index, quantizer, truth, k, target)
    point = operating_point.choose_point(curve, target)
    measured = {
        "recall": checks.measure_recall(index, quantizer, truth, point, k, target),
        "operating_point": {"cells": point.cells, "rerank": point.rerank} if point else None,
        "codes_scanned": 0,
        "curve": [point.describe() for point in curve],
        "sanity": checks.check_sanity(placed.assembled, live.table["sha256"]),
        "finite": checks.all_finite(index),
    }
    return measured, truth


def build_release(
    store: Store,
    entries: pa.Table,
    scratch: Path,
    family: str = "flat",
    max_rows: int = SEGMENT_ROWS,
    sources: Sequence[Source] = (SOURCE,),
    encoder: str = ENCODER,
) -> str:
    """Train, quantize, assemble, measure, seal and publish; without Beam or child. Returns the release id."""
    live = find_live(store, entries, sources, encoder)
    record = quantize(store, live, family, encoder)
    folder = scratch / "release"
    manifest, placed = assemble(store, live, record, folder, max_rows)
    measured, _ = measure(store, live, record, folder, manifest, placed)
    sealed = seal(folder, manifest | measured, files_of(folder))
    assert not checks.judge(GateSettings(), manifest | measured)
    store.fs.makedirs(store.path("releases"), exist_ok=True)
    assert store.create_folder(f"releases/{sealed}", folder, MANIFEST)
    history.publish(store, sealed, history.read_top(store), "passed")
    return sealed


def exact_order(vectors: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brute force in float64: rows by falling cosine similarity, and the similarities in order of rows."""
    x, q = vectors.astype(np.float64), query.astype(np.float64)
    similarities = (x @ q) / (np.linalg.norm(x, axis=1) * np.linalg.norm(q))
    return np.lexsort((np.arange(len(x)), -similarities)), similarities


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file, counted from its start."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def memory_copy(folder: Path, url: str) -> Callable[[], None]:
    """Copy a local folder into fsspec's memory file system; returns what takes it away again."""
    store = Store(url)
    for file in (f for f in folder.rglob("*") if f.is_file()):
        store.fs.pipe_file(store.path(file.relative_to(folder).as_posix()), file.read_bytes())
    return lambda: store.fs.rm(store.base, recursive=True)


def manifest_of(store: Store, sealed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read(f"releases/{sealed}/{MANIFEST}"))
    return found


def listed(source: Source, *told: Callable[[int], None]) -> tuple[list[str], list[int], list[str], int]:
    """What `find_files` finds: paths, sizes, versions, and how many were ignored."""
    table, ignored = find_files(source, *told)
    return table["path"].to_pylist(), table["size"].to_pylist(), table["version"].to_pylist(), ignored

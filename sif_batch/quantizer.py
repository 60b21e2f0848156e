"""The quantizer: sampled, trained, and applied part by part. Vectors to cells, codes and rows for re-ranking."""

import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import Frozen, IndexSettings, SifBatchError, canonical_json
from sif_batch.kernels import import_faiss, project, quantizing_fingerprint
from sif_batch.parts import FIRST_ROWS, part_path, read_columns
from sif_batch.storage import Store, digest

HELD_OUT_FROM = 15 << 60  # hashes from 15/16 of the range up are never trained on
HELD_OUT = 500
FEWEST_HELD_OUT = 16  # where no hash lies in that band
FLAT_BELOW = 10_000
BACK_TO_FLAT_BELOW = 8_000
RETRAIN_AT = 2.0  # times the rows that the quantizer was trained for
NEIGHBOURS = 100  # the truth is kept to this depth; 2k of each part, for the query itself and dead rows take places
TRAINING_ROWS = 16_384
ROWS_PER_CELL = 39  # faiss warns below this many training rows a centroid
REDUCED = 256
DIMENSIONS_PER_CODE = 4  # of 4 bits each: what FastScan reads fastest
MIN_TRAINING = 64

RowForm = Literal["float16", "int8"]


class QuantizerSpec(Frozen):
    """The shape of a quantizer. rows: the form of the vector that is kept for exact re-ranking."""

    family: Literal["flat", "ivf-pq"]
    metric: Literal["cosine"]
    encoder: str
    dimension: int
    rows: RowForm
    reduced: int = 0  # dimensions after PCA
    cells: int = 0
    code_bytes: int = 0


class QuantizerRecord(Frozen):
    """quantizer.json: the shape, what it was trained on, and by which arithmetic."""

    id: str
    spec: QuantizerSpec
    trained_for_rows: int
    training_rows: int
    held_out: int
    vectors_sha256: str
    explained: float  # share of the variance that the PCA keeps; 1 without
    fingerprint: dict[str, str]


@dataclass(frozen=True)
class Quantizer:
    """A trained quantizer. mean: (d,), components: (d, reduced) float64; ivf: an empty, trained faiss index."""

    record: QuantizerRecord
    queries: np.ndarray  # (q, d) float16, the frozen held-out vectors
    query_keys: list[str]
    mean: np.ndarray | None = None
    components: np.ndarray | None = None
    ivf: Any = None

    @property
    def spec(self) -> QuantizerSpec:
        return self.record.spec


def choose_family(settings: IndexSettings, rows: int, current: str | None) -> Literal["flat", "ivf-pq"]:
    """Exact below about 10,000 rows unless asked otherwise; near the line the family in use stays."""
    if settings.family != "auto":
        return settings.family
    limit = BACK_TO_FLAT_BELOW if current == "ivf-pq" else FLAT_BELOW
    return "flat" if rows < limit else "ivf-pq"


def choose_spec(settings: IndexSettings, family: str, encoder: str, dimension: int, rows: int) -> QuantizerSpec:
    """The shape for this many rows. Raises SifBatchError when there are too few to train it."""
    common: dict[str, Any] = {"metric": settings.metric, "encoder": encoder, "dimension": dimension}
    if family == "flat":
        return QuantizerSpec(family="flat", rows="float16", **common)
    trainable = rows * 15 // 16
    if trainable < MIN_TRAINING:
        raise SifBatchError(
            f"--family ivf-pq needs at least {MIN_TRAINING * 16 // 15 + 1} usable images, there are {rows}",
            remedy="leave --family out: below 10,000 images the exact index is smaller and faster",
        )
    cells = 2 ** int(math.log2(max(1.0, min(1.5 * math.sqrt(rows), trainable / ROWS_PER_CELL))))
    reduced = min(REDUCED, dimension, trainable // 2) // DIMENSIONS_PER_CODE * DIMENSIONS_PER_CODE
    code_bytes = math.ceil(reduced // DIMENSIONS_PER_CODE / 2)
    return QuantizerSpec(family="ivf-pq", rows="int8", reduced=reduced, cells=cells, code_bytes=code_bytes, **common)


def must_retrain(record: QuantizerRecord, settings: IndexSettings, encoder: str, rows: int) -> bool:
    """Whether the quantizer in use no longer fits the settings or the size of the collection."""
    spec = record.spec
    family = choose_family(settings, rows, spec.family)
    fits = (spec.family, spec.metric, spec.encoder) == (family, settings.metric, encoder)
    return not fits or rows >= RETRAIN_AT * record.trained_for_rows


def sample_rows(live: pa.Table, family: str, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Which live rows to train on and which to hold out: disjoint bands of the row hash, so both stay stable.

    live: rows in order of hash. Returns positions in it. An exact index is not trained. A collection so small that
    the upper band is empty has its last rows held out.
    """
    hashes = live["hash"].to_numpy()
    split = int(np.searchsorted(hashes, np.uint64(HELD_OUT_FROM)))
    if split == len(hashes):
        split = max(0, len(hashes) - FEWEST_HELD_OUT)
    training = 0 if family == "flat" else min(split, max(TRAINING_ROWS, 64 * cells))
    return np.arange(training), np.arange(max(split, len(hashes) - HELD_OUT), len(hashes))


def read_rows(store: Store, encoder_id: str, parts: list[str], live: pa.Table, picked: np.ndarray) -> np.ndarray:
    """The embeddings of some live rows, (n, d) float16, in the order asked for.

    A part whose wanted rows all lie in its first row group is read only that far.
    """
    part = live["part"].to_numpy()[picked]
    row = live["row"].to_numpy()[picked]
    vectors: np.ndarray | None = None
    for number in np.unique(part):
        at = np.flatnonzero(part == number)
        with store.open(part_path(encoder_id, parts[number])) as file:
            groups = [0] if row[at].max() < FIRST_ROWS else None
            column = read_columns(file, parts[number], ["embedding"], groups)["embedding"].combine_chunks()
        taken = column.take(pa.array(row[at].astype(np.int64)))
        found = taken.flatten().to_numpy().reshape(len(at), -1)
        if vectors is None:
            vectors = np.empty((len(picked), found.shape[1]), np.float16)
        vectors[at] = found
    return np.empty((0, 0), np.float16) if vectors is None else vectors


def train_quantizer(
    store: Store, encoder_id: str, settings: IndexSettings, parts: list[str], live: pa.Table, current: str | None
) -> QuantizerRecord:
    """Train a quantizer for these live rows, or find the one that the same vectors made before."""
    family = choose_family(settings, len(live), current)
    dimension = read_rows(store, encoder_id, parts, live, np.arange(1)).shape[1]
    spec = choose_spec(settings, family, encoder_id, dimension, len(live))
    training, held_out = sample_rows(live, family, spec.cells)
    queries = read_rows(store, encoder_id, parts, live, held_out)
    vectors = read_rows(store, encoder_id, parts, live, training)
    keys = live["key"].take(pa.array(held_out)).to_pylist()
    fingerprint = quantizing_fingerprint()
    seen = digest(queries.tobytes() + vectors.tobytes() + canonical_json(keys))
    name = f"{family}-{digest(canonical_json([spec.model_dump(mode='json'), seen, fingerprint]), 16)}"
    folder = f"quantizers/{name}"
    if not store.exists(f"{folder}/quantizer.json"):
        explained = 1.0
        if family == "ivf-pq":
            explained = _train_ivf_pq(store, folder, spec, normalise(vectors))
        store.create(f"{folder}/queries.parquet", _encode_queries(keys, queries))
        record = QuantizerRecord(
            id=name,
            spec=spec,
            trained_for_rows=len(live),
            training_rows=len(training),
            held_out=len(held_out),
            vectors_sha256=seen,
            explained=round(explained, 6),
            fingerprint=fingerprint,
        )
        store.create(f"{folder}/quantizer.json", record.canonical())
    return read_record(store, name)


def fit_pca(x: np.ndarray, reduced: int) -> tuple[np.ndarray, np.ndarray, float]:
    """PCA by the eigenvectors of the covariance matrix, in float64 on one BLAS thread.

    x: (n, d) float64. Returns mean (d,), components (d, reduced) and the share of variance kept. The sign of
    each component makes its largest entry positive.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        mean = x.mean(axis=0)
        covariance = (x - mean).T @ (x - mean) / max(1, len(x) - 1)
        values, vectors = np.linalg.eigh(covariance)
    components = vectors[:, ::-1][:, :reduced]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(reduced)])
    explained = float(values[::-1][:reduced].sum() / max(values.sum(), 1e-30))
    return mean, np.ascontiguousarray(components), explained


def _train_ivf_pq(store: Store, folder: str, spec: QuantizerSpec, x: np.ndarray) -> float:
    faiss = import_faiss()
    mean, components, explained = fit_pca(x, spec.reduced)
    reduced = reduce(x, mean, components)
    coarse = faiss.IndexFlatL2(spec.reduced)
    ivf = faiss.IndexIVFPQ(coarse, spec.reduced, spec.cells, spec.reduced // DIMENSIONS_PER_CODE, 4)
    ivf.do_polysemous_training = False
    ivf.cp.min_points_per_centroid = ivf.pq.cp.min_points_per_centroid = 1  # choose_spec sees to it, without a warning
    ivf.train(reduced)
    for name, array in (("mean", mean), ("components", components)):
        store.create(f"{folder}/{name}.npy", array_bytes(array))
    store.create(f"{folder}/trained.faiss", faiss.serialize_index(ivf).tobytes())
    return explained


def array_bytes(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def _encode_queries(keys: list[str], queries: np.ndarray) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"key": pa.array(keys, pa.string()), "embedding": list(queries)})
    pq.write_table(table.cast(pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float16()))])), sink)
    return sink.getvalue()


def read_record(store: Store, name: str) -> QuantizerRecord:
    """quantizer.json of a quantizer of ROOT. Raises SifBatchError if it is damaged."""
    try:
        return QuantizerRecord.model_validate_json(store.read(f"quantizers/{name}/quantizer.json"))
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(store, name, error) from error


def _damaged(store: Store, name: str, error: Exception) -> SifBatchError:
    return SifBatchError(
        f"{store.path(f'quantizers/{name}')} is damaged ({type(error).__name__}: {error})",
        remedy="remove that folder and the same one in codes/; the next run trains anew",
    )


def load_quantizer(store: Store, name: str) -> Quantizer:
    """A trained quantizer of ROOT."""
    folder = f"quantizers/{name}"
    record = read_record(store, name)
    try:
        table = pq.read_table(io.BytesIO(store.read(f"{folder}/queries.parquet")))
        flat = table["embedding"].combine_chunks().flatten().to_numpy()
        queries = flat.reshape(len(table), record.spec.dimension)
        keys = table["key"].to_pylist()
        if record.spec.family == "flat":
            return Quantizer(record, queries, keys)
        mean, components = (np.load(io.BytesIO(store.read(f"{folder}/{n}.npy"))) for n in ("mean", "components"))
        trained = np.frombuffer(store.read(f"{folder}/trained.faiss"), np.uint8)
        return Quantizer(record, queries, keys, mean, components, import_faiss().deserialize_index(trained))
    except (FileNotFoundError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _damaged(store, name, error) from error


def normalise(x: np.ndarray) -> np.ndarray:
    """(n, d) at unit length, float64, so that Euclidean order is cosine order; a zero row stays zero."""
    x = x.astype(np.float64)
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def reduce(x: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Normalised vectors (n, d) on the principal components: (n, reduced) float32, row by row independent."""
    return project(x - mean, components)


def encode_rows(x: np.ndarray, form: RowForm) -> np.ndarray:
    """Normalised vectors as they are kept for re-ranking: (n, d) float16, or int8 in units of a row's largest / 127.

    A row's scale is not kept: cosine similarity does not need it.
    """
    if form == "float16":
        return x.astype(np.float16)
    largest = np.abs(x).max(axis=1, keepdims=True)
    return np.rint(np.divide(127 * x, largest, out=np.zeros_like(x), where=largest > 0)).astype(np.int8)

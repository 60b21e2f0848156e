"""The quantizer: sampled, trained, loaded. What it is made of lies in transform, shapes and codebooks."""

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import Frozen, IndexSettings
from sif_batch.digests import canonical_json, digest
from sif_batch.errors import SifBatchError
from sif_batch.index.codebooks import encoder_of, train_codebook
from sif_batch.index.feasibility import Prospect, promise, prospect_of
from sif_batch.index.quantizer_spec import QuantizerSpec, choose_family, choose_spec
from sif_batch.index.similarity import Transform, fit_pca
from sif_batch.index.training_sample import SAMPLED, likeness, read_rows, sample_rows
from sif_batch.machine.arithmetic import import_faiss, in_blocks, quantizing_fingerprint
from sif_batch.storage.store import Store

PIECE_ROWS = 4096
PCA_ROWS = 32_768  # enough for a covariance
PROSPECT_ROWS = 16_384  # enough to see what a shape allows
ARRAYS = ("mean", "components", "variances")


class Service(Frozen):
    """How a quantizer serves rows that it was not trained on, as it was made: mean and standard deviation of the
    squared distance between the held-out queries and what their codes tell of them, and how uneven its cells are."""

    queries: int
    error: float
    deviation: float
    imbalance: float | None


class QuantizerRecord(Frozen):
    """quantizer.json: the shape, what it was trained on, by which arithmetic, and the sha256 of its files."""

    id: str
    spec: QuantizerSpec
    trained_for_rows: int
    training_rows: int
    held_out: int
    vectors_sha256: str
    explained: float  # share of the variance in the dimensions that codes are made of; 1 without PCA
    prospect: Prospect
    service: Service | None  # None: flat, which serves all alike
    seen_to: int  # hash of the last row whose likeness is in seen.npy
    fingerprint: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class Quantizer:
    """A trained quantizer. index: an empty, trained faiss index, None: exact.

    queries: (q, d) float16, the frozen held-out vectors; radii: (q,) float32, the squared distance within which each
    has far more than the neighbours that the truth is kept to; infinite where the sample cannot tell; seen: (s,) uint64
    in order, the likeness of the training rows with the smallest hashes.
    """

    record: QuantizerRecord
    queries: np.ndarray
    query_keys: list[str]
    radii: np.ndarray
    transform: Transform
    seen: np.ndarray
    index: Any = None

    @property
    def spec(self) -> QuantizerSpec:
        return self.record.spec

    @property
    def code_width(self) -> int:
        """Bytes of a code with its cell, as faiss writes it."""
        return encoder_of(self.index).sa_code_size() if self.index is not None else 0

    @functools.cached_property
    def asked(self) -> np.ndarray:
        """The held-out queries as they are compared: (q, ...) float64."""
        return self.transform.apply(self.queries)

    def reduce(self, y: np.ndarray) -> np.ndarray:
        """Compared vectors as codes are made of: (n, reduced) float32."""
        return self.transform.to_code(y)

    def kept(self, y: np.ndarray) -> np.ndarray:
        """Compared vectors as rows are kept of: (n, kept_dimension) float64."""
        cut = self.spec.row_dimension
        return self.transform.reduce(y, cut).astype(np.float64) if cut else y

    def errors(self, y: np.ndarray, z: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Squared distances between compared vectors, (n, ...) float64, that are z when reduced, and what their codes,
        (n, c), tell of them: (n,) float32, each its own bits. Without codes none is lost."""
        return errors(self.transform, self.index, y, z, codes)

    def count_cells(self, codes: np.ndarray) -> np.ndarray:
        """(cells,) how many of the codes, (n, c), lie in each."""
        return count_cells(self.index, codes) if self.spec.cells else np.zeros(0, np.int64)


def errors(transform: Transform, index: Any, y: np.ndarray, z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """As `Quantizer.errors`: what the dimensions left out hold, and what the code loses of the others."""
    if index is None or not len(y):
        return np.zeros(len(y), np.float32)
    r, lost = z.astype(np.float64), z - encoder_of(index).sa_decode(codes)
    whole = y if transform.whitening else y - transform.mean
    outside = np.einsum("ij,ij->i", whole, whole) - np.einsum("ij,ij->i", r, r)
    found: np.ndarray = np.maximum(outside, 0) + np.einsum("ij,ij->i", lost, lost)
    return found.astype(np.float32)


def count_cells(index: Any, codes: np.ndarray) -> np.ndarray:
    """How many codes, as faiss writes them, lie in each cell of an ivf: (cells,) int64."""
    cell = np.zeros(len(codes), np.int64)
    for place in range(index.coarse_code_size()):
        cell |= codes[:, place].astype(np.int64) << 8 * place
    return np.bincount(cell, minlength=index.nlist)


def imbalance_of(in_cells: np.ndarray) -> float | None:
    """How many times as many rows as in even cells a row shares its cell with: 1 if they are even. in_cells: (cells,).

    faiss's imbalance factor, less what chance adds to it where there are few rows. None: too few rows to tell.
    """
    n = float(in_cells.sum())
    if n < 2:
        return None
    return round(len(in_cells) * float((in_cells * (in_cells - 1.0)).sum()) / (n * (n - 1)), 4)


def train_quantizer(
    store: Store, encoder_id: str, settings: IndexSettings, parts: list[str], live: pa.Table, current: str | None
) -> QuantizerRecord:
    """Train a quantizer for these live rows, or find the one that the same vectors made before."""
    dimension = read_rows(store, encoder_id, parts, live, np.arange(1)).shape[1]
    family = choose_family(settings, len(live), dimension, current)
    spec = choose_spec(settings, family, encoder_id, dimension, len(live))
    training, held_out = sample_rows(live, spec.cells)
    sample = read_rows(store, encoder_id, parts, live, np.concatenate([training, held_out]))
    vectors, queries = np.split(sample, [len(training)])
    keys = live["key"].take(pa.array(held_out)).to_pylist()
    fingerprint = quantizing_fingerprint()
    seen = digest(queries.tobytes() + vectors.tobytes() + canonical_json(keys))
    asked = [settings.recall, settings.k] if settings.max_bytes_per_row else []
    name = f"{family}-{digest(canonical_json([spec.model_dump(mode='json'), seen, fingerprint, asked]), 16)}"
    folder = f"quantizers/{name}"
    if not store.exists(f"{folder}/quantizer.json"):
        files, prospect, explained, service = train(spec, settings, vectors, queries, keys, len(live))
        for file, data in files.items():
            store.create(f"{folder}/{file}", data)
        last = min(len(training), SAMPLED) - 1
        record = QuantizerRecord(
            id=name,
            spec=spec,
            trained_for_rows=len(live),
            training_rows=len(training),
            held_out=len(held_out),
            vectors_sha256=seen,
            explained=round(explained, 6),
            prospect=prospect,
            service=service,
            seen_to=live["hash"][int(training[last])].as_py() if last >= 0 else 0,
            fingerprint=fingerprint,
            files={file: digest(data) for file, data in files.items()},
        )
        store.create(f"{folder}/quantizer.json", record.canonical())
    found = read_record(store, name)
    if (found.id, found.spec) != (name, spec):
        raise _damaged(store, name, ValueError("quantizer.json is altered"))
    return found


def train(
    spec: QuantizerSpec, settings: IndexSettings, vectors: np.ndarray, queries: np.ndarray, keys: list[str], rows: int
) -> tuple[dict[str, bytes], Prospect, float, Service | None]:
    """The files of a quantizer, what the sample promises of it, the share of variance that its codes see, and how it
    serves what it was not trained on.

    vectors: (n, d) float16 to train on, of `rows` in the collection; queries: (q, d). Raises SifBatchError where the
    recall asked for cannot be had in so few bytes.
    """
    transform, explained = transform_of(spec), 1.0
    if spec.family != "flat" or spec.whitening or spec.row_dimension:
        mean, components, variances = fit_pca(vectors[:PCA_ROWS], spec.metric, spec.power)
        explained = float(variances[: spec.reduced or None].sum() / max(variances.sum(), 1e-30))
        transform = transform_of(spec, mean, components, variances)
    trained = None
    if spec.family != "flat":
        trained = train_codebook(spec, _in_pieces(vectors, lambda x: transform.to_code(transform.apply(x))))
    compared = _in_pieces(vectors[:PROSPECT_ROWS], transform.apply)
    asked = transform.apply(queries)
    radii, prospect = prospect_of(spec, transform, trained, compared, asked, settings.k, rows)
    promise(spec, settings, transform, trained, compared, asked, prospect)
    files = {"queries.parquet": encode_queries(keys, queries, radii)}
    files["seen.npy"] = array_bytes(np.sort(likeness(vectors[:SAMPLED])))
    if transform.mean is not None:
        used = spec.dimension if spec.whitening else max(spec.reduced, spec.row_dimension)
        arrays = (mean, components[:, :used], variances)
        files |= {f"{name}.npy": array_bytes(array) for name, array in zip(ARRAYS, arrays, strict=True)}
    if trained is not None:
        files["trained.faiss"] = trained
    return files, prospect, explained, service_of(spec, transform, trained, compared, asked)


def service_of(
    spec: QuantizerSpec, transform: Transform, trained: bytes | None, compared: np.ndarray, asked: np.ndarray
) -> Service | None:
    """compared, asked: (n, ...) float64, compared vectors of the sample and of the held-out queries."""
    if trained is None or not len(asked):
        return None
    index = import_faiss().deserialize_index(np.frombuffer(trained, np.uint8))

    def codes_of(z: np.ndarray) -> np.ndarray:
        return in_blocks(z, encoder_of(index).sa_encode, np.float32)

    z = transform.to_code(asked)
    found = errors(transform, index, asked, z, codes_of(z)).astype(np.float64)
    return Service(
        queries=len(asked),
        error=round(float(found.mean()), 8),
        deviation=round(float(found.std()), 8),
        imbalance=imbalance_of(count_cells(index, codes_of(transform.to_code(compared)))) if spec.cells else None,
    )


def _in_pieces(vectors: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """work(vectors), some rows at a time: in float64 they would take four times the memory, and more on the way."""
    starts = range(0, max(1, len(vectors)), PIECE_ROWS)
    return np.concatenate([work(vectors[start : start + PIECE_ROWS]) for start in starts])


def array_bytes(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array))
    return sink.getvalue()


def encode_queries(keys: list[str], queries: np.ndarray, radii: np.ndarray) -> bytes:
    """queries.parquet. queries: (q, d) float16, radii: (q,) float32."""
    sink = io.BytesIO()
    table = pa.table({"key": pa.array(keys, pa.string()), "embedding": list(queries), "radius": radii})
    schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float16())), ("radius", pa.float32())])
    pq.write_table(table.cast(schema), sink)
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
    """A trained quantizer of ROOT, each file compared with its checksum: a flipped bit opens silently in faiss."""
    record = read_record(store, name)
    try:
        files = {file: store.read(f"quantizers/{name}/{file}") for file in record.files}
        if wrong := [file for file, data in files.items() if digest(data) != record.files[file]]:
            raise ValueError(f"{wrong[0]} is altered")
        table = pq.read_table(pa.BufferReader(files["queries.parquet"]))
        flat = table["embedding"].combine_chunks().flatten().to_numpy()
        queries = flat.reshape(len(table), record.spec.dimension)
        arrays = [np.load(io.BytesIO(files[f"{n}.npy"])) for n in ARRAYS if f"{n}.npy" in files]
        seen = np.load(io.BytesIO(files["seen.npy"]))
        transform = transform_of(record.spec, *arrays)
        index = None
        if "trained.faiss" in files:
            index = import_faiss().deserialize_index(np.frombuffer(files["trained.faiss"], np.uint8))
        return Quantizer(record, queries, table["key"].to_pylist(), table["radius"].to_numpy(), transform, seen, index)
    except (FileNotFoundError, KeyError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _damaged(store, name, error) from error


def transform_of(spec: QuantizerSpec, *arrays: np.ndarray) -> Transform:
    """The transform of a shape; arrays: as ARRAYS names them, or none."""
    return Transform(spec.metric, spec.power, spec.whitening, *arrays, coded=spec.coded)

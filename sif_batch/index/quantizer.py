"""The quantizer: its record and arrays, read from ROOT or a release, and what vectors are under it."""

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import Frozen
from sif_batch.digests import digest
from sif_batch.errors import SifBatchError
from sif_batch.index.codebooks import encoder_of
from sif_batch.index.feasibility import Prospect
from sif_batch.index.quantizer_spec import QuantizerSpec
from sif_batch.index.similarity import Transform
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.storage.store import Store

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


def array_bytes(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array))
    return sink.getvalue()


def read_record(store: Store, name: str) -> QuantizerRecord:
    """quantizer.json of a quantizer of ROOT. Raises SifBatchError if it is damaged."""
    try:
        return QuantizerRecord.model_validate_json(store.read(f"quantizers/{name}/quantizer.json"))
    except (FileNotFoundError, ValueError) as error:
        raise damaged_quantizer(store, name, error) from error


def damaged_quantizer(store: Store, name: str, error: Exception) -> SifBatchError:
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
        raise damaged_quantizer(store, name, error) from error


def transform_of(spec: QuantizerSpec, *arrays: np.ndarray) -> Transform:
    """The transform of a shape; arrays: as ARRAYS names them, or none."""
    return Transform(spec.metric, spec.power, spec.whitening, *arrays, coded=spec.coded)

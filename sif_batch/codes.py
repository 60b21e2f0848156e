"""Codes: the rows of one part under one quantizer, and its nearest rows to the held-out queries."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import SifBatchError
from sif_batch.kernels import in_blocks, project
from sif_batch.parts import embeddings_of, part_path
from sif_batch.quantizer import NEIGHBOURS, Quantizer, QuantizerSpec, encode_rows, load_quantizer, normalise, reduce
from sif_batch.storage import Store, digest

CODES_SCHEMA = pa.schema(
    [
        ("row", pa.uint16()),
        ("code", pa.binary()),
        ("rerank", pa.binary()),
        ("near_query", pa.list_(pa.uint16())),
        ("near_distance", pa.list_(pa.float32())),
    ]
)


def codes_path(quantizer_id: str, part: str) -> str:
    return f"codes/{quantizer_id}/{part}.parquet"


def quantize_part(report: Callable[[Any], None], root: str, quantizer: str, part: str) -> int:
    """Make the codes of one part, unless they stand. Runs in the child. Returns the number of rows.

    A row of codes: the row's number in the part, cell and code as faiss writes them, the row for re-ranking, and
    the held-out queries that it is among the 2k nearest of, with the squared distance of unit vectors.
    """
    store = Store(root)
    if store.exists(codes_path(quantizer, part)):
        return 0
    trained = _cached_quantizer(root, quantizer)
    data = store.read(part_path(trained.spec.encoder, part))
    numbers, vectors = embeddings_of(data, part)
    store.create(codes_path(quantizer, part), encode_codes(trained, numbers, vectors, digest(data)))
    report(part)
    return len(numbers)


@lru_cache(maxsize=1)
def _cached_quantizer(root: str, name: str) -> Quantizer:
    return load_quantizer(Store(root), name)


def encode_codes(quantizer: Quantizer, numbers: np.ndarray, vectors: np.ndarray, part_sha256: str) -> bytes:
    """The codes file of a part: numbers (n,) uint16, vectors (n, d) float16."""
    x = normalise(vectors) if len(vectors) else np.empty((0, quantizer.spec.dimension))
    if x.shape[1] != quantizer.spec.dimension:
        raise SifBatchError(f"a part holds vectors of {x.shape[1]} dimensions, expected {quantizer.spec.dimension}")
    codes = np.empty((len(x), 0), np.uint8)
    if quantizer.ivf is not None:
        assert quantizer.mean is not None and quantizer.components is not None
        reduced = reduce(x, quantizer.mean, quantizer.components)
        codes = in_blocks(reduced, quantizer.ivf.sa_encode, np.float32)
    near_query, near_distance = _near(quantizer.queries, x)
    table = pa.table(
        [
            pa.array(numbers, pa.uint16()),
            _binary_column(codes),
            _binary_column(encode_rows(x, quantizer.spec.rows)),
            near_query,
            near_distance,
        ],
        schema=CODES_SCHEMA.with_metadata({b"part_sha256": part_sha256.encode()}),
    )
    sink = io.BytesIO()
    pq.write_table(
        table, sink, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    return sink.getvalue()


def query_distances(queries: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Squared distances of unit vectors: queries (q, d) any scale, x (n, d) normalised float64. (n, q) float32."""
    return np.maximum(2 - 2 * project(x, normalise(queries).T), 0)


def _near(queries: np.ndarray, x: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """For each row the queries that it is among the 2k nearest of; ties go to the earlier row."""
    kept = min(2 * NEIGHBOURS, len(x))
    distances = query_distances(queries, x).T if len(x) and len(queries) else np.empty((0, len(x)), np.float32)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :kept]
    query = np.repeat(np.arange(len(distances)), kept)
    row = rows.ravel()
    order = np.lexsort((query, row))
    query, row = query[order], row[order]
    offsets = np.searchsorted(row, np.arange(len(x) + 1)).astype(np.int32)
    values = distances[query, row]
    return (
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(query, pa.uint16())),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32())),
    )


def _binary_column(values: np.ndarray) -> pa.Array:
    """(n, m) of any type as n byte strings."""
    width = values.shape[1] * values.itemsize
    offsets = (
        np.arange(0, len(values) * width + 1, width, dtype=np.int32) if width else np.zeros(len(values) + 1, np.int32)
    )
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


@dataclass(frozen=True)
class Codes:
    """The codes of a part. numbers: (n,) rows of the part, code: (n, c) uint8, rerank: (n, d) rows as kept.

    near: (m, 2) uint16 of (place in numbers, query), near_distance: (m,) float32.
    """

    numbers: np.ndarray
    code: np.ndarray
    rerank: np.ndarray
    near: np.ndarray
    near_distance: np.ndarray


def read_codes(store: Store, spec: QuantizerSpec, quantizer_id: str, part: str) -> Codes:
    """The codes of a part under a quantizer. A damaged file raises SifBatchError."""
    path = codes_path(quantizer_id, part)
    try:
        table = pq.read_table(io.BytesIO(store.read(path)), page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise SifBatchError(f"{path} is damaged ({error})", remedy="remove that file and run again") from error
    n = len(table)
    code, rerank = (_bytes_of(table[name].combine_chunks()) for name in ("code", "rerank"))
    near = table["near_query"].combine_chunks()
    place = np.repeat(np.arange(n, dtype=np.uint16), np.diff(near.offsets.to_numpy()))
    return Codes(
        table["row"].to_numpy(),
        code.reshape(n, -1) if n else np.empty((0, 0), np.uint8),
        rerank.view(np.dtype(spec.rows)).reshape(n, spec.dimension),
        np.stack([place, near.flatten().to_numpy()], axis=1),
        table["near_distance"].combine_chunks().flatten().to_numpy(),
    )


def _bytes_of(column: pa.Array) -> np.ndarray:
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    if data is None or not len(column):
        return np.empty(0, np.uint8)
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]

"""One part quantized, in a child process: its codes, its re-rank rows and its distances to the held-out queries."""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.digests import digest
from sif_batch.errors import SifBatchError
from sif_batch.index.codebooks import encoder_of
from sif_batch.index.codes import CODES_SCHEMA, codes_path
from sif_batch.index.quantizer import Quantizer, load_quantizer
from sif_batch.index.recall import NEIGHBOURS
from sif_batch.index.rerank_rows import encode_rows
from sif_batch.index.training_sample import likeness
from sif_batch.ledger.parts import embeddings_of, part_path
from sif_batch.machine.arithmetic import import_faiss, in_blocks
from sif_batch.machine.child import keep_memory
from sif_batch.storage.store import Store

ROUGHLY = 1e-4  # relative error of a squared distance in float32, with room
PAIRS_AT_ONCE = 8192


def quantize_part(report: Callable[[Any], None], root: str, quantizer: str, part: str) -> int:
    """Make the codes of one part, unless they stand. Runs in the child. Returns the number of rows.

    A row of codes: the row's number in the part, cell and code as faiss writes them, the row for re-ranking, the
    vector's length (negative: all its numbers are equal) and a digest of it, the squared distance between it and what
    its code tells of it, and the held-out queries that it is near to, with the squared distance of compared vectors.
    """
    store = Store(root)
    if store.exists(codes_path(quantizer, part)):
        return 0
    trained = _cached_quantizer(root, quantizer)
    data = store.read(part_path(trained.spec.encoder, part))
    numbers, vectors = embeddings_of(data, part, trained.spec.encoder)
    if len(vectors) and vectors.shape[1] != trained.spec.dimension:
        raise SifBatchError(
            f"part {part} holds vectors of {vectors.shape[1]} dimensions, the quantizer takes {trained.spec.dimension}",
            remedy="remove that file; the next run embeds its images again",
        )
    store.create(codes_path(quantizer, part), encode_codes(trained, numbers, vectors, digest(data)))
    report(part)
    return len(numbers)


def ready(report: Callable[[Any], None]) -> None:
    """Load what quantizing needs, while the quantizer is still being trained."""
    keep_memory()
    import_faiss()


@lru_cache(maxsize=1)
def _cached_quantizer(root: str, name: str) -> Quantizer:
    keep_memory()
    return load_quantizer(Store(root), name)


def encode_codes(quantizer: Quantizer, numbers: np.ndarray, vectors: np.ndarray, part_sha256: str) -> bytes:
    """The codes file of a part: numbers (n,) uint16, vectors (n, d) float16."""
    spec = quantizer.spec
    vectors = vectors.reshape(len(numbers), spec.dimension)
    y = quantizer.transform.apply(vectors)
    z, codes = np.empty((len(y), 0), np.float32), np.empty((len(y), 0), np.uint8)
    if quantizer.index is not None:
        z = quantizer.reduce(y)
        codes = in_blocks(z, encoder_of(quantizer.index).sa_encode, np.float32)
    kept = encode_rows(quantizer.kept(y), spec.rows, spec.unit_rows)
    looks = _lengths(vectors), likeness(vectors), quantizer.errors(y, z, codes)
    return encode_table(numbers, codes, kept, *looks, _near(quantizer, y), part_sha256)


def encode_table(
    numbers: np.ndarray,
    codes: np.ndarray,
    kept: np.ndarray,
    lengths: np.ndarray,
    likeness: np.ndarray,
    errors: np.ndarray,
    near: tuple[pa.Array, pa.Array],
    part_sha256: str,
) -> bytes:
    """CODES_SCHEMA's columns as a file. numbers, lengths, likeness, errors: (n,), codes: (n, c), kept: (n, w), near:
    lists."""
    columns = [
        pa.array(numbers, pa.uint16()),
        _binary_column(codes),
        _binary_column(kept),
        pa.array(lengths, pa.float32()),
        pa.array(likeness, pa.uint64()),
        pa.array(errors, pa.float32()),
        *near,
    ]
    table = pa.table(columns, schema=CODES_SCHEMA.with_metadata({b"part_sha256": part_sha256.encode()}))
    sink = io.BytesIO()
    pq.write_table(
        table, sink, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    return sink.getvalue()


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """(n,) float32: Euclidean lengths, negative where all numbers of a vector are equal."""
    x = vectors.astype(np.float64)
    length = np.sqrt(np.einsum("ij,ij->i", x, x))
    constant = (vectors == vectors[:, :1]).all(axis=1)
    return np.where(constant, -length, length).astype(np.float32)


def query_distances(quantizer: Quantizer, query: int, y: np.ndarray) -> np.ndarray:
    """From a held-out query to compared vectors, (n, d) float64: squared distances, (n,) float32, each its own bits."""
    return _pair_distances(quantizer, np.full(len(y), query), np.arange(len(y)), y)


def _pair_distances(quantizer: Quantizer, query: np.ndarray, row: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances of pairs: (m,) queries and rows of y to (m,) float32."""
    apart = np.empty(len(query), np.float32)
    for at in range(0, len(query), PAIRS_AT_ONCE):
        q, x = quantizer.asked[query[at : at + PAIRS_AT_ONCE]], y[row[at : at + PAIRS_AT_ONCE]]
        if quantizer.transform.unit:
            apart[at : at + PAIRS_AT_ONCE] = np.maximum(2 - 2 * np.einsum("ij,ij->i", x, q), 0)
        else:
            apart[at : at + PAIRS_AT_ONCE] = np.einsum("ij,ij->i", x - q, x - q)
    return apart


def _near(quantizer: Quantizer, y: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """For each row the queries within whose radius it lies, of the 2k nearest of the part; ties go to the earlier row.

    A product in float32 finds the rows worth a look; these are measured exactly.
    """
    query, row = np.empty(0, np.int64), np.empty(0, np.int64)
    if len(y) and len(quantizer.queries):
        x, q = y.astype(np.float32), quantizer.asked.astype(np.float32)
        beyond = (1 - ROUGHLY) / 2 * np.einsum("ij,ij->i", x, x)
        edge = ((1 - ROUGHLY) * np.einsum("ij,ij->i", q, q) - quantizer.radii) / 2
        query, row = np.nonzero(q @ x.T - beyond >= edge[:, None])
    values = _pair_distances(quantizer, query, row, y)
    near = np.flatnonzero(values <= quantizer.radii[query])
    near = near[np.lexsort((row[near], values[near], query[near]))]
    place = np.arange(len(near)) - np.searchsorted(query[near], query[near])
    near = near[place < 2 * NEIGHBOURS]
    asked, row, values = query[near], row[near], values[near]
    order = np.lexsort((asked, row))
    offsets = pa.array(np.searchsorted(row[order], np.arange(len(y) + 1)).astype(np.int32))
    return (
        pa.ListArray.from_arrays(offsets, pa.array(asked[order], pa.uint16())),
        pa.ListArray.from_arrays(offsets, pa.array(values[order], pa.float32())),
    )


def _binary_column(values: np.ndarray) -> pa.Array:
    """(n, m) of any type as n byte strings."""
    width = values.shape[1] * values.itemsize
    offsets = (
        np.arange(0, len(values) * width + 1, width, dtype=np.int32) if width else np.zeros(len(values) + 1, np.int32)
    )
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)

"""The file of codes: the rows of one part under one quantizer, and its nearest rows to the held-out queries."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer_spec import QuantizerSpec
from sif_batch.index.rerank_rows import row_type
from sif_batch.storage.store import Store

CODES_SCHEMA = pa.schema(
    [
        ("row", pa.uint16()),
        ("code", pa.binary()),
        ("rerank", pa.binary()),
        ("length", pa.float32()),
        ("likeness", pa.uint64()),
        ("error", pa.float32()),
        ("near_query", pa.list_(pa.uint16())),
        ("near_distance", pa.list_(pa.float32())),
    ]
)


def codes_path(quantizer_id: str, part: str) -> str:
    return f"codes/{quantizer_id}/{part}.parquet"


@dataclass(frozen=True)
class Codes:
    """The codes of a part. numbers: (n,) rows of the part, code: (n, c) uint8, rerank: (n, w) rows as kept.

    lengths, likeness, errors: (n,); near: (m, 2) uint16 of (place in numbers, query), near_distance: (m,) float32.
    """

    numbers: np.ndarray
    code: np.ndarray
    rerank: np.ndarray
    lengths: np.ndarray
    likeness: np.ndarray
    errors: np.ndarray
    near: np.ndarray
    near_distance: np.ndarray


def read_codes(store: Store, spec: QuantizerSpec, quantizer_id: str, part: str) -> Codes:
    """The codes of a part under a quantizer. A damaged file raises SifBatchError."""
    path = codes_path(quantizer_id, part)
    try:
        file = pq.ParquetFile(pa.BufferReader(store.read(path)), page_checksum_verification=True)
        table = file.read(use_threads=False)
        n = len(table)
        code, rerank = (_bytes_of(table[name].combine_chunks()) for name in ("code", "rerank"))
        near = table["near_query"].combine_chunks()
        place = np.repeat(np.arange(n, dtype=np.uint16), np.diff(near.offsets.to_numpy()))
        kind = row_type(spec.rows)
        return Codes(
            table["row"].to_numpy(),
            code.reshape(n, -1) if n else np.empty((0, 0), np.uint8),
            rerank.view(kind).reshape(n, spec.row_bytes // kind.itemsize),
            table["length"].to_numpy(),
            table["likeness"].to_numpy(),
            table["error"].to_numpy(),
            np.stack([place, near.flatten().to_numpy()], axis=1),
            table["near_distance"].combine_chunks().flatten().to_numpy(),
        )
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise SifBatchError(f"{path} is damaged ({error})", remedy="remove that file and run again") from error


def _bytes_of(column: pa.Array) -> np.ndarray:
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    if data is None or not len(column):
        return np.empty(0, np.uint8)
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]

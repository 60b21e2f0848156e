"""Shards: spans of entries sliced into units of work, and the plan that names them before the work begins."""

import io
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import Source, canonical_json
from sif_batch.storage import Store, digest

SHARD_IMAGES = 1000
SHARD_BYTES = 128 * 2**20
MAX_SHARD_IMAGES = 65_535  # a row's number in its part is a uint16
ROW_GROUP = 16_384

# A file is one span: member 0 to 0, and the end of its entry.
SPAN_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("end", pa.bool_()),
        ("attempt", pa.int8()),
        ("duplicate", pa.bool_()),
    ]
)
PLAN_SCHEMA = pa.schema([("shard", pa.int32()), ("part", pa.string()), *SPAN_SCHEMA])


def slice_shards(sizes: np.ndarray, max_images: int, max_bytes: int = SHARD_BYTES) -> np.ndarray:
    """The shard number of each span, in order: at most `max_images` and `max_bytes` a shard, but one span at least.

    sizes: (n,) int64, bytes. Returns (n,) int32, not decreasing, from 0 without gaps.
    """
    shards = np.empty(len(sizes), np.int32)
    shard, images, total = 0, 0, 0
    for i, size in enumerate(sizes.tolist()):
        if images and (images == max_images or total + size > max_bytes):
            shard, images, total = shard + 1, 0, 0
        shards[i] = shard
        images, total = images + 1, total + size
    return shards


def part_name(encoder_id: str, spans: pa.Table) -> str:
    """The name of the part that these spans make: a digest of all that decides it."""
    columns = ["source", "path", "version", "first", "last", "end", "attempt", "duplicate"]
    return digest(canonical_json([encoder_id, spans.select(columns).to_pylist()]), 32)


def make_plan(encoder_id: str, spans: pa.Table, max_images: int, max_bytes: int = SHARD_BYTES) -> pa.Table:
    """PLAN_SCHEMA: the spans with the shard and the part that each belongs to."""
    shards = slice_shards(spans["size"].to_numpy(), max_images, max_bytes)
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    lengths = np.diff(np.append(starts, len(shards)))
    names = [part_name(encoder_id, spans.slice(s, n)) for s, n in zip(starts, lengths, strict=True)]
    parts = np.repeat(np.array(names, dtype=object), lengths)
    return pa.table([shards, pa.array(parts, pa.string()), *spans.columns], schema=PLAN_SCHEMA)


def save_plan(store: Store, encoder_id: str, plan: pa.Table, sources: Sequence[Source]) -> str:
    """Write plans/<digest>.parquet and return the digest. The plan says all that its shards need to know."""
    metadata = {
        b"encoder": encoder_id.encode(),
        b"sources": canonical_json([source.model_dump(mode="json") for source in sources]),
    }
    sink = io.BytesIO()
    pq.write_table(plan.replace_schema_metadata(metadata), sink, row_group_size=ROW_GROUP, compression="zstd")
    name = digest(sink.getvalue(), 32)
    store.create(f"plans/{name}.parquet", sink.getvalue())
    return name


def open_plans(store: Store, encoder_id: str) -> list[str]:
    """The plans of this encoder that no run has finished."""
    names = store.sizes("plans")
    found = [n.removesuffix(".parquet") for n in names if n.endswith(".parquet")]
    unfinished = [name for name in found if f"{name}.done" not in names]
    return [name for name in unfinished if plan_encoder(store, name) == encoder_id]


def finish_plan(store: Store, name: str) -> None:
    store.create(f"plans/{name}.done", b"")


def plan_encoder(store: Store, name: str) -> str:
    with store.open(f"plans/{name}.parquet") as file:
        return pq.ParquetFile(file).schema_arrow.metadata[b"encoder"].decode()


def plan_shards(store: Store, name: str) -> pa.Table:
    """The plan as PLAN_SCHEMA."""
    with store.open(f"plans/{name}.parquet") as file:
        return pq.read_table(file).replace_schema_metadata(None)


def read_shard(store: Store, name: str, shard: int) -> tuple[pa.Table, str, dict[str, Source]]:
    """One shard's spans (PLAN_SCHEMA), its encoder's id and the sources by name."""
    with store.open(f"plans/{name}.parquet") as file:
        spans = pq.read_table(file, filters=[("shard", "=", shard)])
    metadata = spans.schema.metadata
    sources = (Source.model_validate(source) for source in json.loads(metadata[b"sources"]))
    return spans, metadata[b"encoder"].decode(), {source.name: source for source in sources}

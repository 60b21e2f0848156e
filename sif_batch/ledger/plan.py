"""Shards: spans of entries sliced into units of work, and the plan that names them before the work begins."""

import io
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sif_batch.config import Frozen, Source
from sif_batch.digests import canonical_json, digest
from sif_batch.errors import SifBatchError
from sif_batch.images.decode import MAX_BYTES, MAX_PIXELS
from sif_batch.sources.containers import are_containers
from sif_batch.storage.store import Store

MAX_SHARD_IMAGES = 65_535  # a row's number in its part is a uint16
ROW_GROUP = 16_384

OPEN = -1  # the last ordinal of a span that goes to its container's end, wherever that is


class Limits(Frozen):
    """What decides the slicing into parts, and which images are too large."""

    shard_images: int = Field(default=1000, ge=1, le=MAX_SHARD_IMAGES)
    shard_bytes: int = Field(default=128 * 2**20, ge=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    max_bytes: int = Field(default=MAX_BYTES, ge=1)


DEFAULT_LIMITS = Limits()

# A file is one span: member 0 to 0, and the end of its entry. first and last count in a container, both included.
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


def slice_shards(sizes: np.ndarray, alone: np.ndarray, limits: Limits) -> np.ndarray:
    """The shard number of each span, in order: so many images and bytes a shard at most, but one span at least.

    sizes: (n,) int64, bytes; alone: (n,) bool, spans that share their shard with none. Returns (n,) int32, not
    decreasing, from 0 without gaps.
    """
    until = np.cumsum(sizes)
    single = np.flatnonzero(alone)
    starts, start = [], 0
    while start < len(sizes):
        starts.append(start)
        before = until[start] - sizes[start]
        end = min(start + limits.shard_images, int(np.searchsorted(until, before + limits.shard_bytes, "right")))
        if alone[start]:
            end = start + 1
        elif (place := np.searchsorted(single, start)) < len(single):
            end = min(end, int(single[place]))
        start = max(end, start + 1)
    lengths = np.diff(np.append(np.array(starts, np.int64), len(sizes)))
    return np.repeat(np.arange(len(starts), dtype=np.int32), lengths)


NAMING = ["source", "path", "version", "first", "last", "end", "attempt", "duplicate"]


def part_name(encoder_id: str, spans: Sequence[dict[str, Any]], limits: Limits) -> str:
    """The name of the part that these spans make: a digest of all that decides it.

    A container's parts are named by where they begin: an open span's first part by the span, the next by what is left.
    """
    return _name_of(encoder_id, [[span[name] for name in NAMING] for span in spans], limits)


def _name_of(encoder_id: str, named: list[list[Any]], limits: Limits) -> str:
    return digest(canonical_json([encoder_id, named, limits.model_dump()]), 32)


def slice_spans(spans: pa.Table, limits: Limits) -> np.ndarray:
    """As `slice_shards`, of SPAN_SCHEMA: a container is a shard alone."""
    return slice_shards(spans["size"].to_numpy(), are_containers(spans["path"]), limits)


def make_plan(encoder_id: str, spans: pa.Table, limits: Limits) -> pa.Table:
    """PLAN_SCHEMA: the spans with the shard and the (first) part that each belongs to."""
    shards = slice_spans(spans, limits)
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    lengths = np.diff(np.append(starts, len(shards)))
    names = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        columns = (spans[name].slice(start, length).to_pylist() for name in NAMING)
        names.append(_name_of(encoder_id, [list(row) for row in zip(*columns, strict=True)], limits))
    parts = pa.array(names, pa.string()).take(pa.array(shards))
    return pa.table([shards, parts, *spans.columns], schema=PLAN_SCHEMA)


def save_plan(
    store: Store, encoder_id: str, plan: pa.Table, sources: Sequence[Source], limits: Limits = DEFAULT_LIMITS
) -> str:
    """Write plans/<digest>.parquet and return the digest. The plan says all that its shards need to know."""
    metadata = {
        b"encoder": encoder_id.encode(),
        b"limits": limits.canonical(),
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


def is_open(store: Store, file: str) -> bool:
    """Whether a file in plans/ is a plan that no run has finished."""
    return file.endswith(".parquet") and not store.exists(f"plans/{file.removesuffix('.parquet')}.done")


def finish_plan(store: Store, name: str) -> None:
    store.create(f"plans/{name}.done", b"")


def plan_encoder(store: Store, name: str) -> str:
    with store.open(f"plans/{name}.parquet") as file:
        return pq.ParquetFile(file).schema_arrow.metadata[b"encoder"].decode()


def plan_shards(store: Store, name: str) -> pa.Table:
    """The plan as PLAN_SCHEMA."""
    with store.open(f"plans/{name}.parquet") as file:
        return pq.ParquetFile(file).read(use_threads=False).replace_schema_metadata(None)


@dataclass(frozen=True)
class Shard:
    """What a worker needs to know of its shard. spans: PLAN_SCHEMA as dicts; sources: by name."""

    part: str
    spans: list[dict[str, Any]]
    encoder_id: str
    sources: dict[str, Source]
    limits: Limits


def read_shard(store: Store, name: str, shard: int) -> Shard:
    """One shard of a plan. Raises SifBatchError where this machine does not see the plan."""
    try:
        with store.open(f"plans/{name}.parquet") as file:
            spans = pq.read_table(file, filters=[("shard", "=", shard)])
    except FileNotFoundError as error:
        raise SifBatchError(
            f"{socket.gethostname()} does not see plan {name} in {store.url}",
            remedy="ROOT must be in a bucket, or on a mount that all nodes have at the same path",
        ) from error
    metadata = spans.schema.metadata
    sources = (Source.model_validate(source) for source in json.loads(metadata[b"sources"]))
    return Shard(
        spans["part"][0].as_py(),
        spans.to_pylist(),
        metadata[b"encoder"].decode(),
        {source.name: source for source in sources},
        Limits.model_validate_json(metadata[b"limits"]),
    )

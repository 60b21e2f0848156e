"""The catalog: the light columns of all parts, cached in merged form."""

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import canonical_json
from sif_batch.parts import LIGHT, PART_SCHEMA, SPAN, container_spans, part_path, read_light
from sif_batch.shards import SPAN_SCHEMA
from sif_batch.storage import Store, digest

READERS = 8
CATALOG_SCHEMA = pa.schema([("part", pa.int32()), ("row", pa.uint16()), *(PART_SCHEMA.field(name) for name in LIGHT)])


CONTAINER_SCHEMA = pa.schema(
    [
        ("part", pa.int32()),
        *((name, SPAN_SCHEMA.field(name).type) for name in (*SPAN, "attempt")),
        ("superseded", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Catalog:
    """rows: CATALOG_SCHEMA, `part` counting in `parts` (names in order); fingerprints: JSON text by part; spans:
    CONTAINER_SCHEMA, one for each part of a container."""

    parts: list[str]
    fingerprints: list[str]
    rows: pa.Table
    spans: pa.Table = field(default_factory=CONTAINER_SCHEMA.empty_table)


def load_catalog(store: Store, encoder_id: str, keep: bool = True) -> Catalog:
    """The catalog of all parts that stand: from its cache, and from the parts that are not in it yet.

    keep: write the cache anew where it was behind; a reader of ROOT does not.
    """
    names = [n.removesuffix(".parquet") for n in store.sizes(f"parts/{encoder_id}") if n.endswith(".parquet")]
    cached = _read_cache(store, encoder_id)
    if cached is not None and cached.parts == names:
        return cached
    known = {part: i for i, part in enumerate(cached.parts)} if cached else {}
    new = [name for name in names if name not in known]

    def read(part: str) -> tuple[pa.Table, str, list[list[Any]]]:
        with store.open(part_path(encoder_id, part)) as file:
            table = read_light(file, part)
        metadata = table.schema.metadata
        return table.replace_schema_metadata(None), metadata[b"fingerprint"].decode(), container_spans(metadata)

    with ThreadPoolExecutor(READERS) as pool:
        read_parts = dict(zip(new, pool.map(read, new), strict=True))
    if cached is not None:
        starts = np.searchsorted(cached.rows["part"].to_numpy(), np.arange(len(cached.parts) + 1))
        light = cached.rows.select(LIGHT)
    spans = _named_spans(cached) | {name: read_parts[name][2] for name in new}
    tables = [CATALOG_SCHEMA.empty_table()]
    for number, name in enumerate(names):
        if name in read_parts:
            table = read_parts[name][0]
        else:
            start, end = starts[known[name]], starts[known[name] + 1]
            table = light.slice(start, end - start)
        own = [pa.repeat(pa.scalar(number, pa.int32()), len(table)), np.arange(len(table), dtype=np.uint16)]
        tables.append(pa.table([*own, *table.columns], schema=CATALOG_SCHEMA))
    fingerprints = [
        read_parts[name][1] if name in read_parts else cached.fingerprints[known[name]]  # type: ignore[union-attr]
        for name in names
    ]
    catalog = Catalog(names, fingerprints, pa.concat_tables(tables).combine_chunks(), _spans_of(names, spans))
    if keep:
        _write_cache(store, encoder_id, catalog)
    return catalog


def _named_spans(cached: Catalog | None) -> dict[str, list[list[Any]]]:
    """The containers' spans by part name."""
    if cached is None:
        return {}
    return {cached.parts[span["part"]]: [list(span.values())[1:]] for span in cached.spans.to_pylist()}


def _spans_of(parts: Sequence[str], spans: dict[str, list[list[Any]]]) -> pa.Table:
    """CONTAINER_SCHEMA of the spans by part name."""
    rows = [[number, *span] for number, name in enumerate(parts) for span in spans.get(name, ())]
    columns = list(zip(*rows, strict=True)) or [()] * len(CONTAINER_SCHEMA)
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, CONTAINER_SCHEMA, strict=True)], schema=CONTAINER_SCHEMA
    )


def _cache_path(encoder_id: str) -> str:
    return f"catalog/{encoder_id}.parquet"


def _write_cache(store: Store, encoder_id: str, catalog: Catalog) -> None:
    distinct = sorted(set(catalog.fingerprints))
    metadata = {
        b"parts": canonical_json(catalog.parts),
        b"distinct": canonical_json(distinct),
        b"fingerprints": canonical_json([distinct.index(text) for text in catalog.fingerprints]),
        b"spans": canonical_json(_named_spans(catalog)),
    }
    sink = io.BytesIO()
    table = catalog.rows.replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd")
    store.replace(_cache_path(encoder_id), sink.getvalue())
    store.replace(_cache_path(encoder_id) + ".sha256", digest(sink.getvalue()).encode())


def _read_cache(store: Store, encoder_id: str) -> Catalog | None:
    """The cached catalog; None where there is none or it cannot be read: it is only a cache."""
    try:
        data = store.read(_cache_path(encoder_id))
        if store.read(_cache_path(encoder_id) + ".sha256") != digest(data).encode():
            return None
        table = pq.read_table(io.BytesIO(data))
        metadata = table.schema.metadata
        distinct = json.loads(metadata[b"distinct"])
        fingerprints = [distinct[i] for i in json.loads(metadata[b"fingerprints"])]
        parts = json.loads(metadata[b"parts"])
        return Catalog(
            parts, fingerprints, table.cast(CATALOG_SCHEMA), _spans_of(parts, json.loads(metadata[b"spans"]))
        )
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None

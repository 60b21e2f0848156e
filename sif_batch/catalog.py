"""The catalog: the light columns of all parts, cached in merged form."""

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import canonical_json
from sif_batch.erased import read_erased
from sif_batch.parts import LIGHT, PART_SCHEMA, SPAN, container_spans, part_path, read_light, replaces
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
    CONTAINER_SCHEMA, one for each part of a container; replaces: by part, those whose rows it has taken over."""

    parts: list[str]
    fingerprints: list[str]
    rows: pa.Table
    spans: pa.Table = field(default_factory=CONTAINER_SCHEMA.empty_table)
    replaces: dict[str, list[str]] = field(default_factory=dict)


def load_catalog(store: Store, encoder_id: str, keep: bool = True) -> Catalog:
    """The catalog of all parts that stand, without rows that were erased, or that another part has taken over.

    keep: write its cache anew where it was behind; a reader of ROOT does not.
    """
    catalog = load_whole(store, encoder_id, keep)
    gone = read_erased(store).holds(catalog.rows) | taken_over(catalog)
    return without_rows(catalog, gone) if gone.any() else catalog


def without_rows(catalog: Catalog, gone: np.ndarray) -> Catalog:
    """The catalog without some rows, (n,) bool. The others keep their part and number.

    Of the spans of containers, those of replaced parts go that their successors have too.
    """
    rows = catalog.rows.filter(pa.array(~gone)).combine_chunks()
    old, new = _successions(catalog)
    spans = catalog.spans.to_pylist() if old else []
    stand = {_place(span) for span in spans if span["part"] in new}
    left = [span["part"] not in old or _place(span) not in stand for span in spans]
    return replace(catalog, rows=rows, spans=catalog.spans.filter(pa.array(left)) if spans else catalog.spans)


def taken_over(catalog: Catalog) -> np.ndarray:
    """Which rows stand in a part that replaced theirs: (n,) bool. What was not taken over counts as before."""
    found = np.zeros(len(catalog.rows), bool)
    old, new = (np.isin(catalog.rows["part"].to_numpy(), list(numbers)) for numbers in _successions(catalog))
    if old.any():
        names = ["key", "version", "attempt"]
        rows = catalog.rows.select(names).append_column("row", pa.array(np.arange(len(found))))
        again = rows.filter(pa.array(old)).join(rows.filter(pa.array(new)), names, join_type="left semi")
        found[again["row"].to_numpy()] = True
    return found


def _successions(catalog: Catalog) -> tuple[set[int], set[int]]:
    """The parts that were replaced and still stand, and those that replaced any and stand for good."""
    olds = {old for names in catalog.replaces.values() for old in names}
    number = {name: i for i, name in enumerate(catalog.parts)}
    return {number[n] for n in olds if n in number}, {number[n] for n in catalog.replaces if n not in olds}


def _place(span: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(span[name] for name in (*SPAN, "attempt"))


def load_whole(store: Store, encoder_id: str, keep: bool = True) -> Catalog:
    """The catalog with every row: from its cache, and from the parts that are not in it yet."""
    names = [n.removesuffix(".parquet") for n in store.sizes(f"parts/{encoder_id}") if n.endswith(".parquet")]
    cached = _read_cache(store, encoder_id)
    if cached is not None and cached.parts == names:
        return cached
    known = {part: i for i, part in enumerate(cached.parts)} if cached else {}
    new = [name for name in names if name not in known]

    def read(part: str) -> tuple[pa.Table, str, list[list[Any]], list[str]]:
        with store.open(part_path(encoder_id, part)) as file:
            table = read_light(file, part)
        metadata = table.schema.metadata
        light = table.replace_schema_metadata(None)
        return light, metadata[b"fingerprint"].decode(), container_spans(metadata), replaces(metadata)

    with ThreadPoolExecutor(READERS) as pool:
        read_parts = dict(zip(new, pool.map(read, new), strict=True))
    if cached is not None:
        starts = np.searchsorted(cached.rows["part"].to_numpy(), np.arange(len(cached.parts) + 1))
        light = cached.rows.select(LIGHT)
    taken = (cached.replaces if cached else {}) | {name: made[3] for name, made in read_parts.items() if made[3]}
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
    rows, standing = pa.concat_tables(tables).combine_chunks(), set(names)
    taken = {name: olds for name, olds in taken.items() if name in standing}
    catalog = Catalog(names, fingerprints, rows, _spans_of(names, spans), taken)
    if keep:
        write_cache(store, encoder_id, catalog)
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


def write_cache(store: Store, encoder_id: str, catalog: Catalog) -> None:
    """Keep a catalog for the next run."""
    distinct = sorted(set(catalog.fingerprints))
    metadata = {
        b"parts": canonical_json(catalog.parts),
        b"distinct": canonical_json(distinct),
        b"fingerprints": canonical_json([distinct.index(text) for text in catalog.fingerprints]),
        b"spans": canonical_json(_named_spans(catalog)),
        b"replaces": canonical_json(catalog.replaces),
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
            parts,
            fingerprints,
            table.cast(CATALOG_SCHEMA),
            _spans_of(parts, json.loads(metadata[b"spans"])),
            json.loads(metadata[b"replaces"]),
        )
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None

"""The catalog: the light columns of all parts; and what follows from it: work to do, and the rows that live."""

import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.config import Source, canonical_json
from sif_batch.images import TRANSIENT
from sif_batch.parts import LIGHT, PART_SCHEMA, part_path, read_light
from sif_batch.shards import SPAN_SCHEMA
from sif_batch.sources.files import uri_prefix
from sif_batch.sources.names import key_of
from sif_batch.storage import Store, digest

MAX_ATTEMPTS = 3
READERS = 8
ENTRY = ["source", "path", "version"]
CATALOG_SCHEMA = pa.schema([("part", pa.int32()), ("row", pa.uint16()), *(PART_SCHEMA.field(name) for name in LIGHT)])


@dataclass(frozen=True)
class Catalog:
    """rows: CATALOG_SCHEMA, `part` counting in `parts` (names in order); fingerprints: JSON text by part."""

    parts: list[str]
    fingerprints: list[str]
    rows: pa.Table


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

    def read(part: str) -> tuple[pa.Table, str]:
        with store.open(part_path(encoder_id, part)) as file:
            table = read_light(file, part)
        return table.replace_schema_metadata(None), table.schema.metadata[b"fingerprint"].decode()

    with ThreadPoolExecutor(READERS) as pool:
        read_parts = dict(zip(new, pool.map(read, new), strict=True))
    if cached is not None:
        starts = np.searchsorted(cached.rows["part"].to_numpy(), np.arange(len(cached.parts) + 1))
        light = cached.rows.select(LIGHT)
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
    catalog = Catalog(names, fingerprints, pa.concat_tables(tables).combine_chunks())
    if keep:
        _write_cache(store, encoder_id, catalog)
    return catalog


def _cache_path(encoder_id: str) -> str:
    return f"catalog/{encoder_id}.parquet"


def _write_cache(store: Store, encoder_id: str, catalog: Catalog) -> None:
    distinct = sorted(set(catalog.fingerprints))
    metadata = {
        b"parts": canonical_json(catalog.parts),
        b"distinct": canonical_json(distinct),
        b"fingerprints": canonical_json([distinct.index(text) for text in catalog.fingerprints]),
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
        return Catalog(json.loads(metadata[b"parts"]), fingerprints, table.cast(CATALOG_SCHEMA))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None


def keys_of(entries: pa.Table) -> pa.Array:
    """The key of each entry of a listing: `sources.names.key_of`, for a column at once."""
    joined = pc.binary_join_element_wise(entries["source"], entries["path"], "/")
    joined = joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
    plain = pc.string_is_ascii(joined)
    # pyarrow 25's utf8_normalize decomposes where NFC is asked for.
    others = entries.select(["source", "path"]).filter(pc.invert(plain)).to_pylist()
    normal = pa.array([key_of(**other) for other in others], pa.string())
    return pc.replace_with_mask(pc.replace_substring(joined, "::", "%3A%3A"), pc.invert(plain), normal)


def find_duplicates(keys: pa.Array) -> np.ndarray:
    """Which entries have the key of an earlier one: twins under Unicode NFC. (n,) bool."""
    twin = np.zeros(len(keys), bool)
    if pc.count_distinct(keys).as_py() == len(keys):
        return twin
    codes = keys.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    twin[:] = True
    twin[first] = False
    return twin


@dataclass(frozen=True)
class Standing:
    """What is known of a listing's entries, each in its place: all arrays are (entries,).

    row: number of the catalog row that stands for it, -1 for none; good: that row holds an embedding;
    retry: its failure is transient and not yet tried often enough; duplicate: twin of an earlier entry.
    """

    row: np.ndarray
    good: np.ndarray
    retry: np.ndarray
    attempt: np.ndarray
    duplicate: np.ndarray
    keys: pa.Array

    @property
    def todo(self) -> np.ndarray:
        return (self.row < 0) | self.retry


def standing_rows(entries: pa.Table, catalog: Catalog, max_attempts: int = MAX_ATTEMPTS) -> Standing:
    """The row that stands for each entry: embedded before failed, then highest attempt, then smallest part name."""
    keys = keys_of(entries)
    duplicate = find_duplicates(keys)
    rows = catalog.rows
    numbered = entries.select(ENTRY).append_column("entry", pa.array(np.arange(len(entries))))
    candidates = rows.select(ENTRY).append_column("row", pa.array(np.arange(len(rows))))
    pairs = candidates.join(numbered, ENTRY, join_type="inner")
    entry, row = pairs["entry"].to_numpy(), pairs["row"].to_numpy()

    kinds = rows["error_kind"]
    bad = kinds.is_valid().to_numpy()
    attempts = rows["attempt"].to_numpy()
    parts = rows["part"].to_numpy()
    is_twin = pc.fill_null(pc.equal(kinds, "duplicate_key"), False).to_numpy()
    fits = is_twin[row] == duplicate[entry]
    entry, row = entry[fits], row[fits]
    order = np.lexsort((rows["row"].to_numpy()[row], parts[row], -attempts[row], bad[row], entry))
    entry, row = entry[order], row[order]
    first = np.flatnonzero(np.diff(entry, prepend=-1))

    standing = np.full(len(entries), -1, np.int64)
    standing[entry[first]] = row[first]
    has = standing >= 0
    good = has & ~_at(bad, standing)
    transient = pc.is_in(kinds, pa.array(TRANSIENT)).to_numpy()
    attempt = np.where(has, _at(attempts, standing), 0)
    retry = has & _at(transient, standing) & (attempt < max_attempts)
    return Standing(standing, good, retry, attempt, duplicate, keys)


def spans_to_do(entries: pa.Table, standing: Standing, todo: np.ndarray | None = None) -> pa.Table:
    """SPAN_SCHEMA: the listing minus the rows that stand; one span an entry. todo: (entries,) bool, if fewer."""
    todo = standing.todo if todo is None else todo
    picked = entries.filter(pa.array(todo))
    n = len(picked)
    zeros = np.zeros(n, np.int64)
    columns = [
        *(picked[name] for name in ("source", "path", "size", "version")),
        zeros,
        zeros,
        np.ones(n, bool),
        (standing.attempt[todo] + 1).astype(np.int8),
        standing.duplicate[todo],
    ]
    return pa.table(columns, schema=SPAN_SCHEMA)


def stale_rows(entries: pa.Table, standing: Standing, catalog: Catalog, older: Iterable[pa.Table]) -> np.ndarray:
    """For entries whose present version fails only for now: the good row of the version listed last before.

    older: earlier listings' entries, newest first. Returns (entries,) int64 numbers of catalog rows, -1 for none.
    """
    rows = catalog.rows
    kinds = pc.is_in(rows["error_kind"], pa.array(TRANSIENT)).to_numpy()
    stale = np.full(len(entries), -1, np.int64)
    pending = np.flatnonzero((standing.row >= 0) & _at(kinds, standing.row) & ~standing.duplicate)
    for listing in older:
        if not len(pending):
            break
        wanted = entries.select(["source", "path"]).take(pending).append_column("entry", pa.array(pending))
        before = listing.select(ENTRY).join(wanted, ["source", "path"], join_type="inner")
        then = standing_rows(before.select(ENTRY), catalog)
        found = np.flatnonzero(then.good)
        stale[before["entry"].to_numpy()[found]] = then.row[found]
        pending = pending[stale[pending] < 0]
    return stale


def live_rows(catalog: Catalog, live: np.ndarray, sources: Sequence[Source]) -> pa.Table:
    """The catalog rows that a release is made of, with their uri, in order of (hash, key).

    live: (n,) numbers of catalog rows, in any order.
    """
    rows = catalog.rows.take(pa.array(live))
    prefixes = {source.name: uri_prefix(source) for source in sources}
    names = rows["source"].unique().to_pylist()
    place = pc.index_in(rows["source"], pa.array(names, pa.string()))
    prefix = pa.array([prefixes[name] for name in names], pa.string()).take(place)
    rows = rows.append_column("uri", pc.binary_join_element_wise(prefix, rows["path"], ""))
    return rows.take(pc.sort_indices(rows, [("hash", "ascending"), ("key", "ascending")])).combine_chunks()


def failures_by_kind(catalog: Catalog, rows: np.ndarray) -> dict[str, int]:
    """How many of these catalog rows failed, by kind, most frequent first."""
    counts = catalog.rows["error_kind"].take(rows).drop_null().value_counts().to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counts, key=lambda c: (-c["counts"], c["values"]))}


def _at(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """values[rows], any value where the row is -1."""
    return values[rows] if len(values) else np.zeros(len(rows), values.dtype)

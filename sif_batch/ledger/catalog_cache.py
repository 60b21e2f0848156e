"""The catalog's cache in ROOT: loaded, brought up to the parts that stand, and written anew."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.digests import canonical_json, digest, sha256_of
from sif_batch.ledger.catalog import CATALOG_SCHEMA, CONTAINER_SCHEMA, Catalog, taken_over, without_rows
from sif_batch.ledger.entry_digests import entry_digests
from sif_batch.ledger.parts import container_spans, part_path, read_light, replaces
from sif_batch.ledger.tombstones import read_erased
from sif_batch.machine.read_ahead import ahead
from sif_batch.storage.store import Store
from sif_batch.storage.table_file import TableFile

READERS = 8
READ_AHEAD = 64
ROW_GROUP = 2**18


def load_catalog(store: Store, encoder_id: str, keep: bool = True) -> Catalog:
    """The catalog of all parts that stand, without rows that were erased, or that another part has taken over.

    keep: write its cache anew where it was behind; a reader of ROOT does not.
    """
    catalog = load_whole(store, encoder_id, keep)
    gone = read_erased(store).holds(catalog.rows) | taken_over(catalog)
    return without_rows(catalog, gone) if gone.any() else catalog


def load_whole(store: Store, encoder_id: str, keep: bool = True) -> Catalog:
    """The catalog with every row: from its cache, and from the parts that are not in it yet."""
    names = [n.removesuffix(".parquet") for n in store.sizes(f"parts/{encoder_id}") if n.endswith(".parquet")]
    cached = _read_cache(store, encoder_id)
    if cached is not None and cached.parts == names:
        return cached
    if not keep:
        sink = io.BytesIO()
        _write_anew(store, encoder_id, names, cached, sink)
        return _open_cache(pa.BufferReader(sink.getbuffer()))
    with store.scratch("catalog") as folder:
        with open(made := folder / "rows.parquet", "wb") as file:
            _write_anew(store, encoder_id, names, cached, file)
        path, sha256 = cache_path(encoder_id), sha256_of(made)
        if not store.local:
            catalog = _open_cache(pa.BufferReader(made.read_bytes()))
        store.publish(path, made, replace=True)
        store.replace(f"{path}.sha256", sha256.encode())
    return _open_cache(pa.OSFile(store.path(path))) if store.local else catalog


def _write_anew(store: Store, encoder_id: str, names: Sequence[str], cached: Catalog | None, sink: BinaryIO) -> None:
    """Write the cache of these parts, row group by row group: what it held, and the parts that it did not."""
    known = {part: i for i, part in enumerate(cached.parts)} if cached else {}
    about: dict[str, tuple[str, list[list[Any]], list[str]]] = {}
    if cached is not None:
        spans = _named_spans(cached)
        for part, fingerprint in zip(cached.parts, cached.fingerprints, strict=True):
            about[part] = fingerprint, spans.get(part, []), cached.replaces.get(part, [])
    number = {name: i for i, name in enumerate(names)}

    def read(part: str) -> pa.Table:
        with store.open(part_path(encoder_id, part)) as file:
            table = read_light(file, part)
        metadata = table.schema.metadata
        about[part] = metadata[b"fingerprint"].decode(), container_spans(metadata), replaces(metadata)
        own = [pa.repeat(pa.scalar(number[part], pa.int32()), len(table)), np.arange(len(table), dtype=np.uint16)]
        columns = [*own, entry_digests(table), *table.columns]
        return pa.table(columns, schema=CATALOG_SCHEMA)

    unknown = [name for name in names if name not in known]
    with CacheWriter(sink) as writer:
        tables = ahead(lambda place: read(unknown[place]), range(len(unknown)), READERS, READ_AHEAD)
        new = (table for _, table in tables if len(table))
        old = _renumbered(cached, number) if cached is not None else iter(())
        for table in _merged(old, new):
            writer.write(table)
        spans = {name: about[name][1] for name in names if about[name][1]}
        taken = {name: about[name][2] for name in names if about[name][2]}
        writer.describe(names, [about[name][0] for name in names], spans, taken)


def _renumbered(cached: Catalog, number: dict[str, int]) -> Iterator[pa.Table]:
    """The cached rows of parts that still stand, under their new numbers."""
    renumber = np.array([number.get(part, -1) for part in cached.parts], np.int32)
    for table in cached.rows.batches(CATALOG_SCHEMA.names):
        part = renumber[table["part"].to_numpy()]
        yield table.set_column(0, "part", pa.array(part)).filter(pa.array(part >= 0))


def _merged(old: Iterator[pa.Table], new: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables in order of their part, of two streams that are."""
    pending = next(new, None)
    for table in old:
        start, part = 0, table["part"].to_numpy()
        while pending is not None and len(table) and pending["part"][0].as_py() < part[-1]:
            end = int(np.searchsorted(part, pending["part"][0].as_py()))
            yield table.slice(start, end - start)
            yield pending
            start, pending = end, next(new, None)
        yield table.slice(start)
    while pending is not None:
        yield pending
        pending = next(new, None)


class CacheWriter:
    """Writes a cache: rows in order of their part, then what is known of the parts."""

    def __init__(self, sink: BinaryIO):
        plain = ("entry", "hash", "sha256")  # digests take no less room compressed
        self._writer = pq.ParquetWriter(
            sink,
            CATALOG_SCHEMA,
            compression={name: "none" if name in plain else "zstd" for name in CATALOG_SCHEMA.names},
            use_dictionary=["source", "version", "attempt", "width", "height", "error_kind", "error"],
            write_statistics=False,
        )
        self._tables: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables([CATALOG_SCHEMA.empty_table(), *self._tables]).combine_chunks()
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._tables, self._rows = [], 0

    def describe(
        self,
        parts: Sequence[str],
        fingerprints: Sequence[str],
        spans: dict[str, list[list[Any]]],
        replaces: dict[str, list[str]],
    ) -> None:
        """End it: what is known of the parts."""
        self._flush()
        distinct = sorted(set(fingerprints))
        place = {text: number for number, text in enumerate(distinct)}
        self._writer.add_key_value_metadata(
            {
                b"parts": canonical_json(list(parts)),
                b"distinct": canonical_json(distinct),
                b"fingerprints": canonical_json([place[text] for text in fingerprints]),
                b"spans": canonical_json(spans),
                b"replaces": canonical_json(replaces),
            }
        )


def _named_spans(cached: Catalog) -> dict[str, list[list[Any]]]:
    """The containers' spans by part name."""
    return {cached.parts[span["part"]]: [list(span.values())[1:]] for span in cached.spans.to_pylist()}


def _spans_of(parts: Sequence[str], spans: dict[str, list[list[Any]]]) -> pa.Table:
    """CONTAINER_SCHEMA of the spans by part name."""
    rows = [[number, *span] for number, name in enumerate(parts) for span in spans.get(name, ())]
    columns = list(zip(*rows, strict=True)) or [()] * len(CONTAINER_SCHEMA)
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, CONTAINER_SCHEMA, strict=True)], schema=CONTAINER_SCHEMA
    )


def cache_path(encoder_id: str) -> str:
    return f"catalog/{encoder_id}.parquet"


def _read_cache(store: Store, encoder_id: str) -> Catalog | None:
    """The cached catalog; None where there is none or it cannot be read: it is only a cache."""
    path = cache_path(encoder_id)
    try:
        expected = store.read(f"{path}.sha256").decode()
        if store.local:
            return _open_cache(pa.OSFile(store.path(path))) if sha256_of(Path(store.path(path))) == expected else None
        data = store.read(path)
        return _open_cache(pa.BufferReader(data)) if digest(data) == expected else None
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None


def _open_cache(source: pa.NativeFile) -> Catalog:
    """A cache as it was written; anything else raises."""
    rows = TableFile(source)
    if rows.schema != CATALOG_SCHEMA:  # of another version
        raise ValueError("this is no catalog")
    about = {name: json.loads(rows.metadata[name]) for name in (b"parts", b"distinct", b"spans", b"replaces")}
    fingerprints = [about[b"distinct"][number] for number in json.loads(rows.metadata[b"fingerprints"])]
    parts = about[b"parts"]
    return Catalog(parts, fingerprints, rows, _spans_of(parts, about[b"spans"]), about[b"replaces"])

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import (
    ENCODER,
    Row,
    flip_bit,
    part_bytes,
    paths,
    write_part,
    write_parts,
)

from sif_batch.errors import SifBatchError
from sif_batch.ledger.catalog import CATALOG_SCHEMA, Catalog
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.entry_digests import entry_digests
from sif_batch.ledger.parts import LIGHT, part_path
from sif_batch.storage.store import Store

NFC, NFD = "caf\u00e9.jpg", "cafe\u0301.jpg"
CACHE = f"catalog/{ENCODER}.parquet"


def same(one: Catalog, other: Catalog) -> bool:
    return (one.parts, one.fingerprints) == (other.parts, other.fingerprints) and one.rows.equals(other.rows)


def rebuilt(store: Store) -> Catalog:
    """The catalog as it is without a cache."""
    if store.exists(CACHE):
        store.fs.rm(store.path(CACHE))
    return load_catalog(store, ENCODER, keep=False)


# The catalog and its cache.


def test_the_catalog_holds_the_light_columns_of_all_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [*(Row(path) for path in paths(50)), Row("bad.jpg", kind="corrupt")]
    names = sorted(write_parts(store, rows, 20))
    catalog = load_catalog(store, ENCODER)
    assert catalog.parts == names and catalog.fingerprints == ['{"machine":"this"}'] * 3
    assert catalog.rows.schema == CATALOG_SCHEMA
    expected = []
    for number, name in enumerate(names):
        table = pq.read_table(io.BytesIO(store.read(part_path(ENCODER, name))), columns=LIGHT)
        entry = entry_digests(table).to_pylist()
        expected += [{"part": number, "row": i, "entry": entry[i], **r} for i, r in enumerate(table.to_pylist())]
    assert catalog.rows.to_pylist() == expected


def test_without_parts_the_catalog_is_empty(tmp_path: Path) -> None:
    catalog = load_catalog(Store(str(tmp_path)), ENCODER)
    assert catalog.parts == [] and len(catalog.rows) == 0


def test_the_cached_catalog_equals_the_rebuilt_one_as_parts_come_and_go(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    names = [
        write_part(store, [Row(path) for path in paths(10, start)], fingerprint=f) for start, f in ((0, "a"), (10, "b"))
    ]
    first = load_catalog(store, ENCODER)
    assert store.exists(CACHE)
    assert same(load_catalog(store, ENCODER), first) and same(rebuilt(store), first)
    load_catalog(store, ENCODER)
    for start in range(20, 60, 10):  # new parts before, between and after the old ones, in order of their names
        write_part(store, [Row(path) for path in paths(10, start)], fingerprint="c")
        assert same(load_catalog(store, ENCODER), load_catalog(store, ENCODER))
    assert same(load_catalog(store, ENCODER), rebuilt(store))
    load_catalog(store, ENCODER)
    for name in names:
        store.fs.rm(store.path(part_path(ENCODER, name)))
        kept = load_catalog(store, ENCODER)
        assert name not in kept.parts and same(kept, load_catalog(store, ENCODER))
    assert same(kept, rebuilt(store))


def test_the_cache_is_read_instead_of_the_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (name,) = write_parts(store, [Row(path) for path in paths(10)], 10)
    catalog = load_catalog(store, ENCODER)
    Path(store.path(part_path(ENCODER, name))).write_bytes(b"no part")
    assert same(load_catalog(store, ENCODER), catalog)


def test_a_reader_writes_no_cache(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_parts(store, [Row(path) for path in paths(10)], 10)
    load_catalog(store, ENCODER, keep=False)
    assert not store.exists("catalog")


def table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"PAR1",
        b"no parquet at all" * 10,
        table_bytes(pa.table({"a": [1]})),
        table_bytes(CATALOG_SCHEMA.empty_table()),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    store = Store(str(tmp_path))
    write_parts(store, [Row(path) for path in paths(30)], 10)
    catalog = load_catalog(store, ENCODER)
    whole = store.read(CACHE)
    store.replace(CACHE, damage)
    assert same(load_catalog(store, ENCODER), catalog)
    assert store.read(CACHE) == whole
    store.replace(CACHE, whole[: len(whole) // 2])
    assert same(load_catalog(store, ENCODER), catalog)


def test_any_flipped_bit_of_the_cache_does_no_harm(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for start in range(0, 30, 10):
        write_part(store, [Row(path) for path in paths(10, start)], fingerprint=str(start % 20))
    catalog = load_catalog(store, ENCODER)
    whole = store.read(CACHE)
    for bit in np.random.default_rng(2).integers(0, 8 * len(whole), 100).tolist():
        store.replace(CACHE, whole)
        flip_bit(Path(store.path(CACHE)), bit)
        assert same(load_catalog(store, ENCODER), catalog), bit


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (name,) = write_parts(store, [Row(path) for path in paths(10)], 10)
    Path(store.path(part_path(ENCODER, name))).write_bytes(part_bytes([Row("a.jpg")])[:100])
    with pytest.raises(SifBatchError, match=f"part {name} is damaged") as raised:
        load_catalog(store, ENCODER)
    assert raised.value.remedy

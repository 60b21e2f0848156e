import io
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import (
    ENCODER,
    SOURCE,
    Row,
    checked,
    entries_of,
    find_live,
    flip_bit,
    make_root,
    part_bytes,
    paths,
    write_part,
    write_parts,
)

from sif_batch.catalog import (
    CATALOG_SCHEMA,
    Catalog,
    failures_by_kind,
    keys_of,
    live_rows,
    load_catalog,
    spans_to_do,
    stale_rows,
    standing_rows,
)
from sif_batch.config import SifBatchError, Source
from sif_batch.images import PERMANENT, TRANSIENT
from sif_batch.parts import LIGHT, part_path
from sif_batch.shards import SPAN_SCHEMA
from sif_batch.sources.names import hash_of, key_of
from sif_batch.storage import Store

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
        expected += [{"part": number, "row": i, **row} for i, row in enumerate(table.to_pylist())]
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


# Which row stands.

KINDS = [None, None, "corrupt", "unreadable", "timeout", "duplicate_key"]
PATHS = ["a.jpg", "b::c.jpg", NFC, NFD, "x/日本.jpg"]
row_sets = st.lists(
    st.builds(
        Row,
        path=st.sampled_from(PATHS),
        version=st.sampled_from(["1", "2"]),
        attempt=st.integers(1, 4),
        kind=st.sampled_from(KINDS),
        source=st.sampled_from(["photos", "cats"]),
    ),
    max_size=8,
    unique_by=lambda row: (row.source, row.path, row.version),
)
ledgers = st.dictionaries(st.integers(0, 99).map("part{:02d}".format), row_sets.filter(bool), max_size=5)
listings = st.lists(
    st.builds(
        Row,
        path=st.sampled_from(PATHS),
        version=st.sampled_from(["1", "2"]),
        source=st.sampled_from(["photos", "cats"]),
    ),
    max_size=10,
    unique_by=lambda row: (row.source, row.path),
)


@dataclass(frozen=True)
class Stood:
    """What the plain reference says of one entry."""

    where: tuple[str, str] | None  # part and path of the row that stands
    good: bool
    retry: bool
    next_attempt: int
    duplicate: bool


def stand_slowly(listing: list[Row], ledger: dict[str, list[Row]], max_attempts: int) -> list[Stood]:
    """One entry after the other, one row after the other. listing: in order."""
    seen: set[str] = set()
    stood = []
    for entry in listing:
        key = key_of(entry.source, entry.path)
        twin = key in seen
        seen.add(key)
        best: tuple[tuple[bool, int, str], Row, str] | None = None
        for part, rows in ledger.items():
            for row in rows:
                if (row.source, row.path, row.version) != (entry.source, entry.path, entry.version):
                    continue
                if (row.kind == "duplicate_key") != twin:
                    continue
                rank = (row.kind is not None, -row.attempt, part)
                if best is None or rank < best[0]:
                    best = (rank, row, part)
        if best is None:
            stood.append(Stood(None, False, False, 1, twin))
            continue
        _, row, part = best
        retry = row.kind in TRANSIENT and row.attempt < max_attempts
        stood.append(Stood((part, row.path), row.kind is None, retry, row.attempt + 1, twin))
    return stood


def in_memory(ledger: dict[str, list[Row]]) -> Catalog:
    """The catalog of these parts, by way of a ROOT."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for name, rows in ledger.items():
            write_part(store, rows, name)
        return load_catalog(store, ENCODER)


@checked
@given(listings, ledgers, st.integers(1, 4))
def test_the_standing_rows_and_the_work_to_do_are_those_of_a_plain_reference(
    listing: list[Row], ledger: dict[str, list[Row]], max_attempts: int
) -> None:
    listing = sorted(listing, key=lambda row: (row.source, row.path.encode()))
    entries, catalog = entries_of(listing), in_memory(ledger)
    standing = standing_rows(entries, catalog, max_attempts)
    expected = stand_slowly(listing, ledger, max_attempts)

    rows = catalog.rows.select(["part", "path", "source", "version"]).to_pylist()
    for number, entry, wanted in zip(standing.row.tolist(), listing, expected, strict=True):
        found = rows[number] if number >= 0 else None
        assert (found and (catalog.parts[found["part"]], found["path"])) == wanted.where
        assert found is None or (found["source"], found["version"]) == (entry.source, entry.version)
    assert standing.good.tolist() == [wanted.good for wanted in expected]
    assert standing.retry.tolist() == [wanted.retry for wanted in expected]
    assert standing.duplicate.tolist() == [wanted.duplicate for wanted in expected]

    todo = spans_to_do(entries, standing)
    assert todo.schema == SPAN_SCHEMA
    columns = ["source", "path", "version", "attempt", "duplicate"]
    assert [tuple(span[name] for name in columns) for span in todo.select(columns).to_pylist()] == [
        (entry.source, entry.path, entry.version, wanted.next_attempt, wanted.duplicate)
        for entry, wanted in zip(listing, expected, strict=True)
        if wanted.where is None or wanted.retry
    ]
    assert set(zip(*todo.select(["first", "last", "end"]).to_pydict().values(), strict=True)) <= {(0, 0, True)}


@checked
@given(listings, ledgers)
def test_an_entry_lives_at_most_once_and_nothing_lives_that_is_not_listed(
    listing: list[Row], ledger: dict[str, list[Row]]
) -> None:
    entries, catalog = entries_of(listing), in_memory(ledger)
    standing = standing_rows(entries, catalog)
    if not standing.good.any():
        return
    live = standing.row[standing.good]
    table = live_rows(catalog, live, [SOURCE, Source(name="cats", url="/cats")])
    keys = table["key"].to_pylist()
    assert len(set(keys)) == len(keys) == standing.good.sum()
    assert set(keys) <= {key_of(row.source, row.path) for row in listing}
    order = list(zip(table["hash"].to_pylist(), keys, strict=True))
    assert order == sorted(order) and order == [(hash_of(key), key) for key in keys]
    assert table["error_kind"].null_count == len(table)


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ({"p1": Row("a", attempt=1), "p2": Row("a", attempt=2, kind="corrupt")}, "p1"),  # embedded before failed
        (
            {"p1": Row("a", attempt=1, kind="timeout"), "p2": Row("a", attempt=2, kind="corrupt")},
            "p2",
        ),  # highest attempt
        ({"p1": Row("a", attempt=1), "p2": Row("a", attempt=2)}, "p2"),
        ({"p2": Row("a"), "p1": Row("a")}, "p1"),  # smallest part name
        ({"p1": Row("a", version="0"), "p2": Row("a", kind="corrupt")}, "p2"),  # only of this version
    ],
)
def test_of_several_rows_the_best_stands(rows: dict[str, Row], part: str) -> None:
    catalog = in_memory({name: [row] for name, row in rows.items()})
    (number,) = standing_rows(entries_of([Row("a")]), catalog).row
    assert catalog.parts[catalog.rows["part"][int(number)].as_py()] == part


@pytest.mark.parametrize("kind", [*PERMANENT, *TRANSIENT])
def test_only_a_transient_failure_is_tried_again_and_only_so_often(kind: str) -> None:
    entries = entries_of([Row("a")])
    for attempt in (1, 2, 3):
        catalog = in_memory({"p": [Row("a", attempt=attempt, kind=kind)]})
        standing = standing_rows(entries, catalog, max_attempts=3)
        if kind == "duplicate_key":
            assert standing.row.tolist() == [-1]  # no twin any more: to do, as if for the first time
            assert spans_to_do(entries, standing)["attempt"].to_pylist() == [1]
            continue
        assert standing.todo.tolist() == [kind in TRANSIENT and attempt < 3]
        assert spans_to_do(entries, standing)["attempt"].to_pylist() == ([attempt + 1] if standing.todo[0] else [])


def test_of_nfc_twins_the_second_is_a_duplicate() -> None:
    entries = entries_of([Row(NFC), Row(NFD)])
    assert entries["path"].to_pylist() == [NFD, NFC]
    standing = standing_rows(entries, in_memory({}))
    assert standing.duplicate.tolist() == [False, True]
    assert spans_to_do(entries, standing)["duplicate"].to_pylist() == [False, True]
    done = in_memory({"p": [Row(NFD), Row(NFC, kind="duplicate_key")]})
    assert standing_rows(entries, done).todo.tolist() == [False, False]
    # Once the first is gone, the second is an image like any other.
    alone = standing_rows(entries_of([Row(NFC)]), done)
    assert alone.todo.tolist() == [True] and alone.duplicate.tolist() == [False]


# Stale rows.


def stale_of(now: list[Row], older: list[list[Row]], ledger: dict[str, list[Row]]) -> list[tuple[str, str] | None]:
    """For each entry of `now`, in order, (path, version) of its stale row."""
    catalog, entries = in_memory(ledger), entries_of(now)
    standing = standing_rows(entries, catalog)
    stale = stale_rows(entries, standing, catalog, [entries_of(listing) for listing in older])
    rows = catalog.rows.to_pylist()
    assert all(rows[number]["error_kind"] is None for number in stale if number >= 0)
    return [(rows[n]["path"], rows[n]["version"]) if n >= 0 else None for n in stale.tolist()]


A, B, C = (Row("a.jpg", version=version) for version in "ABC")


def failed(row: Row, kind: str = "unreadable", attempt: int = 1) -> Row:
    return replace(row, kind=kind, attempt=attempt)


def test_the_old_row_stays_live_while_the_new_version_fails_for_now() -> None:
    assert stale_of([B], [[A]], {"p": [A], "q": [failed(B)]}) == [("a.jpg", "A")]
    assert stale_of([B], [[A]], {"p": [A], "q": [failed(B, attempt=3)]}) == [("a.jpg", "A")]


def test_nothing_is_stale_when_the_new_version_is_good_or_fails_for_good_or_was_not_tried() -> None:
    assert stale_of([B], [[A]], {"p": [A], "q": [B]}) == [None]
    assert stale_of([B], [[A]], {"p": [A], "q": [failed(B, "corrupt")]}) == [None]
    assert stale_of([B], [[A]], {"p": [A]}) == [None]


def test_the_version_listed_last_before_is_the_one_that_stays() -> None:
    ledger = {"p": [A], "q": [B], "r": [failed(C)]}
    assert stale_of([C], [[B], [A]], ledger) == [("a.jpg", "B")]
    assert stale_of([C], [[A], [B]], ledger) == [("a.jpg", "A")]
    # The listing may have named the failing version for several nights, or not have named the image at all.
    assert stale_of([C], [[C], [C], [B], [A]], ledger) == [("a.jpg", "B")]
    assert stale_of([C], [[Row("b.jpg")], [B]], ledger) == [("a.jpg", "B")]
    assert stale_of([C], [], ledger) == [None]


def test_two_failing_versions_in_a_row_leave_the_last_good_one() -> None:
    assert stale_of([C], [[B], [A]], {"p": [A], "q": [failed(B)], "r": [failed(C)]}) == [("a.jpg", "A")]


def test_each_image_keeps_its_own_old_row() -> None:
    now = [Row(f"{i}.jpg", version="B") for i in range(8)]
    old = [Row(f"{i}.jpg", version="A") for i in range(8)]
    ledger = {"p": old, "q": [failed(row) if i % 2 else row for i, row in enumerate(now)]}
    assert stale_of(now, [old], ledger) == [(row.path, "A") if i % 2 else None for i, row in enumerate(now)]
    assert stale_of(now, [old[:2], old[2:]], ledger) == [
        (row.path, "A") if i % 2 else None for i, row in enumerate(now)
    ]


# Live rows.


@pytest.mark.parametrize("size", [1, 7, 100])
def test_live_rows_are_independent_of_the_slicing_into_parts(tmp_path: Path, size: int) -> None:
    rows = [*(Row(path) for path in paths(60)), Row("bad.jpg", kind="corrupt"), Row(NFD), Row("a::b.jpg")]
    entries = entries_of(rows)
    whole = find_live(make_root(tmp_path / "whole", rows, 1000), entries)
    other = [rows[i] for i in np.random.default_rng(size).permutation(len(rows))]
    sliced = find_live(make_root(tmp_path / "sliced", other, size), entries)
    light = [name for name in whole.table.column_names if name not in ("part", "row")]
    assert sliced.table.select(light).equals(whole.table.select(light))
    assert len(whole.parts) == 1 and len(sliced.parts) == -(-len(rows) // size)


def test_live_rows_have_the_uri_where_each_can_be_opened(tmp_path: Path) -> None:
    rows = [Row("x/1.jpg"), Row("x/1.jpg", source="cats"), Row(NFD, source="cats"), Row("a::b.jpg", source="dogs")]
    sources = [
        Source(name="photos", url="/data/*/*.jpg"),
        Source(name="cats", url="memory://cats"),
        Source(name="dogs", url="/d"),
    ]
    table = find_live(make_root(tmp_path, rows), entries_of(rows), sources).table
    found = dict(zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True))
    assert found == {
        "photos/x/1.jpg": "/data/x/1.jpg",
        "cats/x/1.jpg": "memory:///cats/x/1.jpg",
        f"cats/{NFC}": f"memory:///cats/{NFD}",
        "dogs/a%3A%3Ab.jpg": "/d/a::b.jpg",
    }


def test_without_good_rows_nothing_lives(tmp_path: Path) -> None:
    rows = [Row("a.jpg", kind="corrupt")]
    assert len(find_live(make_root(tmp_path, rows), entries_of(rows)).table) == 0


def test_failures_are_counted_by_kind_most_frequent_first() -> None:
    kinds = ["timeout", "corrupt", None, "corrupt", "truncated", None]
    catalog = in_memory({"p": [Row(f"{i}.jpg", kind=kind) for i, kind in enumerate(kinds)]})
    counts = failures_by_kind(catalog, np.arange(6))
    assert list(counts.items()) == [("corrupt", 2), ("timeout", 1), ("truncated", 1)]
    assert failures_by_kind(catalog, np.arange(0)) == {}


def test_keys_of_an_empty_listing_are_none() -> None:
    assert len(keys_of(entries_of([]))) == 0

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
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
    make_root,
    paths,
    write_part,
)

from sif_batch.config import Source
from sif_batch.failures import PERMANENT, TRANSIENT
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.live import failures_by_kind, live_rows
from sif_batch.ledger.plan import SPAN_SCHEMA
from sif_batch.ledger.reconcile import stale_rows, standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.sources.listing import keys_of
from sif_batch.sources.names import hash_of, key_of
from sif_batch.storage.store import Store

NFC, NFD = "caf\u00e9.jpg", "cafe\u0301.jpg"


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
    standing_row = dict(zip(standing.entry.tolist(), standing.row.tolist(), strict=True))
    assert len(standing_row) == len(standing.row)
    for number, (entry, wanted) in enumerate(zip(listing, expected, strict=True)):
        found = rows[standing_row[number]] if number in standing_row else None
        assert (found and (catalog.parts[found["part"]], found["path"])) == wanted.where
        assert found is None or (found["source"], found["version"]) == (entry.source, entry.version)
    assert standing.good.tolist() == [wanted.good for wanted in expected if wanted.where]
    assert standing.retry.tolist() == [wanted.retry for wanted in expected if wanted.where]
    assert standing.first.tolist() == [-1 if wanted.where else 0 for wanted in expected]
    assert standing.superseded == 0
    assert standing.duplicate.tolist() == [wanted.duplicate for wanted in expected]

    todo = spans_to_do(entries, standing, catalog)
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
            assert standing.row.tolist() == [] and standing.first.tolist() == [
                0
            ]  # no twin any more: to do, as if for the first time
            assert spans_to_do(entries, standing, catalog)["attempt"].to_pylist() == [1]
            continue
        again = kind in TRANSIENT and attempt < 3
        assert standing.retry.tolist() == [again]
        assert spans_to_do(entries, standing, catalog)["attempt"].to_pylist() == ([attempt + 1] if again else [])
        forced = spans_to_do(entries, standing, catalog, ~standing.good)
        assert forced["attempt"].to_pylist() == [attempt + 1]


def test_of_nfc_twins_the_second_is_a_duplicate() -> None:
    entries = entries_of([Row(NFC), Row(NFD)])
    assert entries["path"].to_pylist() == [NFD, NFC]
    catalog = in_memory({})
    standing = standing_rows(entries, catalog)
    assert standing.duplicate.tolist() == [False, True]
    assert spans_to_do(entries, standing, catalog)["duplicate"].to_pylist() == [False, True]
    done = in_memory({"p": [Row(NFD), Row(NFC, kind="duplicate_key")]})
    assert standing_rows(entries, done).first.tolist() == [-1, -1]
    # Once the first is gone, the second is an image like any other.
    alone = standing_rows(entries_of([Row(NFC)]), done)
    assert alone.first.tolist() == [0] and alone.duplicate.tolist() == [False]


# Stale rows.


def stale_of(now: list[Row], older: list[list[Row]], ledger: dict[str, list[Row]]) -> list[tuple[str, str] | None]:
    """For each entry of `now`, in order, (path, version) of its stale row."""
    catalog, entries = in_memory(ledger), entries_of(now)
    standing = standing_rows(entries, catalog)
    stale = stale_rows(entries, standing, catalog, [entries_of(listing) for listing in older])
    rows = catalog.rows.to_pylist()
    assert all(rows[number]["error_kind"] is None for number in stale)
    found = {rows[n]["path"]: (rows[n]["path"], rows[n]["version"]) for n in stale.tolist()}
    assert len(found) == len(stale)
    return [found.get(path) for path in entries["path"].to_pylist()]


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

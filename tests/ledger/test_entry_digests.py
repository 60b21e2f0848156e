"""Rows are matched to entries as a dict of their strings would match them."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sif_batch.ledger.entry_digests import BATCH, ENTRY, Entries, entry_digests

Name = tuple[str, str, str]
texts = st.text(st.sampled_from("abé日\0/ "), max_size=30)
names = st.tuples(texts, texts, texts)


def table_of(rows: list[Name]) -> pa.Table:
    return pa.table([pa.array([row[i] for row in rows], pa.string()) for i in range(3)], ENTRY)


@settings(deadline=None)
@given(st.sets(names), st.lists(names), st.integers(0, 5))
def test_rows_are_found_as_in_a_dict(listed: set[Name], others: list[Name], skip: int) -> None:
    entries = sorted(listed)
    rows = [*others, *reversed(entries), *entries[skip:]]
    number = {row: place for place, row in enumerate(entries)}
    sliced = pa.concat_tables([table_of(rows[:skip]), table_of([("", "", ""), *rows]).slice(1 + skip)])
    found = Entries(table_of(entries)).find(entry_digests(sliced).chunks)
    assert found.tolist() == [number.get(row, -1) for row in [*rows[:skip], *rows[skip:]]]


def test_a_digest_depends_on_its_row_alone() -> None:
    random = np.random.default_rng(0)
    paths = ["x" * int(length) + str(i) for i, length in enumerate(random.integers(0, 200, BATCH + 100))]
    table = table_of([("made", path, f"{i}-{len(path)}") for i, path in enumerate(paths)])
    made = entry_digests(table).to_pylist()
    assert len(set(made)) == len(made)
    assert entry_digests(table.slice(77)).to_pylist() == made[77:]
    assert [entry_digests(table.slice(i, 1))[0].as_py() for i in range(0, len(made), 999)] == made[::999]


def test_every_bit_of_a_digest_is_even_handed() -> None:
    table = table_of([("made", f"{i:08d}.jpg", "51234-1700000000123456789") for i in range(200_000)])
    digests = np.array(entry_digests(table).to_pylist()).view(np.uint8).reshape(-1, 16)
    shares = np.unpackbits(digests, axis=1).mean(axis=0)
    assert abs(shares - 0.5).max() < 0.01
    for start in (0, 4, 8, 12):  # the birthday paradox: of 32 bits, n^2 / 2^33 twice
        part = digests[:, start : start + 4].copy().view(np.uint32)
        assert abs((len(part) - len(np.unique(part))) - 200_000**2 / 2**33) < 15

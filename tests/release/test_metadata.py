"""Columns joined by key: as row by row, whatever they hold."""

import json
from datetime import date, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.digests import canonical_json
from sif_batch.release.metadata import join_metadata

KEYS = [f"s/{name}.jpg" for name in "abcdefg"]
columns = st.fixed_dictionaries(
    {
        "text": st.sampled_from([None, "", "x", 'a "quoted" \\ line\n', "é"]),
        "number": st.sampled_from([None, 0, -1, 2**40]),
        "real": st.sampled_from([None, 0.0, -0.0, 1.0, 1e16, 0.1, float("nan"), float("inf")]),
        "flag": st.sampled_from([None, True, False]),
        "day": st.sampled_from([None, date(2026, 1, 2)]),
        "time": st.sampled_from([None, datetime(2026, 1, 2, 3, 4, 5)]),
        "list": st.sampled_from([None, [], [1, 2]]),
        "own": st.sampled_from([None, "given"]),
    }
)
TYPES = {
    "text": pa.string(),
    "number": pa.int64(),
    "real": pa.float64(),
    "flag": pa.bool_(),
    "day": pa.date32(),
    "time": pa.timestamp("us"),
    "list": pa.list_(pa.int64()),
    "own": pa.string(),
}


def plain(value: object) -> object:
    if isinstance(value, datetime):
        return {"@timestamp": value.strftime("%Y-%m-%d %H:%M:%S.%f")}
    if isinstance(value, date):
        return {"@date": value.isoformat()}
    if isinstance(value, float) and value - value != 0:
        return {"@double": str(value)} if value == value else None
    return value


@checked
@given(
    st.lists(columns, max_size=6),
    st.lists(st.sampled_from([None, '{"own":"image"}', '{"a":1}']), min_size=7, max_size=7),
)
def test_the_join_is_that_of_each_row_alone(rows: list[dict], fields: list[str | None]) -> None:
    keys = ["s/none.jpg", *KEYS[1:]][: len(rows)]
    arrays = [pa.array([row[name] for row in rows], type_) for name, type_ in TYPES.items()]
    table = pa.table([pa.array(keys, pa.large_string()), *arrays], names=["key", *TYPES])
    live = pa.table({"key": pa.array(KEYS), "fields": pa.array(fields, pa.large_string())})
    joined, found = join_metadata(live, table)
    assert found == len(set(keys) & set(KEYS)) and joined.schema == live.schema
    given_by_key = dict(zip(keys, rows, strict=True))
    joined_rows = [given_by_key[key] for key in KEYS if key in given_by_key]
    # A column without a value for any image is a null of each of its rows, so that it is not forgotten.
    empty = {name for name in TYPES if all(row[name] is None for row in joined_rows)}
    for key, before, after in zip(KEYS, fields, joined["fields"].to_pylist(), strict=True):
        own = json.loads(before) if before else {}
        given_ = {n: plain(v) for n, v in given_by_key.get(key, {}).items() if v is not None or n in empty - {*own}}
        wanted = canonical_json(own | given_).decode() if own or given_ else None
        assert after == wanted


def test_a_column_of_many_rows_is_written_once_a_value() -> None:
    n = 10_000
    live = pa.table({"key": pa.array([f"k{i}" for i in range(n)]), "fields": pa.nulls(n, pa.large_string())})
    table = pa.table(
        {"key": pa.array([f"k{i}" for i in range(n)], pa.large_string()), "label": [f"l{i % 7}" for i in range(n)]}
    )
    joined, found = join_metadata(live, table)
    assert found == n and joined["fields"].to_pylist() == [f'{{"label":"l{i % 7}"}}' for i in range(n)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_nothing_is_joined_from_an_empty_table(kind: pa.DataType) -> None:
    live = pa.table({"key": pa.array(KEYS, kind), "fields": pa.nulls(7, pa.large_string())})
    empty = pa.table({"key": pa.array([], pa.large_string()), "label": pa.array([], pa.string())})
    assert join_metadata(live, empty) == (live, 0)

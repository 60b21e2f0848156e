"""Any table of any types and nulls: the same values come out by key, and a filter finds what DuckDB and Arrow find."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.query.filters import parse_filter, qualifying
from sif_batch.query.hits import python_values
from sif_batch.release.columns import column_types, fields_of, make_columns
from sif_batch.release.metadata import join_metadata, read_metadata

SIGNS = ("=", "!=", "<", "<=", ">", ">=")
TIMES = st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1))
SECONDS = TIMES.map(lambda at: at.replace(microsecond=0))
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-12, 12).map(str),
    st.decimals(-1000, 1000, places=3).map(str),
    st.sampled_from(["1e6", "2.5e-3", "0.1", "9.00", str(2**24 + 1), str(2**63), str(2**64)]),
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# Arrow type: its values, and literals to compare with.
KINDS: dict[pa.DataType, tuple[st.SearchStrategy[Any], st.SearchStrategy[str]]] = {
    **{
        type_: (st.one_of(st.integers(low, high), st.integers(max(low, -9), 9)), NUMBERS)
        for type_, low, high in (
            (pa.int8(), -128, 127),
            (pa.int64(), -(2**63), 2**63 - 1),
            (pa.uint32(), 0, 2**32 - 1),
            (pa.uint64(), 0, 2**64 - 1),
        )
    },
    pa.float64(): (st.one_of(st.floats(allow_nan=False), st.integers(-9, 9).map(float)), NUMBERS),
    pa.float32(): (st.floats(width=32, allow_nan=False), NUMBERS),
    pa.decimal128(9, 2): (st.decimals(-1000, 1000, places=2), NUMBERS),
    pa.decimal128(38, 10): (st.decimals(-(10**20), 10**20, places=10), NUMBERS),
    pa.bool_(): (st.booleans(), st.sampled_from(["true", "false"])),
    pa.string(): (TEXTS, TEXTS.map(quoted)),
    pa.date32(): (st.dates(), st.dates().map(lambda day: quoted(day.isoformat()))),
    pa.timestamp("ms"): (SECONDS, SECONDS.map(lambda at: quoted(str(at)))),
    pa.timestamp("us"): (TIMES, TIMES.map(lambda at: quoted(at.isoformat()))),
    pa.timestamp("us", "Europe/Berlin"): (
        TIMES.map(lambda at: at.replace(tzinfo=UTC)),
        TIMES.map(lambda at: quoted(f"{at}+00:00")),
    ),
    pa.time64("us"): (st.times(), st.times().map(lambda at: quoted(at.isoformat()))),
    pa.binary(): (st.binary(max_size=3), st.text("abc", max_size=2).map(quoted)),
}


@st.composite
def questions(draw: st.DrawFn) -> tuple[pa.DataType, list[Any], str]:
    """A column's type and values, and a condition on it that an equal value in another row often fits."""
    type_ = draw(st.sampled_from(list(KINDS)))
    values, literals = KINDS[type_]
    column = draw(st.lists(st.one_of(st.none(), values), min_size=1, max_size=8))
    if draw(st.booleans()):
        return type_, column, f"v {draw(st.sampled_from(SIGNS))} {draw(literals)}"
    return type_, column, f"v in ({', '.join(draw(st.lists(literals, min_size=1, max_size=3)))})"


def released(table: pa.Table) -> pa.Table:
    """The columns of a release whose fields are these."""
    fields = pa.chunked_array([fields_of(table)])
    types = column_types(fields)
    return pa.table(make_columns(fields, types), names=list(types))


@checked
@given(questions())
def test_values_are_kept_and_compared_as_duckdb_does(question: tuple[pa.DataType, list[Any], str]) -> None:
    type_, values, condition = question
    given_ = pa.table({"v": pa.array(values, type_), "n": range(len(values))})
    found = released(given_)
    assert python_values(found["v"]) == given_["v"].to_pylist()
    mask = qualifying(found, parse_filter(condition, found.schema))
    with duckdb.connect() as base:
        base.execute("set timezone = 'UTC'")
        base.register("images", given_)
        rows = base.execute(f"select n from images where {condition} order by n").fetchall()
    assert found["n"].filter(mask).to_pylist() == [n for (n,) in rows], condition


ODD = pa.table(
    {
        "fine": pa.array([1, None, -1], pa.int64()).cast(pa.timestamp("ns")),
        "fine zone": pa.array([1, None, -1], pa.int64()).cast(pa.timestamp("ns", "Nowhere/Known")),
        "far": pa.array([2**62, None, 0], pa.int64()).cast(pa.timestamp("s")),
        "day": pa.array([2_932_897, None, 0], pa.int32()).cast(pa.date32()),
        "took": pa.array([timedelta(seconds=90), None, timedelta(microseconds=-1)], pa.duration("us")),
        "nested": [{"at": datetime(2026, 1, 2), "price": Decimal("9.50"), "raw": b"\xff", "x": float("inf")}, None, {}],
        "list": pa.array([[1], None, []], pa.list_(pa.int64())),
        "word": pa.array(["a", None, "a"]).dictionary_encode(),
        "nothing": pa.nulls(3, pa.int32()),
        "uri": ["a", None, "b"],
        "uri_": ["c", None, "d"],
        "nan": pa.array([float("nan"), None, float("-inf")]),
    }
)


def test_odd_types_are_kept_or_are_text() -> None:
    found = released(ODD)
    assert {name: python_values(found[name]) for name in found.column_names} == {
        "fine": ["1970-01-01 00:00:00.000000001", None, "1969-12-31 23:59:59.999999999"],
        "fine zone": ["1970-01-01 00:00:00.000000001Z", None, "1969-12-31 23:59:59.999999999Z"],
        "far": ["<value out of range: 4611686018427387904>", None, "1970-01-01 00:00:00"],
        "day": ["10000-01-01", None, "1970-01-01"],
        "took": [Decimal(90), None, Decimal("-0.000001")],
        "nested": [
            '{"at": "2026-01-02 00:00:00.000000", "price": "9.50", "raw": "/w==", "x": "inf"}',
            None,
            '{"at": null, "price": null, "raw": null, "x": null}',
        ],
        "list": ["[1]", None, "[]"],
        "word": ["a", None, "a"],
        "nothing": [None, None, None],
        "uri": ["a", None, "b"],
        "uri_": ["c", None, "d"],
        "nan": [None, None, float("-inf")],
    }
    assert released(found).equals(found)  # so does erase assemble a release again


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("fine > '1970-01-01'", [0]),
        ("fine = '1970-01-01 00:00:00.000000001'", [0]),
        ("fine < '9999-12-31' and fine > '0001-01-01'", [0, 2]),
        ("`fine zone` <= '1970-01-01T02:00:00+02:00'", [2]),
        ("took > 1.5", [0]),
        ("nothing > 3 or nothing in (1) or not nothing = 1", []),
        ("nothing is null", [0, 1, 2]),
        ("uri_ = 'c'", [0]),
        ("nan is null", [0, 1]),
        ("nan < 1e999", [2]),
    ],
)
def test_odd_types_are_compared_as_what_they_are(condition: str, rows: list[int]) -> None:
    found = released(ODD)
    assert qualifying(found, parse_filter(condition, found.schema)).to_pylist() == [row in rows for row in range(3)]


def test_a_parquet_table_is_joined_by_key_as_it_is(tmp_path: Path) -> None:
    keys = [f"p/{number}" for number in range(3)]
    table = ODD.drop_columns(["fine zone", "far"])  # which Parquet has not
    pq.write_table(table.append_column("key", [keys[::-1]]), tmp_path / "t.parquet")
    live = pa.table({"key": keys, "fields": pa.nulls(3, pa.large_string())})
    joined, _ = join_metadata(live, read_metadata(str(tmp_path / "t.parquet")))
    types = column_types(joined["fields"])
    wanted = released(table)
    assert pa.table(make_columns(joined["fields"], types), names=list(types)).equals(wanted.take([2, 1, 0]))

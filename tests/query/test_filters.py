"""Filters against sqlite, which knows the same language, and what a wrong one says."""

import sqlite3
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.errors import SifBatchError
from sif_batch.query.filters import parse_filter, qualifying

WORDS = ["cat", "Dog", "o'hare", "a%b", "", "naïve"]
ROWS: list[dict[str, Any]] = [
    {
        "folder": WORDS[i % 6] if i % 7 else None,
        "width": i * 10 if i % 5 else None,
        "score": i / 4 if i % 3 else None,
        "sea view": bool(i % 2) if i % 4 else None,
        "hash": i,
    }
    for i in range(60)
]
SCHEMA = pa.schema(
    [
        ("folder", pa.large_string()),
        ("width", pa.int64()),
        ("score", pa.float64()),
        ("sea view", pa.bool_()),
        ("hash", pa.uint64()),
    ]
)
TABLE = pa.Table.from_batches(pa.Table.from_pylist(ROWS, SCHEMA).to_batches(max_chunksize=13))


def rows_of(text: str) -> list[int]:
    found = qualifying(TABLE, parse_filter(text, TABLE.schema))
    assert len(found) == len(ROWS) and found.null_count == 0
    return [i for i, good in enumerate(found.to_pylist()) if good]


def rows_in_sqlite(text: str) -> list[int]:
    base = sqlite3.connect(":memory:")
    base.execute("pragma case_sensitive_like = on")
    base.execute('create table images (folder, width, score, "sea view", hash)')
    base.executemany("insert into images values (?, ?, ?, ?, ?)", [tuple(row.values()) for row in ROWS])
    return [row for (row,) in base.execute(f"select hash from images where {text} order by hash")]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


NUMBERS = st.one_of(st.integers(-50, 650).map(str), st.floats(-10, 20, allow_nan=False).map(lambda x: f"{x:.3f}"))
SIGNS = st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">=", "=="])
TEXTS = st.sampled_from(WORDS).map(quoted)
ATOMS = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["width", "score"]), SIGNS, NUMBERS),
    st.builds("folder {} {}".format, SIGNS, TEXTS),
    st.builds("`sea view` {} {}".format, st.sampled_from(["=", "!="]), st.sampled_from(["true", "false", "TRUE"])),
    st.builds("{} is {}null".format, st.sampled_from(["folder", "width", "`sea view`"]), st.sampled_from(["", "not "])),
    st.builds(
        "folder {}in ({})".format, st.sampled_from(["", "not "]), st.lists(TEXTS, min_size=1, max_size=3).map(", ".join)
    ),
    st.builds(
        "width {}IN ({})".format, st.sampled_from(["", "NOT "]), st.lists(NUMBERS, min_size=1, max_size=3).map(",".join)
    ),
    st.builds(
        "folder {}like {}".format, st.sampled_from(["", "not "]), st.sampled_from(["'%a%'", "'c_t'", "'o''%'", "'%'"])
    ),
)
FILTERS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} OR {}".format, inner, inner),
        st.builds("not ({})".format, inner),
        st.builds("({})".format, inner),
    ),
    max_leaves=6,
)


@checked
@given(FILTERS)
def test_a_filter_means_what_it_means_in_sql(text: str) -> None:
    assert rows_of(text) == rows_in_sqlite(text)


TYPED = pa.table(
    {
        "price": pa.array([Decimal("9.50"), Decimal("10.50"), Decimal("2.00"), None], pa.decimal128(38, 2)),
        "id": pa.array([2**63 + 1, 2**63 + 2, 5, None], pa.uint64()),
        "bytes": pa.array([20_000_001, 30_000_000, 5, None], pa.int64()),
        "at": pa.array([datetime(2026, 1, 2, 3), datetime(2026, 10, 2), datetime(999, 1, 1), None], pa.timestamp("us")),
        "day": pa.array([date(2026, 1, 2), date(2026, 10, 2), date(999, 1, 1), None]),
        "clock": pa.array([time(9), time(10, 30), time(0), None], pa.time64("us")),
        "raw": pa.array([b"a", b"b", b"\xff", None], pa.large_binary()),
        "code": pa.array(["0012", "12", "a\\b%", None], pa.large_string()),
        "x": pa.array([0.1, -0.0, float("inf"), None]),
        "odd `name`": pa.array([1, 2, 3, None]),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("price > 9.00", [0, 1]),
        ("price = 9.5", [0]),
        ("price in (9.500, 2, 3.001)", [0, 2]),
        ("price < 9.505 and price >= 9.495", [0]),
        ("price > 1e50 or price = 9.501", []),
        ("not price > 1e50", [0, 1, 2]),
        ("id > 9223372036854775809", [1]),
        ("id = 9223372036854775809", [0]),
        ("id > -1 and id < 1e30", [0, 1, 2]),
        ("id in (9223372036854775810, 99999999999999999999999)", [1]),
        ("id in (99999999999999999999999)", []),
        ("bytes > 1e6", [0, 1]),
        ("bytes > 20000000.5", [0, 1]),
        ("bytes in (5.0, 5.5)", [2]),
        ("bytes != 5.5", [0, 1, 2]),
        ("at > '2026-01-02 03:00'", [1]),
        ("at >= '2026-01-02T03:00:00' and at < '9999-01-01'", [0, 1]),
        ("at = '2026-10-02'", [1]),
        ("at = '2026-10-02 00:00:00.0000001'", []),
        ("day > '2026-01-02'", [1]),
        ("day < '2026-01-02 12:00'", [0, 2]),
        ("clock > '09:00' and clock < '10:30:00.000001'", [1]),
        ("raw = 'b' or raw > 'c'", [1, 2]),
        ("code = '0012'", [0]),
        ("code like 'a\\%'", [2]),
        ("x = 0.1 or x in (0)", [0, 1]),
        ("x > 1e308", [2]),
        ("`odd ``name``` = 2", [1]),
    ],
)
def test_columns_are_compared_as_what_they_are(text: str, rows: list[int]) -> None:
    found = qualifying(TYPED, parse_filter(text, TYPED.schema))
    assert np.flatnonzero(found).tolist() == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("code = 0012", "code is text, which 0012 is not"),
        ("code > true", "code is text, which true is not"),
        ("at > 2026", "at is timestamp.us., which 2026 is not"),
        ("at > 'yesterday'", "at is timestamp"),
        ("at > '2026-01-02 03:00Z'", "at is timestamp"),
        ("day = '2026-02-31'", "day is date32"),
        ("clock = '2026-01-02'", "clock is time64"),
        ("price = 'dear'", "price is decimal"),
        ("price > true", "price is decimal"),
        ("id = '1_000'", "id is uint64"),
        ("raw = 3", "raw is large_binary"),
        ("raw like 'a%'", "like goes with text alone"),
        ("x = 1e99999999999999999999", "x is double"),
    ],
)
def test_what_cannot_be_compared_is_refused(text: str, says: str) -> None:
    with pytest.raises(SifBatchError, match=says) as raised:
        parse_filter(text, TYPED.schema)
    assert raised.value.remedy


def test_values_are_taken_as_the_column_has_them() -> None:
    assert rows_of("width = '120'") == rows_of("width = 120") == [12]
    assert rows_of("width > 115.5 and width < 120.5") == [12]
    assert rows_of("`folder` = 'cat'") == rows_of("folder='cat'") == rows_of("((folder = 'cat'))")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "breaks off at its end: a column was expected"),
        ("colour = 'red'", "no column 'colour' to filter by"),
        ("hash = 3", "no column 'hash'"),
        ("folder", "breaks off at its end: = != < <= > >= in like is was expected"),
        ("folder = ", "at its end: a value"),
        ("folder = cats", "at 'cats': a value"),
        ("folder = 'cats", 'at "\'cats": a column, a value or a sign'),
        ("folder = 'a' and", "at its end: a column"),
        ("folder = 'a' folder = 'b'", "and or or was expected"),
        ("(folder = 'a'", r"at its end: \) was expected"),
        ("folder = 'a')", r"at '\)': and or or"),
        ("folder not = 'a'", "in or like was expected"),
        ("folder in ()", "a value"),
        ("folder in 'a'", r"\( was expected"),
        ("width like '3%'", "like goes with text alone"),
        ("width = 'wide'", "width is int64, which 'wide' is not"),
        ("`sea view` = 'perhaps'", "sea view is bool"),
        ("width = 1e", "breaks off"),
        ("__import__('os').system('true')", "no column '__import__'"),
        ("folder = 'a'; drop table images", "breaks off at ';"),
        ("(" * 60 + "width = 1" + ")" * 60, "more than 50 levels deep"),
        ("not " * 60 + "width = 1", "more than 50 levels deep"),
        ("width = 1 or " * 2000 + "width = 2", "a filter of 26009 characters"),
    ],
)
def test_a_wrong_filter_says_where_and_what_there_is(text: str, says: str) -> None:
    with pytest.raises(SifBatchError, match=says) as raised:
        rows_of(text)
    assert raised.value.remedy and "\n" not in f"{raised.value}{raised.value.remedy}"


def test_the_longest_filters_are_answered() -> None:
    assert rows_of(" or ".join(["width=1"] * 700 + ["width=120"])) == [12]
    assert rows_of(f"width in ({','.join(map(str, range(1, 2000)))})") == [i for i in range(1, 60) if i % 5]


def test_an_expression_of_pyarrow_is_a_filter_too() -> None:
    found = qualifying(TABLE, pc.field("width") > 300)
    assert np.flatnonzero(found).tolist() == rows_of("width > 300")
    for wrong in (pc.field("colour") == 1, pc.field("width") + 1, pc.field("folder") > 3):
        with pytest.raises(SifBatchError, match="the filter cannot be used"):
            qualifying(TABLE, wrong)

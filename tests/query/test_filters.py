"""Filters against sqlite, which knows the same language, and what a wrong one says."""

import sqlite3
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

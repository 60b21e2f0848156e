"""CSV tables: what cells are, by all of their column; none is changed by that."""

import io
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sif_batch.errors import SifBatchError
from sif_batch.release.csv_table import read_csv_table
from sif_batch.release.metadata import join_metadata, read_metadata

LATIN = "key,café\na,niño €\n"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cells", "type_", "values"),
    [
        (["1", "-2", ""], pa.int64(), [1, -2, None]),
        (["0012345678905", "12", ""], pa.string(), ["0012345678905", "12", None]),
        (["+49301234", "1"], pa.string(), ["+49301234", "1"]),
        (["9223372036854775809", "9223372036854775810"], pa.uint64(), [2**63 + 1, 2**63 + 2]),
        (["-1", "9223372036854775808"], pa.decimal128(38, 0), [Decimal(-1), Decimal(2**63)]),
        (["9" * 80], pa.string(), ["9" * 80]),
        (["9.50", " 10.5", "NA", "1e3"], pa.float64(), [9.5, 10.5, None, 1000.0]),
        (["0.30000000000000004", "1e-5"], pa.float64(), [0.1 + 0.2, 1e-5]),
        (["1234567890123456789.5"], pa.decimal128(20, 1), [Decimal("1234567890123456789.5")]),
        (["9007199254740993", "0.5"], pa.decimal128(17, 1), [Decimal(2**53 + 1), Decimal("0.5")]),
        (["1e999", "1"], pa.string(), ["1e999", "1"]),
        (["true", "FALSE", ""], pa.bool_(), [True, False, None]),
        (["1", "true"], pa.string(), ["1", "true"]),
        (["2026-01-02", ""], pa.date32(), [date(2026, 1, 2), None]),
        (["2026-02-31"], pa.string(), ["2026-02-31"]),
        (["2026-01-02T12:00:00", "2026-01-02"], pa.timestamp("us"), [datetime(2026, 1, 2, 12), datetime(2026, 1, 2)]),
        (["2026-01-02 12:00Z", "2026-01-02T14:00:00+02:00"], pa.timestamp("us", "UTC"), [NOON, NOON]),
        (["2026-01-02 12:00Z", "2026-01-02 12:00"], pa.string(), ["2026-01-02 12:00Z", "2026-01-02 12:00"]),
        (["03:04", "03:04:05.5"], pa.time64("us"), [time(3, 4), time(3, 4, 5, 500_000)]),
        (["NA", "x", '""', ""], pa.string(), ["NA", "x", "", None]),
        (["", ""], pa.null(), [None, None]),
    ],
)
def test_a_column_is_what_all_its_cells_are(cells: list[str], type_: pa.DataType, values: list[Any]) -> None:
    text = "key,v\n" + "".join(f"{number},{cell}\n" for number, cell in enumerate(cells))
    column = read_csv_table(io.BytesIO(text.encode()))["v"]
    assert column.type == type_ and column.to_pylist() == values


def test_what_comes_late_in_a_long_file_counts_too() -> None:
    lines = "".join(f"k{number},{number + 1}\n" for number in range(200_000))
    column = read_csv_table(io.BytesIO(f"key,v\n{lines}last,x\n".encode()))["v"]
    assert column.type == pa.string() and column[-1].as_py() == "x"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_is_read_as_it_was_written(encoding: str) -> None:
    assert read_csv_table(io.BytesIO(LATIN.encode(encoding))).to_pydict() == {"key": ["a"], "café": ["niño €"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key,a,a\nx,1,2\n", "two columns are named 'a'"),
        ("key,key,a\nx,1,2\n", "two columns are named 'key'"),
        ("name,a\nx,1\n", "it has the columns name, a"),
        ("key,a\nx,1\nx,2\n", "'x' is there 2 times"),
        ("key,a\nx,1,2\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SifBatchError, match=says):
        read_metadata(str(tmp_path / "t.csv"))


@pytest.mark.parametrize("surplus", ["", "elsewhere/9.png,9\n"])
def test_rows_without_values_leave_others_theirs(surplus: str, tmp_path: Path) -> None:
    """Every image behind an empty cell had the values of the next row."""
    (tmp_path / "t.csv").write_text("key,stars\np/0,\np/1,1\np/2,2\n,7\n,8\n" + surplus)
    live = pa.table({"key": [f"p/{number}" for number in range(4)], "fields": pa.nulls(4, pa.large_string())})
    joined, found = join_metadata(live, read_metadata(str(tmp_path / "t.csv")))
    assert joined["fields"].to_pylist() == [None, '{"stars":1}', '{"stars":2}', None] and found == 3


def test_text_that_is_no_unicode_is_replaced(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"key": ["k"], "t": text, "b": [b"\xff"]}), tmp_path / "t.parquet")
    live = pa.table({"key": ["k"], "fields": pa.nulls(1, pa.large_string())})
    joined, _ = join_metadata(live, read_metadata(str(tmp_path / "t.parquet")))
    assert joined["fields"].to_pylist() == ['{"b":{"@bytes":"/w=="},"t":"a\ufffd"}']

"""Parquet files with a column of image bytes."""

import datetime
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.sources.containers import Piece
from sif_batch.sources.parquet import check_table, choose_columns, read_table

ROWS = 100
BYTES = [None if i == 7 else f"image {i}".encode() * (300 if i == 8 else 20) for i in range(ROWS)]


def table_bytes(table: pa.Table, rows: int = 30) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows, write_page_checksum=True, use_dictionary=False, compression="none")
    return sink.getvalue()


def plain(**columns: Any) -> pa.Table:
    return pa.table({"image": pa.array(BYTES, pa.binary()), **columns})


def read(data: bytes, first: int = 0, column: str | None = None, keep: tuple[str, ...] = ()) -> tuple[list[Piece], Any]:
    pieces = []
    try:
        for piece in read_table(io.BytesIO(data), first, column, keep, 1000):
            pieces.append(piece)
    except ImageError as error:
        return pieces, error
    return pieces, None


@pytest.mark.parametrize("first", [0, 1, 29, 30, 31, 77, 99, 100])
@pytest.mark.parametrize("struct", [False, True])
def test_every_row_comes_once_in_order_from_any_row_on(first: int, struct: bool) -> None:
    table = plain()
    if struct:  # as Hugging Face datasets has it
        names = pa.array([f"{i}.jpg" for i in range(ROWS)])
        table = pa.table(
            {"image": pa.StructArray.from_arrays([pa.array(BYTES, pa.binary()), names], ["bytes", "path"])}
        )
    pieces, error = read(table_bytes(table), first)
    assert error is None
    assert [piece.last for piece in pieces] == list(range(first, ROWS))
    for piece, expected in zip(pieces, BYTES[first:], strict=True):
        (member,) = piece.members
        assert (member.ordinal, member.name, member.fields) == (piece.last, str(piece.last), {})
        if expected is None or len(expected) > 1000:
            assert isinstance(member.data, ImageError)
            assert member.data.kind == ("not_an_image" if expected is None else "too_large")
        else:
            assert member.data == expected


def test_columns_that_are_kept_become_fields() -> None:
    day = datetime.date(2026, 11, 24)
    table = plain(
        n=list(range(ROWS)),
        x=[float("nan") if i == 3 else i / 2 for i in range(ROWS)],
        ok=[i % 2 == 0 for i in range(ROWS)],
        day=[day] * ROWS,
        tags=[["a", "b"]] * ROWS,
        text=["t"] * ROWS,
    )
    (piece, *_), _ = read(table_bytes(table), 3, keep=("*",))
    expected = {
        "n": 3,
        "x": None,
        "ok": False,
        "day": {"@date": "2026-11-24"},
        "tags": ["a", "b"],
        "text": "t",
    }
    assert piece.members[0].fields == expected
    (piece, *_), _ = read(table_bytes(table), 3, keep=("n", "ok"))
    assert piece.members[0].fields == {"n": 3, "ok": False}
    assert read(table_bytes(table))[0][0].members[0].fields == {}


def test_the_image_column_is_found_or_asked_for() -> None:
    two = pa.schema([("a", pa.binary()), ("b", pa.large_binary()), ("n", pa.int64())])
    assert choose_columns(two, "b", ("n",)) == ("b", ["n"])
    for schema, column, keep, text in (
        (two, None, (), "2 columns hold bytes (a, b)"),
        (two, "n", (), "no column 'n' that holds bytes"),
        (two, "a", ("z",), "no column 'z'"),
        (pa.schema([("n", pa.int64())]), None, (), "no columns hold bytes (n)"),
    ):
        with pytest.raises(SifBatchError) as raised:
            choose_columns(schema, column, keep)
        assert text in str(raised.value) and raised.value.remedy


def test_a_source_is_checked_before_anything_is_embedded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    source = Source(name="s", url=str(tmp_path / "*.parquet"))
    with pytest.raises(SifBatchError, match=r"a\.parquet: no columns hold bytes"):
        check_table(source, pa.chunked_array([["a.parquet"]]))
    (tmp_path / "b.parquet").write_bytes(b"damaged")
    check_table(source, pa.chunked_array([["b.parquet"]]))
    check_table(source, pa.chunked_array([["c.jpg"]]))


def test_a_damaged_row_group_costs_its_own_rows_alone() -> None:
    data = bytearray(table_bytes(plain()))
    group = pq.read_metadata(io.BytesIO(bytes(data))).row_group(1).column(0)
    data[group.data_page_offset + group.total_compressed_size // 2] ^= 0xFF
    pieces, error = read(bytes(data))
    assert error.kind == "corrupt" and "row group 1" in str(error)
    found = {piece.last for piece in pieces}
    assert found >= {*range(30), *range(60, ROWS)} and len(found) < ROWS


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_what_is_no_parquet_file_is_damage_alone(cut: int) -> None:
    pieces, error = read(table_bytes(plain())[:cut])
    assert pieces == [] and error.kind == "corrupt"

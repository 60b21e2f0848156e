"""Parquet files whose few bytes inflate to many: what reading them takes, and what is told of what is not read."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_parquet import read

from sif_batch.failures import ImageError
from sif_batch.sources import parquet, parquet_pages
from sif_batch.sources.containers import Piece
from sif_batch.sources.parquet_pages import rows_within

MEBI = 2**20
SMALL = [random.Random(i).randbytes(500) for i in range(30)]

READ = """
import json, sys
from sif_batch.machine.memory import peak_bytes
from sif_batch.sources.parquet import read_table
before = peak_bytes()
rows = [len(piece.members[0].data) for piece in read_table(open(sys.argv[1], "rb"), 0, None, (), 2**29)]
print(json.dumps([len(rows), sum(rows), peak_bytes() - before]))
"""


def kinds(pieces: list[Piece]) -> list[str | None]:
    found = [member.data for piece in pieces for member in piece.members]
    return [data.kind if isinstance(data, ImageError) else None for data in found]


def encoded(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", "use_dictionary": False, **options})
    return sink.getvalue()


@pytest.mark.parametrize("store_schema", [False, True])  # as plain bytes, as pandas' categories
def test_rows_of_one_huge_value_are_in_memory_one_at_a_time(tmp_path: Path, store_schema: bool) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), pa.array([bytes(16 * MEBI)]))
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet", compression="zstd", store_schema=store_schema)
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "a.parquet")], check=True, capture_output=True, text=True
    )
    rows, size, peak = json.loads(done.stdout)
    assert (rows, size) == (40, 40 * 16 * MEBI) and peak < 15 * 16 * MEBI


def test_a_page_beyond_the_bound_costs_its_row_groups_rest_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_BYTES", 4 * MEBI)
    values = [*SMALL[:14], *[bytes(MEBI)] * 6, *SMALL[20:]]
    pieces, error = read(encoded(pa.table({"image": values}), row_group_size=10))
    assert [piece.last for piece in pieces] == [*range(10), *range(20, 30)] and set(kinds(pieces)) == {None}
    assert error.kind == "too_large" and "row group 1, from row 10 on" in str(error)
    # Of smaller pages all before the first such one.
    data = encoded(pa.table({"image": [*SMALL[:20], bytes(5 * MEBI)]}), write_batch_size=5, data_page_size=100)
    pieces, error = read(data)
    assert [piece.last for piece in pieces] == list(range(20)) and "from row 20 on" in str(error)
    assert read(data, 20)[0] == [] and read(data, 7)[0] == pieces[7:]


def test_one_value_beyond_the_limit_fails_alone() -> None:
    values = [*SMALL[:14], bytes(8 * MEBI), *SMALL[15:]]
    for column in (
        pa.array(values),
        pa.StructArray.from_arrays([pa.array(values), pa.array(["x"] * 30)], ["bytes", "path"]),
    ):
        pieces, error = read(encoded(pa.table({"image": column})))
        assert error is None and kinds(pieces) == [None] * 14 + ["too_large"] + [None] * 15


def test_a_huge_value_of_a_column_to_keep_fails_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ["x"] * 14 + ["x" * 2 * MEBI] + ["x"] * 15
    lists = [[1.5]] * 20 + [[2.5] * MEBI] + [[3.5]] * 9
    classes = pa.array([f"{i}" * (100_000 if i == 5 else 1) for i in range(30)]).dictionary_encode()
    table = pa.table({"image": SMALL, "text": text, "lists": lists, "classes": classes})
    pieces, error = read(encoded(table), keep=("*",))
    assert error is None
    assert [number for number, kind in enumerate(kinds(pieces)) if kind == "too_large"] == [14, 20]
    assert pieces[3].members[0].fields == {"text": "x", "lists": [1.5], "classes": "3"}
    monkeypatch.setattr(parquet, "MAX_BYTES", MEBI)
    pieces, error = read(encoded(table), keep=("lists",))
    assert pieces == [] and error.kind == "too_large"


def test_a_text_that_is_not_utf_8_is_kept_as_far_as_it_can_be_written() -> None:
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
    pieces, error = read(encoded(pa.table({"image": SMALL[:3], "text": text})), keep=("text",))
    assert error is None and kinds(pieces) == [None, None, None]
    assert [piece.members[0].fields["text"] for piece in pieces] == ["a", "\ufffd", "c"]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_pages_are_as_large_as_the_file_says_in_all(version: str, codec: str, dictionary: bool) -> None:
    table = pa.table(
        {
            "image": [random.Random(i % 40).randbytes(700) for i in range(1000)],
            "n": list(range(1000)),
            "x": [[i, None] if i % 3 else None for i in range(1000)],
        }
    )
    options = {"compression": codec, "data_page_version": version, "use_dictionary": dictionary, "data_page_size": 5000}
    data = encoded(table, write_batch_size=50, row_group_size=400, write_statistics=True, **options)
    file = io.BytesIO(data)
    opened = pq.ParquetFile(file)
    for group in range(opened.num_row_groups):
        for number in range(3):
            chunk = opened.metadata.row_group(group).column(number)
            pages = list(parquet_pages._pages(file, chunk, number))
            headers = chunk.total_uncompressed_size - sum(size for _, _, size, _ in pages)
            assert 0 < headers < 2000 * len(pages)  # with statistics
            assert any(is_dictionary for *_, is_dictionary in pages) == chunk.has_dictionary_page
        rows = opened.metadata.row_group(group).num_rows
        assert rows_within(file, opened, group, ["image", "n", "x"], 10 * MEBI) == rows
        assert rows_within(file, opened, group, ["image"], 10) == 0


@pytest.mark.parametrize("place", range(4, 400, 9))
def test_a_damaged_page_header_is_damage_alone(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encoded(pa.table({"image": SMALL}), row_group_size=10, compression="none"))
    data[place] ^= 0xFF
    pieces, error = read(bytes(data))
    assert error is None or error.kind in ("corrupt", "too_large")
    assert {piece.last for piece in pieces} >= set(range(10, 30))

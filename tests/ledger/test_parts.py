import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import DIMENSION, ENCODER, Row, checked, flip_bit, part_bytes, paths, spans_of, vector_of, write_part

from sif_batch.errors import SifBatchError
from sif_batch.ledger.parts import (
    PART_SCHEMA,
    container_spans,
    embeddings_of,
    encode_part,
    part_path,
    read_embeddings,
    read_light,
)
from sif_batch.sources.names import hash_of, key_of
from sif_batch.storage.store import Store

NAMES = [
    "key", "source", "path", "member", "version", "attempt", "hash", "sha256", "width", "height", "fields", "embedding",
    "error_kind", "error",
]  # fmt: skip


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (hash_of(key_of(row.source, row.path)), key_of(row.source, row.path)))


def failing(count: int, where: str) -> list[Row]:
    """Rows of a part of which those fail, in the order of the part, that `where` says."""
    rows = in_order([Row(path) for path in paths(count)])
    fails = {
        "none": set(),
        "first": {0, 1},
        "middle": {count // 2},
        "last": {count - 1, count - 2},
        "every second": set(range(0, count, 2)),
        "all": set(range(count)),
    }[where]
    return [Row(row.path, kind="corrupt" if i in fails else None) for i, row in enumerate(rows)]


def test_the_schema_is_the_one_in_the_design(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    name = write_part(store, [Row(path) for path in paths(5)])
    schema = pq.read_schema(store.path(part_path(ENCODER, name)))
    types = [
        pa.string(), pa.string(), pa.string(), pa.string(), pa.string(), pa.int8(), pa.uint64(), pa.binary(32),
        pa.int32(), pa.int32(), pa.large_string(), pa.list_(pa.float16()), pa.string(), pa.string(),
    ]  # fmt: skip
    assert schema.names == NAMES == PART_SCHEMA.names
    assert [str(t) for t in schema.types] == [str(t).replace("item", "element") for t in types]
    nullable = {"member", "sha256", "width", "height", "fields", "embedding", "error_kind", "error"}
    assert {field.name for field in schema if field.nullable} == nullable


def test_rows_stand_in_order_of_hash_and_key_however_they_come() -> None:
    rows = [Row(path) for path in paths(300)]
    spans = spans_of(rows)
    shuffled = [rows[i].encoded() for i in np.random.default_rng(0).permutation(len(rows))]
    data = encode_part(shuffled, spans.to_pylist(), ENCODER, {"machine": "this"})
    assert data == encode_part([row.encoded() for row in rows], spans.to_pylist(), ENCODER, {"machine": "this"})
    table = pq.read_table(pa.BufferReader(data))
    assert table["path"].to_pylist() == [row.path for row in in_order(rows)]
    assert table["hash"].to_pylist() == sorted(hash_of(f"photos/{row.path}") for row in rows)


def test_rows_of_one_hash_stand_in_order_of_key() -> None:
    rows = [Row(path).encoded() | {"hash": 7} for path in ("c.jpg", "a.jpg", "b.jpg")]
    table = pq.read_table(pa.BufferReader(encode_part(rows, [], ENCODER, {})))
    assert table["path"].to_pylist() == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize(("count", "groups"), [(1, [1]), (128, [128]), (129, [128, 1]), (1000, [128, 872])])
def test_the_first_row_group_has_128_rows_and_the_second_the_rest(count: int, groups: list[int]) -> None:
    metadata = pq.read_metadata(pa.BufferReader(part_bytes([Row(path) for path in paths(count)])))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == groups


def test_the_embedding_has_neither_statistics_nor_dictionary() -> None:
    metadata = pq.read_metadata(pa.BufferReader(part_bytes(failing(300, "every second"))))
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = {group.column(i).path_in_schema.partition(".")[0]: group.column(i) for i in range(group.num_columns)}
        assert sorted(columns) == sorted(NAMES)
        embedding = columns.pop("embedding")
        assert embedding.statistics is None and not embedding.has_dictionary_page
        assert not any("DICTIONARY" in encoding for encoding in embedding.encodings)
        assert all(column.is_stats_set for column in columns.values())


def test_the_metadata_says_the_spans_the_encoder_and_the_machine() -> None:
    rows = [Row("b.jpg", version="2-2"), Row("a.jpg", attempt=2)]
    metadata = pq.read_schema(pa.BufferReader(part_bytes(rows))).metadata
    spans = json.loads(metadata[b"spans"])
    assert spans == [["photos", "b.jpg", "2-2", 0, 0, True], ["photos", "a.jpg", "1-1", 0, 0, True]]
    assert json.loads(metadata[b"attempts"]) == [1, 2]
    assert container_spans(metadata) == []
    assert metadata[b"encoder"].decode() == ENCODER
    assert json.loads(metadata[b"fingerprint"]) == {"machine": "this"}


@pytest.mark.parametrize("where", ["none", "first", "middle", "last", "every second", "all"])
@pytest.mark.parametrize("count", [5, 128, 300])
def test_failed_rows_anywhere_are_read_by_pyarrow_duckdb_and_pandas(tmp_path: Path, count: int, where: str) -> None:
    rows = failing(count, where)
    store = Store(str(tmp_path))
    name = write_part(store, rows)
    file = store.path(part_path(ENCODER, name))
    wanted = [None if row.kind else vector_of(row.path).tolist() for row in rows]
    kinds = [row.kind for row in rows]

    table = pq.read_table(file)
    assert table["embedding"].to_pylist() == wanted
    assert table["error_kind"].to_pylist() == kinds
    assert table["sha256"].to_pylist() == [row.encoded()["sha256"] for row in rows]
    table.validate(full=True)

    found = duckdb.connect().execute("select path, embedding, error_kind, hash from read_parquet(?)", [file]).fetchall()
    assert [list(row[1]) if row[1] is not None else None for row in found] == wanted
    assert [(row[0], row[2], row[3]) for row in found] == [(r.path, r.kind, r.encoded()["hash"]) for r in rows]
    aggregate = "select count(embedding), count(*), min(len(embedding)), max(hash) from read_parquet(?)"
    (counts,) = duckdb.connect().execute(aggregate, [file]).fetchall()
    good = kinds.count(None)
    assert counts == (good, count, DIMENSION if good else None, max(row.encoded()["hash"] for row in rows))

    frame = pd.read_parquet(file)
    assert [None if vector is None else vector.tolist() for vector in frame["embedding"]] == wanted
    assert frame["embedding"].isna().tolist() == [kind is not None for kind in kinds]

    numbers, vectors = read_embeddings(store, ENCODER, name)
    assert numbers.dtype == np.uint16 and numbers.tolist() == [i for i, row in enumerate(rows) if not row.kind]
    assert vectors.tolist() == [vector for vector in wanted if vector is not None]
    assert vectors.dtype == np.float16 or not good


@checked
@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_good_rows_and_their_vectors_belong_together(fails: list[bool]) -> None:
    rows = in_order([Row(path) for path in paths(len(fails))])
    rows = [Row(row.path, kind="truncated" if fail else None) for row, fail in zip(rows, fails, strict=True)]
    numbers, vectors = embeddings_of(part_bytes(rows), "a part", ENCODER)
    assert numbers.tolist() == [i for i, fail in enumerate(fails) if not fail]
    assert [v.tolist() for v in vectors] == [vector_of(rows[i].path).tolist() for i in numbers]


def test_the_light_columns_are_all_but_the_embedding() -> None:
    rows = failing(200, "middle")
    table = read_light(pa.BufferReader(part_bytes(rows)), "x")
    assert table.column_names == [name for name in NAMES if name != "embedding"]
    assert table["error"].to_pylist() == [row.kind and "it is corrupt" for row in rows]
    assert table.schema.metadata[b"encoder"].decode() == ENCODER


def test_vectors_come_back_with_all_their_bits() -> None:
    extremes = np.array([65504, -65504, 6e-8, -6e-8, 0.0, -0.0, 1e-3, 1], np.float16)
    _, vectors = embeddings_of(part_bytes([Row("a.jpg", vector=extremes)]), "a part", ENCODER)
    assert vectors.tobytes() == extremes.tobytes()


def test_a_vector_that_is_not_finite_is_an_error() -> None:
    data = part_bytes([Row("a.jpg"), Row("b.jpg", vector=np.full(DIMENSION, np.inf))])
    with pytest.raises(SifBatchError, match="part x holds vectors that are not finite") as raised:
        embeddings_of(data, "x", ENCODER)
    assert raised.value.remedy


def test_a_flipped_bit_in_a_page_is_an_error_everywhere(tmp_path: Path) -> None:
    data = part_bytes([Row(path) for path in paths(300)])
    file = tmp_path / "part.parquet"
    file.write_bytes(data)
    group = pq.read_metadata(file).row_group(1)
    for i in range(group.num_columns):
        column = group.column(i)
        start = column.dictionary_page_offset or column.data_page_offset
        last = start + column.total_compressed_size - 1
        file.write_bytes(data)
        flip_bit(file, 8 * last)  # the last byte of a column is in a page's body, never in its header
        with pytest.raises((OSError, pa.ArrowInvalid)):
            pq.ParquetFile(file, page_checksum_verification=True).read(columns=[column.path_in_schema])
        if column.path_in_schema.startswith("embedding"):
            with pytest.raises(SifBatchError, match="part x is damaged"):
                embeddings_of(file.read_bytes(), "x", ENCODER)
        else:
            with pytest.raises(SifBatchError, match="damaged"), open(file, "rb") as opened:
                read_light(opened, "x")


def test_any_flipped_bit_is_found_or_does_no_harm(tmp_path: Path) -> None:
    rows = failing(200, "first")
    data = part_bytes(rows)
    numbers, vectors = embeddings_of(data, "x", ENCODER)
    file = tmp_path / "part.parquet"
    found = 0
    for bit in np.random.default_rng(1).integers(0, 8 * len(data), 300).tolist():
        file.write_bytes(data)
        flip_bit(file, bit)
        try:
            got = embeddings_of(file.read_bytes(), "x", ENCODER)
        except SifBatchError:
            found += 1
        else:
            assert got[0].tolist() == numbers.tolist() and got[1].tobytes() == vectors.tobytes()
    assert found > 100


@pytest.mark.parametrize("length", [0, 3, 4, 100, 5000])
def test_a_part_cut_short_is_damaged(length: int) -> None:
    with pytest.raises(SifBatchError, match="damaged") as raised:
        embeddings_of(part_bytes([Row(path) for path in paths(100)])[:length], "x", ENCODER)
    assert "remove that file" in raised.value.remedy


def test_a_message_that_is_no_unicode_stops_nothing() -> None:
    row = dict.fromkeys(NAMES) | {"key": "s/a", "source": "s", "path": "a", "version": "1", "attempt": 1, "hash": 1}
    row |= {"error_kind": "unsupported", "error": "a link to \udcff.jpg", "fields": '{"a":"\ud83d"}'}
    table = read_light(pa.BufferReader(encode_part([row], [], ENCODER, {})), "p")
    assert table["error"].to_pylist() == ["a link to \ufffd.jpg"]
    assert table["fields"].to_pylist() == ['{"a":"\ufffd"}']

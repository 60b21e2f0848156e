import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import (
    DIMENSION,
    ENCODER,
    Live,
    Row,
    checked,
    entries_of,
    find_live,
    make_root,
    paths,
    quantize,
    record_of,
    vector_of,
    write_part,
)

from sif_batch.digests import digest
from sif_batch.errors import SifBatchError
from sif_batch.index.codebooks import fill_codebook
from sif_batch.index.codes import CODES_SCHEMA, codes_path, read_codes
from sif_batch.index.quantize_part import encode_codes, quantize_part, query_distances
from sif_batch.index.quantizer import Quantizer, load_quantizer
from sif_batch.index.recall import NEIGHBOURS
from sif_batch.index.similarity import Transform
from sif_batch.ledger.parts import encode_part, part_path, read_embeddings
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.storage.store import Store

COUNT = 1200


@pytest.fixture(scope="module", params=["flat", "ivf-pq"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Live, Quantizer]:
    """A ROOT of three parts, some rows of which failed, with its codes."""
    rows = [Row(path, kind="corrupt" if i % 50 == 0 else None) for i, path in enumerate(paths(COUNT))]
    store = make_root(tmp_path_factory.mktemp("codes"), rows, 500)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, request.param)
    return store, live, load_quantizer(store, record.id)


def table_of(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def test_codes_hold_a_row_for_each_good_row_of_the_part(made: tuple[Store, Live, Quantizer]) -> None:
    store, live, quantizer = made
    for part in live.parts:
        numbers, vectors = read_embeddings(store, ENCODER, part)
        codes = read_codes(store, quantizer.spec, quantizer.record.id, part)
        assert codes.numbers.tolist() == numbers.tolist()
        assert codes.code.dtype == np.uint8
        assert codes.code.shape == (len(numbers), quantizer.code_width)
        unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if quantizer.spec.rows == "float16":
            assert codes.rerank.dtype == np.float16 and np.array_equal(codes.rerank, unit.astype(np.float16))
        else:
            largest = np.abs(unit).max(axis=1, keepdims=True)
            assert codes.rerank.dtype == np.int8
            assert np.array_equal(codes.rerank[:, :-4], np.rint(127 * unit / largest))
        assert np.allclose(codes.lengths, np.linalg.norm(vectors.astype(np.float64), axis=1), rtol=1e-6)
        assert len(np.unique(codes.likeness)) == len(numbers)


def test_the_file_says_which_part_it_was_made_of(made: tuple[Store, Live, Quantizer]) -> None:
    store, live, quantizer = made
    for part in live.parts:
        table = table_of(store.read(codes_path(quantizer.record.id, part)))
        assert table.schema.equals(CODES_SCHEMA)
        assert table.schema.metadata[b"part_sha256"].decode() == digest(store.read(part_path(ENCODER, part)))


def test_the_nearest_rows_are_those_of_brute_force(made: tuple[Store, Live, Quantizer]) -> None:
    store, live, quantizer = made
    asked = quantizer.queries.astype(np.float64)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    for part in live.parts:
        numbers, vectors = read_embeddings(store, ENCODER, part)
        x = vectors.astype(np.float64)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        distances = ((asked[:, None] - x[None]) ** 2).sum(axis=2)
        codes = read_codes(store, quantizer.spec, quantizer.record.id, part)
        kept = min(2 * NEIGHBOURS, len(numbers))
        for query in range(len(asked)):
            mine = codes.near[:, 1] == query
            rows = codes.near[mine, 0]
            assert np.allclose(codes.near_distance[mine], distances[query, rows], atol=1e-6)
            within = int((distances[query] <= quantizer.radii[query] - 1e-6).sum())
            assert 5 < min(kept, within) <= len(set(rows)) == len(rows) <= kept
            edge = min(float(quantizer.radii[query]), distances[query, rows].max() if len(rows) == kept else np.inf)
            assert np.delete(distances[query], rows).min(initial=9) >= edge - 1e-6


def test_codes_do_not_depend_on_the_slicing_or_order_of_rows(made: tuple[Store, Live, Quantizer]) -> None:
    """Each row's code and row for re-ranking have the same bytes whatever stands beside it."""
    _, _, quantizer = made
    vectors = np.stack([vector_of(path) for path in paths(1100)])
    whole = table_of(encode_codes(quantizer, np.arange(1100), vectors, ""))
    for seed, count in enumerate((1, 7, 500, 1030)):
        picked = np.random.default_rng(seed).permutation(1100)[:count]
        sliced = table_of(encode_codes(quantizer, np.arange(count), vectors[picked], ""))
        for name in ("code", "rerank"):
            assert sliced[name].to_pylist() == whole[name].take(pa.array(picked)).to_pylist()


def test_distances_do_not_depend_on_the_slicing_or_order_of_rows(made: tuple[Store, Live, Quantizer]) -> None:
    _, _, quantizer = made
    y = quantizer.transform.apply(np.stack([vector_of(path) for path in paths(1100)]))
    picked = np.random.default_rng(0).permutation(1100)[:300]
    for query in (0, 3):
        whole = query_distances(quantizer, query, y)
        assert query_distances(quantizer, query, y[picked]).tobytes() == whole[picked].tobytes()


def test_making_codes_twice_gives_the_same_bytes_and_does_the_work_once(made: tuple[Store, Live, Quantizer]) -> None:
    store, live, quantizer = made
    name = quantizer.record.id
    part = live.parts[0]
    before = store.read(codes_path(name, part))
    reported: list[object] = []
    assert quantize_part(reported.append, store.url, name, part) == 0 and reported == []
    store.fs.rm(store.path(codes_path(name, part)))
    rows = quantize_part(reported.append, store.url, name, part)
    assert rows == len(read_embeddings(store, ENCODER, part)[0]) and reported == [part]
    assert store.read(codes_path(name, part)) == before


def test_assembled_codes_are_the_index_that_faiss_builds_itself(tmp_path: Path) -> None:
    """sa_encode part by part, then add_sa_codes: the same lists and answers as `add` of all vectors."""
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", rows, 350)
    live = find_live(store, entries_of(rows))
    quantizer = load_quantizer(store, quantize(store, live, "ivf-pq").id)
    faiss = import_faiss()
    mean, components = quantizer.transform.mean, quantizer.transform.components
    assert mean is not None and components is not None

    vectors = np.stack([vector_of(path) for path in live.table["path"].to_pylist()]).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    reduced = ((unit - mean) @ components[:, quantizer.spec.coded]).astype(np.float32)
    plain = faiss.clone_index(quantizer.index)
    plain.add(reduced)

    code = np.empty((COUNT, quantizer.code_width), np.uint8)
    part_of, row_of = live.table["part"].to_numpy(), live.table["row"].to_numpy()
    for number, part in enumerate(live.parts):
        codes = read_codes(store, quantizer.spec, quantizer.record.id, part)
        at = np.flatnonzero(part_of == number)
        code[at] = codes.code[row_of[at]]  # no row failed: a row's number is its place
    assembled = fill_codebook("ivf-pq", quantizer.index, code)
    assert isinstance(assembled, faiss.IndexIVFPQFastScan) and assembled.ntotal == COUNT

    fast = faiss.IndexIVFPQFastScan(plain)
    assert faiss.serialize_index(fast).tobytes() == faiss.serialize_index(assembled).tobytes()
    for cells in (1, 4, quantizer.spec.cells):
        parameters = faiss.SearchParametersIVF(nprobe=cells)
        wanted, ids = fast.search(reduced[:100], 20, params=parameters)
        found, places = assembled.search(reduced[:100], 20, params=parameters)
        assert np.array_equal(ids, places) and np.allclose(wanted, found, rtol=1e-5)


def test_an_index_without_rows_can_be_written_and_asked(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(200)]
    store = make_root(tmp_path / "root", rows)
    quantizer = load_quantizer(store, quantize(store, find_live(store, entries_of(rows)), "ivf-pq").id)
    index = fill_codebook("ivf-pq", quantizer.index, np.empty((0, quantizer.code_width), np.uint8))
    _, ids = index.search(np.zeros((1, quantizer.spec.reduced), np.float32), 3)
    assert index.ntotal == 0 and ids.tolist() == [[-1, -1, -1]]


def test_a_part_in_which_all_failed_has_codes_without_rows(made: tuple[Store, Live, Quantizer]) -> None:
    store, _, quantizer = made
    name = write_part(store, [Row("z1.jpg", kind="corrupt"), Row("z2.jpg", kind="truncated")])
    assert quantize_part(lambda report: None, store.url, quantizer.record.id, name) == 0
    codes = read_codes(store, quantizer.spec, quantizer.record.id, name)
    assert (len(codes.numbers), len(codes.code), len(codes.near), len(codes.near_distance)) == (0, 0, 0, 0)
    assert codes.rerank.shape[0] == 0 and codes.code.shape[0] == 0


@settings(checked, max_examples=20)
@given(st.integers(1, 450), st.integers(0, 10**6))
def test_lists_are_as_long_as_the_part_or_2k(count: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float16)
    quantizer = flat_quantizer(vectors[:5])
    table = table_of(encode_codes(quantizer, np.arange(count), vectors, ""))
    per_query = np.zeros(len(quantizer.queries), int)
    for row, queries in enumerate(table["near_query"].to_pylist()):
        assert queries == sorted(set(queries))
        assert len(table["near_distance"][row].as_py()) == len(queries)
        per_query[queries] += 1
    assert (per_query == min(count, 2 * NEIGHBOURS)).all()


def flat_quantizer(queries: np.ndarray) -> Quantizer:
    record = record_of(family="flat", rows="float16", dimension=queries.shape[1])
    radii = np.full(len(queries), np.inf, np.float32)
    return Quantizer(
        record, queries, [str(i) for i in range(len(queries))], radii, Transform("cosine"), np.empty(0, np.uint64)
    )


def test_of_equal_rows_the_earlier_are_kept() -> None:
    vectors = np.ones((300, DIMENSION), np.float16)
    table = table_of(encode_codes(flat_quantizer(vectors[:1]), np.arange(300), vectors, ""))
    assert [bool(queries) for queries in table["near_query"].to_pylist()] == [True] * 200 + [False] * 100


def test_without_queries_there_are_no_lists() -> None:
    vectors = np.ones((3, DIMENSION), np.float16)
    table = table_of(encode_codes(flat_quantizer(vectors[:0]), np.arange(3), vectors, ""))
    assert table["near_query"].to_pylist() == [[], [], []]


def test_a_part_of_another_dimension_or_encoder_is_named(made: tuple[Store, Live, Quantizer]) -> None:
    store, _, quantizer = made
    name = write_part(store, [Row(path, vector=np.ones(7)) for path in ("y1.jpg", "y2.jpg")])
    with pytest.raises(SifBatchError, match=f"part {name} holds vectors of 7 dimensions, .* takes {DIMENSION}"):
        quantize_part(lambda report: None, store.url, quantizer.record.id, name)
    rows = [Row("y3.jpg").encoded()]
    store.create(part_path(ENCODER, "strange"), encode_part(rows, [], "another-0123456789ab", {}))
    with pytest.raises(SifBatchError, match="part strange is of the encoder another-0123456789ab, not of synthetic"):
        quantize_part(lambda report: None, store.url, quantizer.record.id, "strange")


def test_a_damaged_file_of_codes_is_an_error(made: tuple[Store, Live, Quantizer]) -> None:
    store, live, quantizer = made
    part, name = live.parts[1], quantizer.record.id
    file = Path(store.path(codes_path(name, part)))
    whole = file.read_bytes()
    intact = read_codes(store, quantizer.spec, name, part)
    try:
        for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"PAR1" * 30):
            file.write_bytes(damaged)
            with pytest.raises(SifBatchError, match=f"{part}.parquet is damaged") as raised:
                read_codes(store, quantizer.spec, name, part)
            assert "remove that file" in raised.value.remedy
        found = 0
        for bit in np.random.default_rng(3).integers(0, 8 * len(whole), 60).tolist():
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            file.write_bytes(data)
            try:
                codes = read_codes(store, quantizer.spec, name, part)
            except SifBatchError:
                found += 1
            else:
                for field in ("numbers", "code", "rerank", "near", "near_distance"):
                    assert np.array_equal(getattr(codes, field), getattr(intact, field)), field
        assert found > 50
    finally:
        file.write_bytes(whole)

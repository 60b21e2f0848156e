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
    record_of,
    vector_of,
)

from sif_batch.config import IndexSettings, SifBatchError
from sif_batch.kernels import import_faiss
from sif_batch.parts import part_path
from sif_batch.quantizer import (
    BACK_TO_FLAT_BELOW,
    FLAT_BELOW,
    HELD_OUT,
    HELD_OUT_FROM,
    choose_family,
    choose_spec,
    encode_rows,
    fit_pca,
    load_quantizer,
    must_retrain,
    normalise,
    read_record,
    read_rows,
    reduce,
    sample_rows,
    train_quantizer,
)
from sif_batch.sources.names import hash_of
from sif_batch.storage import Store

AUTO, FLAT, IVF = (IndexSettings.model_validate({"family": family}) for family in ("auto", "flat", "ivf-pq"))
SPAN = 2**64


def collection(count: int, start: int = 0) -> pa.Table:
    """The part of a live table that sampling looks at: keys and hashes, in order."""
    pairs = sorted((hash_of(f"photos/{path}"), f"photos/{path}") for path in paths(count, start))
    return pa.table({"hash": pa.array([h for h, _ in pairs], pa.uint64()), "key": [key for _, key in pairs]})


def picked_keys(live: pa.Table, picked: np.ndarray) -> list[str]:
    return live["key"].take(pa.array(picked)).to_pylist()


# Which rows to train on and to ask with.


@settings(checked, max_examples=30)
@given(st.integers(100, 3000), st.integers(0, 300), st.sampled_from([1, 8]))
def test_training_and_held_out_rows_are_disjoint_bands_of_the_hash(count: int, start: int, cells: int) -> None:
    live = collection(count, start)
    hashes = live["hash"].to_pylist()
    training, held_out = sample_rows(live, "ivf-pq", cells)
    assert set(training) & set(held_out) == set()
    upper = [i for i, h in enumerate(hashes) if h >= SPAN // 16 * 15]
    if upper:
        assert held_out.tolist() == upper[-HELD_OUT:]
        assert training.tolist() == list(range(upper[0]))
    else:
        assert len(held_out) and held_out.max() == count - 1


def test_bands_stay_as_the_collection_grows() -> None:
    small, large = collection(2000), collection(4000)
    for name in (0, 1):
        before, after = (set(picked_keys(live, sample_rows(live, "ivf-pq", 8)[name])) for live in (small, large))
        assert before <= after and len(before) < len(after)


def test_no_more_rows_are_taken_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sif_batch.quantizer.TRAINING_ROWS", 300)
    monkeypatch.setattr("sif_batch.quantizer.HELD_OUT", 20)
    live = collection(2000)
    assert [len(rows) for rows in sample_rows(live, "ivf-pq", 1)] == [300, 20]
    assert [len(rows) for rows in sample_rows(live, "ivf-pq", 10)] == [640, 20]
    assert [len(rows) for rows in sample_rows(live, "flat", 0)] == [0, 20]
    training, held_out = sample_rows(live, "ivf-pq", 1)
    assert training.tolist() == list(range(300)) and held_out.tolist() == list(range(1980, 2000))


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_without_a_row_in_the_upper_band_the_last_rows_are_held_out(family: str) -> None:
    hashes = np.sort(np.random.default_rng(0).integers(0, HELD_OUT_FROM, 100, np.uint64))
    training, held_out = sample_rows(pa.table({"hash": hashes}), family, 1)
    assert held_out.tolist() == list(range(84, 100))
    assert training.tolist() == ([] if family == "flat" else list(range(84)))


def test_of_very_few_rows_all_are_held_out() -> None:
    _, held_out = sample_rows(pa.table({"hash": pa.array([1, 2, 3], pa.uint64())}), "flat", 0)
    assert held_out.tolist() == [0, 1, 2]


# Which family and shape.


def test_the_family_is_exact_below_the_line_unless_asked_otherwise() -> None:
    assert choose_family(AUTO, FLAT_BELOW - 1, None) == "flat"
    assert choose_family(AUTO, FLAT_BELOW, None) == "ivf-pq"
    assert choose_family(FLAT, 10**7, "ivf-pq") == "flat"
    assert choose_family(IVF, 100, "flat") == "ivf-pq"


def test_near_the_line_the_family_in_use_stays() -> None:
    assert BACK_TO_FLAT_BELOW < FLAT_BELOW
    sizes = [9_000, 10_500, 9_500, 8_000, 7_999, 9_999, 10_000]
    family, seen = None, []
    for size in sizes:
        family = choose_family(AUTO, size, family)
        seen.append(family)
    assert seen == ["flat", "ivf-pq", "ivf-pq", "ivf-pq", "flat", "flat", "ivf-pq"]


@checked
@given(st.integers(69, 5_000_000), st.sampled_from([48, 512, 768, 1280]))
def test_the_shape_fits_the_rows_there_are(rows: int, dimension: int) -> None:
    spec = choose_spec(IVF, "ivf-pq", ENCODER, dimension, rows)
    trainable = rows * 15 // 16
    assert 1 <= spec.cells <= 1.5 * rows**0.5 and spec.cells & (spec.cells - 1) == 0
    assert spec.cells * 39 <= trainable  # faiss warns below 39 training rows a centroid
    assert 4 <= spec.reduced <= min(256, dimension) and spec.reduced % 4 == 0
    assert spec.code_bytes == -(-spec.reduced // 4 // 2)
    assert spec.rows == "int8"


@pytest.mark.parametrize("rows", [1, 10, 68])
def test_too_few_rows_to_train_are_an_error(rows: int) -> None:
    with pytest.raises(SifBatchError, match=f"needs at least 69 usable images, there are {rows}") as raised:
        choose_spec(IVF, "ivf-pq", ENCODER, 48, rows)
    assert "--family" in raised.value.remedy
    assert choose_spec(IVF, "ivf-pq", ENCODER, 48, 69).cells == 1


def test_too_few_rows_leave_nothing_behind(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 60)
    with pytest.raises(SifBatchError, match="there are 60"):
        train_quantizer(store, ENCODER, IVF, live.parts, live.table, None)
    assert not store.exists("quantizers")


def test_a_quantizer_is_trained_anew_only_when_it_no_longer_fits() -> None:
    assert not must_retrain(record_of(), AUTO, ENCODER, 20_000)
    assert not must_retrain(record_of(), AUTO, ENCODER, 39_999)
    assert not must_retrain(record_of(), AUTO, ENCODER, 8_000)
    assert must_retrain(record_of(), AUTO, ENCODER, 40_000)
    assert must_retrain(record_of(), AUTO, ENCODER, 7_999)
    assert must_retrain(record_of(), FLAT, ENCODER, 20_000)
    assert must_retrain(record_of(), AUTO, "another", 20_000)
    assert not must_retrain(record_of(), IVF, ENCODER, 100)


# The arithmetic.


def test_pca_is_that_of_a_singular_value_decomposition() -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(400, 40)) @ random.normal(size=(40, 40)) + random.normal(size=40)
    mean, components, explained = fit_pca(x, 12)
    _, singular, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    assert np.allclose(mean, x.mean(axis=0))
    assert np.allclose(np.abs(components.T), np.abs(directions[:12]), atol=1e-8)
    assert np.allclose(components.T @ components, np.eye(12))
    assert explained == pytest.approx((singular[:12] ** 2).sum() / (singular**2).sum())
    largest = np.abs(components).argmax(axis=0)
    assert (components[largest, np.arange(12)] > 0).all()


def test_pca_keeps_all_the_variance_when_it_keeps_all_dimensions() -> None:
    x = np.random.default_rng(3).normal(size=(50, 8))
    mean, components, explained = fit_pca(x, 8)
    assert explained == pytest.approx(1)
    reduced = reduce(x, mean, components)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert np.allclose(np.linalg.norm(reduced[:, None] - reduced[None], axis=2), apart, atol=1e-5)


def test_reduced_vectors_are_the_projection_on_the_components() -> None:
    x = np.random.default_rng(3).normal(size=(50, 8))
    mean, components, _ = fit_pca(x, 4)
    reduced = reduce(x, mean, components)
    assert reduced.dtype == np.float32 and np.allclose(reduced, (x - mean) @ components, atol=1e-6)
    order = np.random.default_rng(1).permutation(50)
    assert reduce(x[order], mean, components).tobytes() == reduced[order].tobytes()


def test_vectors_are_brought_to_unit_length_and_zero_stays() -> None:
    x = np.array([[3, 4], [0, 0], [6e4, 6e4], [6e-8, 0]], np.float16)
    assert normalise(x).dtype == np.float64
    assert np.allclose(normalise(x), [[0.6, 0.8], [0, 0], [0.5**0.5, 0.5**0.5], [1, 0]])


def test_int8_rows_are_in_units_of_their_largest_part() -> None:
    x = np.array([[1.0, -0.5, 0.2], [0, 0, 0], [-2.0, 1.0, 0.1], [1e-9, 5e-10, 0]])
    assert encode_rows(x, "int8").tolist() == [[127, -64, 25], [0, 0, 0], [-127, 64, 6], [127, 64, 0]]
    assert encode_rows(x, "int8").dtype == np.int8


@checked
@given(st.integers(0, 10**6))
def test_int8_rows_keep_the_direction(seed: int) -> None:
    x = normalise(np.random.default_rng(seed).normal(size=(4, 256)))
    kept = encode_rows(x, "int8").astype(np.float64)
    cosine = (x * kept).sum(axis=1) / np.linalg.norm(kept, axis=1)
    assert cosine.min() > 0.999
    assert (np.abs(kept).max(axis=1) == 127).all()


def test_float16_rows_are_rounded_unit_vectors() -> None:
    x = normalise(np.random.default_rng(0).normal(size=(10, 64)))
    assert encode_rows(x, "float16").tobytes() == x.astype(np.float16).tobytes()


# Reading rows from parts.


def rooted(folder: Path, count: int, size: int = 400) -> tuple[Store, Live]:
    rows = [Row(path) for path in paths(count)]
    store = make_root(folder / f"root{count}-{size}", rows, size)
    return store, find_live(store, entries_of(rows))


def test_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 1000, 300)
    picked = np.random.default_rng(0).permutation(1000)[:700]
    found = read_rows(store, ENCODER, live.parts, live.table, picked)
    expected = np.stack([vector_of(live.table["path"][int(i)].as_py()) for i in picked])
    assert found.dtype == np.float16 and found.tobytes() == expected.tobytes()
    assert read_rows(store, ENCODER, live.parts, live.table, np.arange(0)).shape[0] == 0


def test_failed_rows_between_the_good_ones_do_not_shift_them(tmp_path: Path) -> None:
    rows = [Row(path, kind="corrupt" if i % 3 == 0 else None) for i, path in enumerate(paths(500))]
    store = make_root(tmp_path / "root", rows, 250)
    live = find_live(store, entries_of(rows))
    picked = np.arange(0, len(live.table), 2)
    expected = [vector_of(live.table["path"][int(i)].as_py()).tolist() for i in picked]
    assert read_rows(store, ENCODER, live.parts, live.table, picked).tolist() == expected


def test_a_prefix_is_read_without_the_rest_of_the_part(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 400)
    (part,) = live.parts
    file = Path(store.path(part_path(ENCODER, part)))
    group = pq.read_metadata(file).row_group(1)
    embedding = next(c for i in range(14) if (c := group.column(i)).path_in_schema.startswith("embedding"))
    data = bytearray(file.read_bytes())
    data[embedding.data_page_offset + 1000] ^= 1
    file.write_bytes(data)
    found = read_rows(store, ENCODER, live.parts, live.table, np.arange(128))
    assert found.tolist() == [vector_of(path).tolist() for path in live.table["path"].to_pylist()[:128]]
    with pytest.raises(SifBatchError, match=f"part {part} is damaged"):
        read_rows(store, ENCODER, live.parts, live.table, np.arange(129))


# Training.


def files_of(store: Store, name: str) -> dict[str, bytes]:
    return {file: store.read(f"quantizers/{name}/{file}") for file in store.sizes(f"quantizers/{name}")}


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_training_twice_gives_the_same_bytes_however_the_parts_are_sliced(tmp_path: Path, family: str) -> None:
    settings = IndexSettings.model_validate({"family": family})
    made = []
    for size in (1500, 70):
        store, live = rooted(tmp_path, 1500, size)
        record = train_quantizer(store, ENCODER, settings, live.parts, live.table, None)
        again = train_quantizer(store, ENCODER, settings, live.parts, live.table, None)
        assert again == record == read_record(store, record.id)
        made.append((record.id, files_of(store, record.id)))
    assert made[0] == made[1]
    names = {"queries.parquet", "quantizer.json"}
    assert set(made[0][1]) == (names if family == "flat" else names | {"mean.npy", "components.npy", "trained.faiss"})


def test_training_gives_the_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    faiss = import_faiss()
    threads = faiss.omp_get_max_threads()
    made = []
    try:
        for count in (1, 2, 3):
            faiss.omp_set_num_threads(count)
            store, live = rooted(tmp_path / str(count), 3000)
            made.append(files_of(store, train_quantizer(store, ENCODER, IVF, live.parts, live.table, None).id))
    finally:
        faiss.omp_set_num_threads(threads)
    assert made[0] == made[1] == made[2]


def test_a_quantizer_comes_back_as_it_was_trained(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 1500)
    record = train_quantizer(store, ENCODER, IVF, live.parts, live.table, None)
    quantizer = load_quantizer(store, record.id)
    training, held_out = sample_rows(live.table, "ivf-pq", record.spec.cells)
    assert (record.training_rows, record.held_out, record.trained_for_rows) == (len(training), len(held_out), 1500)
    assert quantizer.query_keys == picked_keys(live.table, held_out)
    paths_asked = live.table["path"].take(pa.array(held_out)).to_pylist()
    assert quantizer.queries.tolist() == [vector_of(path).tolist() for path in paths_asked]

    x = normalise(np.stack([vector_of(path) for path in live.table["path"].to_pylist()])[training])
    mean, components, explained = fit_pca(x, record.spec.reduced)
    assert np.array_equal(quantizer.mean, mean) and np.array_equal(quantizer.components, components)
    assert record.explained == pytest.approx(explained, abs=1e-6)
    ivf = quantizer.ivf
    assert (ivf.is_trained, ivf.ntotal, ivf.nlist, ivf.d) == (True, 0, record.spec.cells, record.spec.reduced)
    assert ivf.pq.code_size == record.spec.code_bytes and not ivf.do_polysemous_training
    assert record.spec.dimension == DIMENSION


def test_training_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 1500)
    record = train_quantizer(store, ENCODER, IVF, live.parts, live.table, None)
    whole = files_of(store, record.id)
    for file in ("quantizer.json", "queries.parquet", "trained.faiss"):
        store.fs.rm(store.path(f"quantizers/{record.id}/{file}"))
        if store.exists(f"quantizers/{record.id}/quantizer.json"):
            store.fs.rm(store.path(f"quantizers/{record.id}/quantizer.json"))
        assert train_quantizer(store, ENCODER, IVF, live.parts, live.table, None) == record
        assert files_of(store, record.id) == whole


def test_other_vectors_make_another_quantizer(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 300)
    first = train_quantizer(store, ENCODER, FLAT, live.parts, live.table, None)
    rows = [Row(path) for path in paths(300)]
    last = max(rows, key=lambda row: hash_of(f"photos/{row.path}"))
    rows[rows.index(last)] = Row(last.path, vector=np.ones(DIMENSION))
    other = make_root(tmp_path / "other", rows)
    again = find_live(other, entries_of(rows))
    assert train_quantizer(other, ENCODER, FLAT, again.parts, again.table, None).id != first.id


def test_an_ivf_of_the_fewest_rows_can_be_trained(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 69)
    record = train_quantizer(store, ENCODER, IVF, live.parts, live.table, None)
    assert record.spec.cells == 1 and record.held_out > 0 and record.training_rows + record.held_out <= 69

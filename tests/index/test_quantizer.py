from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from synthetic import (
    DIMENSION,
    ENCODER,
    Live,
    Row,
    entries_of,
    find_live,
    make_root,
    paths,
    vector_of,
)

from sif_batch.config import IndexSettings
from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer import load_quantizer, read_record
from sif_batch.index.train_quantizer import train_quantizer
from sif_batch.index.training_sample import sample_rows
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.sources.names import hash_of
from sif_batch.storage.store import Store

FLAT, IVF = (IndexSettings.model_validate({"family": family}) for family in ("flat", "ivf-pq"))


def test_too_few_rows_leave_nothing_behind(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 60)
    with pytest.raises(SifBatchError, match="there are 60"):
        train_quantizer(store, ENCODER, IVF, live.parts, live.table, None)
    assert not store.exists("quantizers")


# Reading rows from parts.


def rooted(folder: Path, count: int, size: int = 400) -> tuple[Store, Live]:
    rows = [Row(path) for path in paths(count)]
    store = make_root(folder / f"root{count}-{size}", rows, size)
    return store, find_live(store, entries_of(rows))


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
    names = {"queries.parquet", "quantizer.json", "seen.npy"}
    assert set(made[0][1]) == (
        names if family == "flat" else names | {"mean.npy", "components.npy", "variances.npy", "trained.faiss"}
    )


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
    training, held_out = sample_rows(live.table, record.spec.cells)
    assert (record.training_rows, record.held_out, record.trained_for_rows) == (len(training), len(held_out), 1500)
    assert quantizer.query_keys == live.table["key"].take(pa.array(held_out)).to_pylist()
    paths_asked = live.table["path"].take(pa.array(held_out)).to_pylist()
    assert quantizer.queries.tolist() == [vector_of(path).tolist() for path in paths_asked]

    x = np.stack([vector_of(path) for path in live.table["path"].to_pylist()])[training].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    transform = quantizer.transform
    assert transform.mean is not None and transform.components is not None and transform.variances is not None
    assert np.allclose(transform.mean, x.mean(axis=0))
    assert np.allclose(np.cov(x.T) @ transform.components, transform.components * transform.variances, atol=1e-6)
    assert record.explained == pytest.approx(
        transform.variances[: record.spec.reduced].sum() / np.cov(x.T).trace(), abs=1e-6
    )
    ivf = quantizer.index
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

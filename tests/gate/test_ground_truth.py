from pathlib import Path

import numpy as np
import pytest
from synthetic import (
    Live,
    Row,
    assemble,
    entries_of,
    find_live,
    find_truth,
    make_root,
    measure,
    paths,
    quantize,
    vector_of,
)

from sif_batch.gate import ground_truth as truth_module
from sif_batch.index.quantize_part import quantize_part
from sif_batch.index.quantizer import Quantizer, QuantizerRecord, load_quantizer
from sif_batch.index.recall import NEIGHBOURS, Truth
from sif_batch.storage.store import Store

COUNT = 1000


def brute_force(quantizer: Quantizer, vectors: np.ndarray) -> np.ndarray:
    """Squared distances of unit vectors, (queries, rows), in float64."""
    x = vectors.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    q = quantizer.queries.astype(np.float64)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    return ((q[:, None] - x[None]) ** 2).sum(axis=2)


def truth_of(tmp_path: Path, store: Store, live: Live, record: QuantizerRecord) -> tuple[Truth, np.ndarray, Quantizer]:
    """The truth as the gate finds it, and the brute-force distances of the live rows."""
    _, placed = assemble(store, live, record, tmp_path / "release")
    truth = find_truth(store, live, record, placed)
    quantizer = load_quantizer(store, record.id)
    vectors = np.stack([row_vector(store, live, i) for i in range(len(live.table))])
    return truth, brute_force(quantizer, vectors), quantizer


def row_vector(store: Store, live: Live, number: int) -> np.ndarray:
    row = live.table.slice(number, 1).to_pylist()[0]
    return VECTORS.get((row["path"], row["version"]), vector_of(row["path"]))


VECTORS: dict[tuple[str, str], np.ndarray] = {}  # of rows that do not have their path's own


@pytest.fixture(autouse=True)
def no_vectors_of_other_tests() -> None:
    VECTORS.clear()


def check(truth: Truth, distances: np.ndarray, depth: int = NEIGHBOURS) -> None:
    """The first `depth` of each query's neighbours are those of brute force, the query's own row left out."""
    for query, (rows, found) in enumerate(zip(truth.rows, truth.distances, strict=True)):
        mine = distances[query].copy()
        if truth.own[query] >= 0:
            mine[truth.own[query]] = np.inf
        order = np.argsort(mine, kind="stable")[: min(depth, np.isfinite(mine).sum())]
        assert len(set(rows)) == len(rows) and truth.own[query] not in rows
        assert np.allclose(found, mine[rows], atol=2e-6)
        assert (np.diff(found) >= 0).all()
        assert np.allclose(found[: len(order)], mine[order], atol=2e-6)


@pytest.fixture
def reread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that the gate looks into again."""
    read: list[str] = []
    real = truth_module.read_embeddings

    def noting(store: Store, encoder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
        read.append(part)
        return real(store, encoder, part)

    monkeypatch.setattr(truth_module, "read_embeddings", noting)
    return read


# The truth.


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
@pytest.mark.parametrize("size", [COUNT, 150])
def test_the_truth_is_brute_force(tmp_path: Path, family: str, size: int, reread: list[str]) -> None:
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", rows, size)
    live = find_live(store, entries_of(rows))
    truth, distances, quantizer = truth_of(tmp_path, store, live, quantize(store, live, family))
    assert len(truth.own) == len(quantizer.queries) and (truth.own >= 0).all()
    check(truth, distances)
    assert reread == []


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_the_truth_is_brute_force_where_dead_rows_fill_the_lists(
    tmp_path: Path, family: str, reread: list[str]
) -> None:
    """Most rows near the queries are dead, so that a part's list of 200 holds too few that live."""
    old = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", old, 500)
    record = quantize(store, find_live(store, entries_of(old)), family)
    now = old[: COUNT // 5]
    live = find_live(store, entries_of(now))
    assert len(live.table) == COUNT // 5
    truth, distances, _ = truth_of(tmp_path, store, live, record)
    check(truth, distances)
    assert len(reread) >= 1 and (truth.own < 0).any()
    assert all(len(rows) >= NEIGHBOURS for rows in truth.rows)


def test_a_dead_part_is_looked_into_only_for_the_queries_it_may_matter_to(tmp_path: Path, reread: list[str]) -> None:
    rows = [Row(path) for path in paths(3 * COUNT)]
    store = make_root(tmp_path / "root", rows, COUNT)
    record = quantize(store, find_live(store, entries_of(rows)))
    live = find_live(store, entries_of([*rows[:COUNT], *rows[COUNT : COUNT + 50], *rows[2 * COUNT :]]))
    truth, distances, _ = truth_of(tmp_path, store, live, record)
    check(truth, distances)
    assert len(reread) <= 1  # 950 of 1000 rows of the second part are dead; the others are whole


def test_changed_images_are_compared_with_their_new_vectors(tmp_path: Path) -> None:
    old = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", old, 300)
    record = quantize(store, find_live(store, entries_of(old)))
    changed = [Row(row.path, version="2-2", vector=vector_of(f"new {row.path}")) for row in old[::3]]
    VECTORS.update({(row.path, "2-2"): vector_of(f"new {row.path}") for row in changed})
    now = [*changed, *(row for i, row in enumerate(old) if i % 3)]
    make_root(tmp_path / "root", changed, 200)
    live = find_live(store, entries_of(now))
    for part in live.used:
        quantize_part(lambda report: None, store.url, record.id, part)
    truth, distances, _ = truth_of(tmp_path, store, live, record)
    check(truth, distances)


def test_fewer_rows_than_neighbours_are_all_in_the_truth(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(40)]
    store = make_root(tmp_path / "root", rows, 15)
    live = find_live(store, entries_of(rows))
    truth, distances, _ = truth_of(tmp_path, store, live, quantize(store, live))
    check(truth, distances)
    assert {len(found) for found in truth.rows} == {39}


# Duplicates.


@pytest.mark.parametrize("copies", [150, 900])
@pytest.mark.parametrize("size", [COUNT, 130])
def test_copies_of_a_query_do_not_lower_recall(tmp_path: Path, copies: int, size: int) -> None:
    """Equally near rows are equally right, however many there are."""
    same = vector_of("placeholder.jpg")
    rows = [Row(path, vector=same if i < copies else None) for i, path in enumerate(paths(COUNT))]
    VECTORS.update({(row.path, row.version): same for row in rows[:copies]})
    store = make_root(tmp_path / "root", rows, size)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live)
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    measured, truth = measure(store, live, record, tmp_path / "release", manifest, placed)
    assert measured["recall"]["at_10"] == 1.0
    copied = {f"photos/{row.path}" for row in rows[:copies]}
    asked = copied & set(load_quantizer(store, record.id).query_keys)
    assert 0 < len(asked) < len(truth.rows)


@pytest.mark.parametrize("metric", ["euclidean", "pearson"])
@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_the_truth_is_brute_force_in_the_configured_similarity(tmp_path: Path, metric: str, whitening: float) -> None:
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", rows, 300)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, "flat", metric=metric, whitening=whitening, power=True)
    _, placed = assemble(store, live, record, tmp_path / "release")
    found = find_truth(store, live, record, placed)
    transform = load_quantizer(store, record.id).transform
    y = transform.apply(np.stack([vector_of(path) for path in live.table["path"].to_pylist()]))
    for own, near, distances in zip(found.own, found.rows, found.distances, strict=True):
        apart = ((y - y[own]) ** 2).sum(axis=1)
        apart[own] = np.inf
        assert np.allclose(np.sort(apart)[:NEIGHBOURS], distances[:NEIGHBOURS], atol=1e-5)
        assert np.allclose(apart[near], distances, atol=1e-5)


def test_a_radius_that_became_too_small_is_noticed(tmp_path: Path, reread: list[str]) -> None:
    """Of 4,000 rows 3,600 go: the hundredth neighbour now lies beyond what parts kept."""
    old = [Row(path) for path in paths(4 * COUNT)]
    store = make_root(tmp_path / "root", old, 500)
    record = quantize(store, find_live(store, entries_of(old)))
    assert np.isfinite(load_quantizer(store, record.id).radii).all()
    now = old[::10]
    live = find_live(store, entries_of(now))
    truth, distances, _ = truth_of(tmp_path, store, live, record)
    check(truth, distances)
    assert len(reread) == 8


def test_parts_keep_few_rows_where_there_are_many(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(6 * COUNT)]
    store = make_root(tmp_path / "root", rows, 500)
    live = find_live(store, entries_of(rows))
    _, placed = assemble(store, live, quantize(store, live), tmp_path / "release")
    queries = placed.assembled.last.shape[1]
    assert len(placed.assembled.row) < 12 * 2 * NEIGHBOURS * queries / 5

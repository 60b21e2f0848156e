from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from synthetic import Row, build_release, checked, entries_of, make_root, paths, vector_of

from sif_batch.config import SifBatchError
from sif_batch.evaluation import choose_queries, evaluate_exact, evaluate_release, judge_rankings, labels_of
from sif_batch.query import Index

CUTS = (1, 5, 10)


def judge_slowly(rankings: list[list[int]], queries: list[int], labels: list[str]) -> dict[str, object]:
    """The figures from their definitions, query by query; average precision by scikit-learn."""
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for query, ranking in zip(queries, rankings, strict=True):
        relevant = {row for row, label in enumerate(labels) if label == labels[query] and row != query}
        hits = [row in relevant for row in ranking]
        others = [row for row in range(len(labels)) if row != query]
        place = {row: len(ranking) - i for i, row in enumerate(ranking)}
        found_share = sum(hits) / len(relevant)
        if any(hits):  # rows that are missing count as not found: the average over those found, times their share
            truth = [row in relevant for row in ranking]
            note("map", average_precision_score(truth, [place[row] for row in ranking]) * found_share)
        else:
            note("map", 0.0)
        assert set(ranking) <= set(others)
        note("r_precision", sum(hits[: len(relevant)]) / len(relevant))
        note("mrr", next((1 / (i + 1) for i, hit in enumerate(hits) if hit), 0.0))
        for cut in CUTS:
            precision, recall = sum(hits[:cut]) / cut, sum(hits[:cut]) / len(relevant)
            note(f"precision{cut}", precision)
            note(f"recall{cut}", recall)
            note(f"f1{cut}", 2 * precision * recall / (precision + recall) if precision else 0.0)
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    nested = {name: {str(cut): means[f"{name}{cut}"] for cut in CUTS} for name in ("precision", "recall", "f1")}
    return nested | {name: means[name] for name in ("map", "r_precision", "mrr")}


def flat_figures(figures: dict[str, object]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in figures.items():
        found |= {f"{name}@{cut}": v for cut, v in value.items()} if isinstance(value, dict) else {name: value}  # type: ignore[dict-item]
    return found


def judged(rankings: list[list[int]], queries: list[int], labels: list[str]) -> dict[str, object]:
    arrays = [np.array(ranking, np.int64) for ranking in rankings]
    return judge_rankings(arrays, arrays, np.array(queries), np.array(labels, object))


@checked
@given(st.integers(2, 25), st.integers(2, 4), st.integers(0, 10**6), st.booleans())
def test_the_figures_are_those_of_their_definitions(count: int, kinds: int, seed: int, missing: bool) -> None:
    random = np.random.default_rng(seed)
    labels = [f"label{number}" for number in random.integers(kinds, size=count)]
    queries = [row for row in range(count) if labels.count(labels[row]) > 1]
    if not queries:
        return
    rankings = []
    for query in queries:
        others = [row for row in random.permutation(count).tolist() if row != query]
        rankings.append(others[: random.integers(len(others) + 1)] if missing else others)
    found = flat_figures(judged(rankings, queries, labels))
    assert found == pytest.approx(flat_figures(judge_slowly(rankings, queries, labels)), abs=2e-6)


def test_a_case_worked_out_by_hand() -> None:
    # Query 0 (a): relevant are 1 and 2; the ranking 3 1 4 2 hits at ranks 2 and 4.
    figures = judged([[3, 1, 4, 2]], [0], ["a", "a", "a", "b", "b"])
    assert figures["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert figures["mrr"] == pytest.approx(1 / 2)
    assert figures["r_precision"] == pytest.approx(1 / 2)
    assert figures["precision"] == {"1": 0, "5": pytest.approx(2 / 5), "10": pytest.approx(2 / 10)}
    assert figures["recall"] == {"1": 0, "5": 1, "10": 1}
    assert figures["f1"] == {"1": 0, "5": pytest.approx(4 / 7, abs=1e-6), "10": pytest.approx(1 / 3, abs=1e-6)}


def test_a_perfect_and_a_hopeless_ranking() -> None:
    labels = ["a", "a", "a", "b", "b"]
    perfect = flat_figures(judged([[1, 2, 3, 4]], [0], labels))
    assert perfect["map"] == perfect["mrr"] == perfect["r_precision"] == perfect["precision@1"] == 1
    hopeless = flat_figures(judged([[3, 4]], [0], labels))
    assert set(hopeless.values()) == {0.0}
    nothing = flat_figures(judged([[]], [0], labels))
    assert set(nothing.values()) == {0.0}


def test_rows_that_are_missing_count_as_not_found() -> None:
    figures = judged([[1]], [0], ["a", "a", "a", "b"])
    assert figures["map"] == pytest.approx(1 / 2) and figures["r_precision"] == pytest.approx(1 / 2)


def test_cuts_are_judged_by_the_short_ranking_and_the_rest_by_the_long() -> None:
    labels = np.array(["a", "a", "b", "b"], object)
    figures = judge_rankings([np.array([1, 2, 3])], [np.array([2, 3])], np.array([0]), labels)
    assert figures["map"] == 1 and figures["precision"]["1"] == 0


def test_queries_are_rows_whose_label_has_another_row() -> None:
    labels = np.array(["a", "b", "a", "c", "b", None, None], object)
    assert choose_queries(labels).tolist() == [0, 1, 2, 4, 5, 6]
    assert choose_queries(labels, 3).tolist() == [0, 1, 2]
    assert choose_queries(np.array(["a", "b"], object)).tolist() == []


def test_without_a_shared_label_there_is_nothing_to_judge() -> None:
    with pytest.raises(SifBatchError, match="no image shares its label"):
        judge_rankings([], [], np.array([], np.int64), np.array(["a", "b"], object))


# Of a release.


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Index]:
    """The same images, flat and IVF: three kinds whose vectors overlap."""
    rows = []
    for i in range(360):
        path = f"things/{'abc'[i % 3]}/{i}.jpg"
        centre = np.random.default_rng(i % 3).normal(size=48)
        rows.append(Row(path, vector=centre + 1.3 * np.random.default_rng(1000 + i).normal(size=48)))
    rows.append(Row("single.jpg"))
    found = {}
    for family in ("flat", "ivf-pq"):
        folder = tmp_path_factory.mktemp(family)
        store = make_root(folder / "root", rows, 100)
        found[family] = Index.open(store.path(f"releases/{build_release(store, entries_of(rows), folder, family)}"))
    VECTORS.update({f"photos/{row.path}": row.vector for row in rows if row.vector is not None})
    return found


VECTORS: dict[str, np.ndarray] = {}


def vectors_of(index: Index) -> np.ndarray:
    keys = index.column("key").to_pylist()
    return np.stack([VECTORS.get(key, vector_of(key.removeprefix("photos/"))).astype(np.float16) for key in keys])


def test_the_label_is_the_folders_last_component(opened: dict[str, Index]) -> None:
    labels = labels_of(opened["flat"], "folder")
    assert set(labels) == {"a", "b", "c", ""}
    keys = opened["flat"].column("key").to_pylist()
    assert labels.tolist() == [key.split("/")[2] if key.count("/") == 3 else "" for key in keys]


def test_labels_must_differ_and_exist(opened: dict[str, Index]) -> None:
    with pytest.raises(SifBatchError, match="all images have the same source"):
        labels_of(opened["flat"], "source")
    with pytest.raises(SifBatchError, match="no column 'kind'"):
        labels_of(opened["flat"], "kind")


def test_exact_search_is_judged_as_by_brute_force(opened: dict[str, Index]) -> None:
    index = opened["flat"]
    labels = labels_of(index, "folder")
    queries = choose_queries(labels)
    assert len(queries) == 360  # the single image has no other of its label
    x = vectors_of(index).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarities = x @ x.T
    np.fill_diagonal(similarities, -np.inf)
    rankings = [np.argsort(-similarities[row])[:-1].tolist() for row in queries]
    expected = flat_figures(judge_slowly(rankings, queries.tolist(), labels.tolist()))
    assert 0.4 < expected["map"] < 0.95
    exact = flat_figures(evaluate_exact(vectors_of(index), labels, queries))
    assert exact == pytest.approx(expected, abs=1e-4)
    assert flat_figures(evaluate_release(index, labels, queries)) == pytest.approx(expected, abs=2e-3)


def test_an_ivf_is_judged_at_its_operating_point(opened: dict[str, Index]) -> None:
    index = opened["ivf-pq"]
    labels = labels_of(index, "folder")
    queries = choose_queries(labels)
    exact = flat_figures(evaluate_exact(vectors_of(index), labels, queries))
    found = flat_figures(evaluate_release(index, labels, queries))
    assert found["map"] == pytest.approx(exact["map"], abs=0.005)
    assert found["precision@1"] == pytest.approx(exact["precision@1"], abs=0.03)


def test_a_sample_of_queries_is_judged_alone(opened: dict[str, Index]) -> None:
    index = opened["flat"]
    labels = labels_of(index, "folder")
    few = choose_queries(labels, 20)
    assert few.tolist() == choose_queries(labels)[:20].tolist()
    x = vectors_of(index)
    every = evaluate_exact(x, labels, few)
    halves = [flat_figures(evaluate_exact(x, labels, part)) for part in (few[:10], few[10:])]
    assert flat_figures(every) == pytest.approx({k: (halves[0][k] + halves[1][k]) / 2 for k in halves[0]}, abs=2e-6)


def test_the_vectors_given_are_not_changed(opened: dict[str, Index]) -> None:
    x = vectors_of(opened["flat"]).astype(np.float32)
    before = x.copy()
    labels = labels_of(opened["flat"], "folder")
    evaluate_exact(x, labels, choose_queries(labels, 5))
    assert np.array_equal(x, before)


def test_folders_of_real_names_are_labels(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(40)]
    store = make_root(tmp_path / "root", rows)
    index = Index.open(store.path(f"releases/{build_release(store, entries_of(rows), tmp_path)}"))
    assert sorted(set(labels_of(index, "folder"))) == ["a", "b", "c", "d"]

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score, precision_recall_curve
from synthetic import Row, build_release, checked, entries_of, make_root, vector_of

from sif_batch.errors import SifBatchError
from sif_batch.evaluation import metrics
from sif_batch.evaluation.metrics import LEVELS, PerQuery, Trial, averages, intervals, judge, plan_trials
from sif_batch.evaluation.rankings import METRICS, rank_exactly
from sif_batch.evaluation.relevance import by_labels, read_relevance
from sif_batch.jobs.reports.evaluate import Evaluation, evaluate, worst_pictures
from sif_batch.query.index import Index

CUTS = (1, 5, 10)


def judge_slowly(rankings: list[list[int]], queries: list[int], labels: list[str | None]) -> dict[str, object]:
    """The figures from their definitions, query by query; average precision and the curve by scikit-learn."""
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
            scores = [place[row] for row in ranking]
            note("map", average_precision_score(truth, scores) * found_share)
            precisions, recalls, _ = precision_recall_curve(truth, scores)
            reached = recalls[:-1] * found_share  # the last point is made up
        else:
            note("map", 0.0)
            precisions, reached = np.zeros(1), np.zeros(0)
        for level in LEVELS:
            at_least = precisions[:-1][reached >= float(level) - 1e-9]
            note(f"curve{level}", max(at_least, default=0.0))
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
    nested["curve"] = {level: means[f"curve{level}"] for level in LEVELS}
    return nested | {name: means[name] for name in ("map", "r_precision", "mrr")}


def flat_figures(figures: dict[str, object]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in figures.items():
        found |= {f"{name}@{cut}": v for cut, v in value.items()} if isinstance(value, dict) else {name: value}  # type: ignore[dict-item]
    return found


def judge_each(rankings: list[list[int]], queries: list[int], labels: list[str | None]) -> PerQuery:
    arrays = [np.array(ranking, np.int64) for ranking in rankings]
    trial = Trial(np.array(queries), np.ones(len(labels), bool))
    return judge(zip(arrays, arrays, strict=True), trial, by_labels(labels))


def judged(rankings: list[list[int]], queries: list[int], labels: list[str | None]) -> dict[str, object]:
    return averages(judge_each(rankings, queries, labels))


@checked
@given(st.integers(2, 25), st.integers(2, 4), st.integers(0, 10**6), st.booleans())
def test_the_figures_are_those_of_their_definitions(count: int, kinds: int, seed: int, missing: bool) -> None:
    random = np.random.default_rng(seed)
    labels: list[str | None] = [f"label{number}" for number in random.integers(kinds, size=count)]
    labels[0] = None
    queries = by_labels(labels).queries().tolist()
    assert queries == [row for row in range(count) if labels[row] is not None and labels.count(labels[row]) > 1]
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
    assert set(figures["curve"].values()) == {1 / 2}  # type: ignore[attr-defined]


def test_a_perfect_and_a_hopeless_ranking() -> None:
    labels: list[str | None] = ["a", "a", "a", "b", "b"]
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
    trial = Trial(np.array([0]), np.ones(4, bool))
    rankings = [(np.array([1, 2, 3]), np.array([2, 3]))]
    figures = averages(judge(rankings, trial, by_labels(["a", "a", "b", "b"])))
    assert figures["map"] == 1 and figures["precision"]["1"] == 0


def test_images_without_a_label_are_neither_asked_with_nor_relevant() -> None:
    relevance = by_labels(["a", "b", "a", "c", "b", None, None])
    assert relevance.queries().tolist() == [0, 1, 2, 4]
    assert relevance.hits(0, np.array([1, 2, 5])).tolist() == [False, True, False]
    assert relevance.summary()["labels_of_one_image"] == {"count": 1, "examples": ["c"]}
    assert relevance.summary()["labelled"] == 5


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    values = np.random.default_rng(5).beta(2, 1, size=400)
    ours = intervals({"map": values})["map"]
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.003)  # an interval is 0.046 wide
    assert intervals({"map": np.full(30, 0.5)})["map"] == [0.5, 0.5]


# Trials: who asks, and what can be found.


@checked
@given(st.integers(8, 60), st.integers(2, 5), st.integers(2, 5), st.integers(0, 10**6))
def test_folds_ask_with_each_image_once_among_the_others(count: int, kinds: int, folds: int, seed: int) -> None:
    labels = [f"label{number}" for number in np.random.default_rng(seed).integers(kinds, size=count)]
    relevance = by_labels(labels)
    try:
        trials = plan_trials(relevance, 10**6, folds)
    except SifBatchError:
        assert all(labels.count(label) == 1 for label in labels)
        return
    asked = np.concatenate([trial.queries for trial in trials])
    assert len(set(asked.tolist())) == len(asked)
    assert np.array_equal(sum(~trial.inside for trial in trials), np.ones(count))
    for trial in trials:
        assert not trial.inside[trial.queries].any()
        for query in trial.queries:
            expected = sum(labels[row] == labels[query] for row in np.flatnonzero(trial.inside))
            assert relevance.counts(trial.inside)[query] == expected > 0
    for label in set(labels):  # as even as it can be
        sizes = [sum(labels[row] == label for row in np.flatnonzero(~trial.inside)) for trial in trials]
        assert max(sizes) - min(sizes) <= 1
    if len(trials[0].queries):
        (held_out,) = plan_trials(relevance, 10**6, folds, only_first=True)
        assert np.array_equal(held_out.inside, trials[0].inside)


def test_a_sample_of_queries_is_a_prefix() -> None:
    relevance = by_labels(["a", "b"] * 20)
    assert plan_trials(relevance, 10)[0].queries.tolist() == list(range(10))
    assert plan_trials(relevance, 1000)[0].queries.tolist() == list(range(40))


@pytest.mark.parametrize("metric", METRICS)
def test_exact_rankings_are_those_of_scipy(metric: str) -> None:
    from scipy.spatial.distance import cdist

    x = np.random.default_rng(2).normal(3, 1, size=(40, 8)) * np.linspace(0.5, 2, 40)[:, None]
    distances = cdist(x, x, {"cosine": "cosine", "euclidean": "euclidean", "pearson": "correlation"}[metric])
    found = list(rank_exactly(METRICS[metric](x), np.arange(40)))
    for row in range(40):
        expected = [other for other in np.argsort(distances[row], kind="stable").tolist() if other != row]
        assert found[row].tolist() == expected


# Of a release.

VECTORS: dict[str, np.ndarray] = {}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same images, flat and IVF: three kinds whose vectors overlap, and one image of its own."""
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
        build_release(store, entries_of(rows), folder, family)
        found[family] = store.url
    VECTORS.update({f"photos/{row.path}": row.vector for row in rows if row.vector is not None})
    return found


@pytest.fixture(scope="module")
def evaluations(roots: dict[str, str]) -> dict[str, Evaluation]:
    return {family: evaluate(root, "folder") for family, root in roots.items()}


def vectors_of(index: Index) -> np.ndarray:
    keys = index.column("key").to_pylist()
    return np.stack([VECTORS.get(key, vector_of(key.removeprefix("photos/"))).astype(np.float16) for key in keys])


def compared(report: dict[str, object]) -> dict[str, float]:
    names = ("precision", "recall", "f1", "map", "r_precision", "mrr", "curve")
    return flat_figures({name: report[name] for name in names})


def brute_force(index: Index, labels: list[str | None], queries: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    x = vectors_of(index).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarities = x @ x.T
    np.fill_diagonal(similarities, -np.inf)
    rankings = [np.argsort(-similarities[row])[:-1] for row in queries]
    kept = [ranking[inside[ranking]].tolist() for ranking in rankings]
    outside = [label if inside[row] or row in queries else None for row, label in enumerate(labels)]
    # The others that ask cannot be found: to the slow judge they have labels of their own.
    found: dict[str, float] = {}
    for query, ranking in zip(queries.tolist(), kept, strict=True):
        own = [label if inside[row] or row == query else f"none {row}" for row, label in enumerate(outside)]
        for name, value in flat_figures(judge_slowly([ranking], [query], own)).items():
            found[name] = found.get(name, 0.0) + value / len(queries)
    return found


def test_the_label_is_the_folders_last_component(evaluations: dict[str, Evaluation]) -> None:
    index, relevance = evaluations["flat"].index, evaluations["flat"].relevance
    assert relevance.names == ["", "a", "b", "c"]
    keys = index.column("key").to_pylist()
    expected = [key.split("/")[2] if key.count("/") == 3 else "" for key in keys]
    assert [relevance.names[number] for number in relevance.label] == expected


def test_exact_search_is_judged_as_by_brute_force(evaluations: dict[str, Evaluation]) -> None:
    flat = evaluations["flat"]
    assert flat.report["n_queries"] == 360  # the single image has no other of its label
    assert flat.report["matched"]["labels_of_one_image"] == {"count": 1, "examples": [""]}
    labels = [flat.relevance.names[number] for number in flat.relevance.label]
    expected = brute_force(flat.index, labels, flat.queries, np.ones(361, bool))
    assert 0.4 < expected["map"] < 0.95
    assert compared(flat.report["exact"]) == pytest.approx(expected, abs=1e-4)
    assert compared(flat.report) == pytest.approx(expected, abs=2e-3)
    low, high = flat.report["intervals"]["map"]
    assert low < flat.report["map"] < high


def test_a_holdout_is_judged_as_by_brute_force_among_the_rest(roots: dict[str, str]) -> None:
    found = evaluate(roots["flat"], "folder", holdout=0.25)
    assert found.report["split"] == {"kind": "holdout", "share": 0.25}
    labels = [found.relevance.names[number] for number in found.relevance.label]
    assert len(found.queries) == 90 and (~found.trials[0].inside).sum() in (90, 91)
    expected = brute_force(found.index, labels, found.queries, found.trials[0].inside)
    assert compared(found.report["exact"]) == pytest.approx(expected, abs=1e-4)
    assert compared(found.report) == pytest.approx(expected, abs=5e-3)


def test_folds_have_figures_of_their_own(roots: dict[str, str]) -> None:
    found = evaluate(roots["flat"], "folder", folds=3).report
    assert found["n_queries"] == 360 and found["split"] == {"kind": "k-fold", "folds": 3}
    by_fold = found["by_fold"]
    assert len(by_fold["map"]) == 3
    assert by_fold["mean"] == pytest.approx(np.mean(by_fold["map"]), abs=2e-6)
    assert by_fold["std"] == pytest.approx(np.std(by_fold["map"], ddof=1), abs=2e-6)
    assert found["map"] == pytest.approx(by_fold["mean"], abs=1e-5)  # folds of 120 each


def test_what_each_stage_loses_stands_apart(evaluations: dict[str, Evaluation]) -> None:
    found = evaluations["ivf-pq"].report["losses"]
    assert [row["stage"] for row in found] == ["exact", "cut", "codes", "release"]
    before = 1.0
    for row in found:
        assert row["lost"] == pytest.approx(before - row["map"], abs=2e-6)
        low, high = row["interval"]
        assert low <= row["lost"] <= high
        before = row["map"]
    kept = {row["stage"]: row["kept_at_10"] for row in found}
    assert kept["exact"] == 1 and kept["codes"] < kept["cut"] and kept["release"] > kept["codes"]
    assert [row["stage"] for row in evaluations["flat"].report["losses"]] == ["exact", "release"]
    assert evaluations["ivf-pq"].report["map"] == pytest.approx(found[0]["map"], abs=0.005)


def test_the_dimension_cut_is_judged_as_by_brute_force(
    evaluations: dict[str, Evaluation], roots: dict[str, str]
) -> None:
    """By scikit-learn's PCA of the same training rows."""
    from sklearn.decomposition import PCA

    found = evaluations["ivf-pq"]
    x = vectors_of(found.index).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    spec = found.index.manifest["quantizer"]
    below = np.flatnonzero(found.index.column("hash").to_numpy() < 15 << 60)
    cut = PCA(spec["reduced"], svd_solver="full").fit(x[below]).transform(x)
    distances = ((cut[:, None] - cut[None]) ** 2).sum(axis=2)
    scores = []
    for query in found.queries:
        others = np.delete(np.arange(len(x)), query)
        truth = found.relevance.label[others] == found.relevance.label[query]
        scores.append(average_precision_score(truth, -distances[query, others]))
    assert found.report["losses"][1]["map"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_three_metrics_stand_side_by_side(evaluations: dict[str, Evaluation]) -> None:
    report = evaluations["flat"].report
    assert set(report["metrics"]) == {"cosine", "euclidean", "pearson"}
    assert compared(report["metrics"]["cosine"]) == compared(report["exact"])
    assert len({report["metrics"][name]["map"] for name in METRICS}) == 3


def test_each_label_has_figures_of_its_own_the_worst_first(evaluations: dict[str, Evaluation]) -> None:
    found = evaluations["flat"]
    rows = found.report["per_label"]
    assert [row["map"] for row in rows] == sorted(row["map"] for row in rows)
    for row in rows:
        at = found.relevance.label[found.queries] == found.relevance.names.index(row["label"])
        assert row["queries"] == at.sum() == row["images"] == 120
        assert row["map"] == pytest.approx(found.judged.figures["map"][at].mean(), abs=1e-6)
        assert row["most_taken_for"] in {"", "a", "b", "c"} - {row["label"]}
    worst = worst_pictures(found, labels=2)
    assert [row["label"] for row in worst] == [rows[0]["label"], rows[1]["label"]]
    for row in worst:
        label = found.relevance.names.index(row["label"])
        lowest = found.judged.figures["map"][found.relevance.label[found.queries] == label].min()
        assert row["map"] == pytest.approx(lowest, abs=1e-4)
        assert all((found.relevance.label[hit] == label) == good for hit, good in row["hits"])


def test_time_is_told_for_more_and_more_rows(evaluations: dict[str, Evaluation], roots: dict[str, str]) -> None:
    for family, found in evaluations.items():
        timing = found.report["timing"]
        assert timing["images"] is None  # made-up rows have no images
        assert [row["rows"] for row in timing["queries"]] == [45, 90, 180, 361]
        assert all(row["seconds_per_query"] > 0 and row["seconds_per_exact_query"] > 0 for row in timing["queries"])
        assert len(list(Path(roots[family], "releases").iterdir())) == 1


def test_a_release_alone_is_judged_without_exact_search(
    roots: dict[str, str], evaluations: dict[str, Evaluation]
) -> None:
    release = evaluations["flat"].report["release"]
    found = evaluate(f"{roots['flat']}/releases/{release}", "folder").report
    assert compared(found) == compared(evaluations["flat"].report)
    assert found["exact"] is found["metrics"] is found["losses"] is None


def test_the_vectors_given_are_not_changed(evaluations: dict[str, Evaluation]) -> None:
    x = vectors_of(evaluations["flat"].index).astype(np.float32)
    before = x.copy()
    for metric in METRICS:
        metrics.evaluate_exact(x, evaluations["flat"].relevance, metric)
    assert np.array_equal(x, before)


# Labels and pairs from a file.


def write(folder: Path, text: str) -> str:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return str(folder / "labels.csv")


def test_labels_of_a_file_are_those_of_the_folders(
    tmp_path: Path, roots: dict[str, str], evaluations: dict[str, Evaluation]
) -> None:
    """Named by key, by uri and by path; in another order, with a column too many and names that no image has."""
    index = evaluations["flat"].index
    lines = ["label,note,Key"]
    for i, (key, uri) in enumerate(zip(index.column("key").to_pylist(), index.column("uri").to_pylist(), strict=True)):
        name = (key, uri, key.removeprefix("photos/"))[i % 3]
        lines.append(f"{key.split('/')[2] if key.count('/') == 3 else ''},x,{name}")
    lines += ["a,x,photos/gone.jpg", "b,x,other.jpg"]
    relevance = read_relevance(index, write(tmp_path, "\n".join(reversed(lines[1:] + lines[:1]))))
    assert np.array_equal(relevance.label, evaluations["flat"].relevance.label)
    assert relevance.summary()["unmatched"] == {"count": 2, "examples": ["other.jpg", "photos/gone.jpg"]}


def test_pairs_are_judged_as_their_definitions_say(tmp_path: Path, roots: dict[str, str]) -> None:
    index = Index.open(roots["flat"])
    keys = index.column("key").to_pylist()
    file = write(
        tmp_path, f"query,relevant\n{keys[0]},{keys[5]}\n{keys[0]},{keys[9]}\n{keys[9]},{keys[0]}\n{keys[3]},no.jpg\n"
    )
    found = evaluate(roots["flat"], file)
    assert found.queries.tolist() == [0, 5, 9] and found.report["per_label"] is None
    assert found.report["matched"]["unmatched"] == {"count": 1, "examples": ["no.jpg"]}
    x = vectors_of(index).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    scores = []
    for query, relevant in ((0, {5, 9}), (5, {0}), (9, {0})):
        others = [row for row in np.argsort(-(x @ x[query])) if row != query]
        scores.append(average_precision_score([row in relevant for row in others], range(len(others), 0, -1)))
    assert found.report["map"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert len(worst_pictures(found, labels=2)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key,label\nx.jpg,a\ny.jpg,b\n", "none of its 2 names is an image of the release, such as x.jpg, y.jpg"),
        ("key,label\nthings/a/0.jpg,a\nthings/a/3.jpg,a\n", "the same label, 'a'"),
        ("key,label\nthings/a/0.jpg,a\nthings/a/3.jpg,b\n", "no image shares its label"),
        ("key,label\nthings/a/0.jpg,a\nthings/a/0.jpg,b\n", "two labels: 'a' and 'b'"),
        ("key,label\nthings/a/0.jpg\n", "line 2 has 1 fields"),
        ("key,label\n", "holds a header and nothing else"),
        ("one,two\n1,2\n", "its first line is 'one,two'"),
        ("query,relevant\nthings/a/0.jpg,things/a/0.jpg\n", "none of its 0 names"),
        ("", "its first line is ''"),
    ],
)
def test_labels_that_cannot_be_judged_by_are_one_clear_error(
    tmp_path: Path, roots: dict[str, str], text: str, says: str
) -> None:
    with pytest.raises(SifBatchError, match=says) as caught:
        read_relevance(Index.open(roots["flat"]), write(tmp_path, text))
    assert caught.value.remedy


def test_labels_that_are_nowhere_and_too_large_a_k_are_clear_errors(tmp_path: Path, roots: dict[str, str]) -> None:
    index = Index.open(roots["flat"])
    with pytest.raises(SifBatchError, match="same label, 'photos'"):
        read_relevance(index, "source")
    with pytest.raises(SifBatchError, match="no column 'kind'"):
        read_relevance(index, "kind")
    with pytest.raises(SifBatchError, match="cannot be read"):
        read_relevance(index, str(tmp_path / "gone.csv"))
    with pytest.raises(SifBatchError, match="k is 361, but a query leaves 360 rows"):
        evaluate(roots["flat"], "folder", cuts=(1, 361))
    assert set(evaluate(roots["flat"], "folder", cuts=(360,), max_queries=5).report["precision"]) == {"360"}


def test_the_page_holds_figures_plots_and_pictures(tmp_path: Path, evaluations: dict[str, Evaluation]) -> None:
    from sif_batch.jobs.reports.evaluation_page import write_evaluation

    for family, found in evaluations.items():
        write_evaluation(found, str(tmp_path / family))
        page = (tmp_path / family / "evaluation.html").read_text(encoding="utf-8")
        assert f"{found.report['map']:.4f}" in page and page.count("<svg") == 4
        assert page.count("cannot be read") >= 3 * 9  # the images of made-up rows
        assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
            "http://creativecommons.org", ""
        )
        assert json.loads((tmp_path / family / "evaluation.json").read_text()) == found.report
        assert {file.suffix for file in (tmp_path / family).iterdir()} == {".html", ".json", ".svg"}

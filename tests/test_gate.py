from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import (
    Live,
    Row,
    assemble,
    checked,
    entries_of,
    find_live,
    make_root,
    measure,
    paths,
    quantize,
    vector_of,
)

from sif_batch import gate
from sif_batch.codes import quantize_part
from sif_batch.config import GateSettings
from sif_batch.gate import Truth, all_finite, ask, choose_point, exact_neighbours, judge, recall
from sif_batch.quantizer import HELD_OUT_FROM, NEIGHBOURS, Quantizer, QuantizerRecord, load_quantizer
from sif_batch.query import Index, OperatingPoint
from sif_batch.sources.names import hash_of
from sif_batch.storage import Store

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
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    _, truth = measure(store, live, record, tmp_path / "release", manifest, placed)
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
    real = gate.read_embeddings

    def noting(store: Store, encoder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
        read.append(part)
        return real(store, encoder, part)

    monkeypatch.setattr(gate, "read_embeddings", noting)
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


# Recall.


def made_truth(distances: list[list[float]], own: list[int] | None = None) -> Truth:
    """Rows numbered by their place in the list."""
    return Truth(
        [np.arange(len(d)) for d in distances],
        [np.array(d, np.float32) for d in distances],
        np.array(own or [-1] * len(distances)),
    )


@pytest.mark.parametrize(
    ("distances", "found", "k", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 1], 2, 1.0),
        ([0.1, 0.2, 0.3, 0.4], [1, 0], 2, 1.0),
        ([0.1, 0.2, 0.3, 0.4], [0, 3], 2, 0.5),
        ([0.1, 0.2, 0.3, 0.4], [2, 3], 2, 0.0),
        ([0.1, 0.2, 0.2, 0.2], [0, 3], 2, 1.0),  # as near as the second
        ([0.2, 0.2, 0.2, 0.2], [3, 2], 2, 1.0),
        ([0.1, 0.2], [0, 1, 7], 10, 1.0),  # fewer than k
        ([0.1, 0.2], [0], 10, 0.5),
        ([0.1, 0.2, 0.3], [], 2, 0.0),
        ([0.0, 0.0, 0.5], [1, 2], 2, 0.5),
        ([0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0], 2, 0.0),  # only the first k count
    ],
)
def test_recall_is_the_share_of_the_nearest_that_were_found(
    distances: list[float], found: list[int], k: int, expected: float
) -> None:
    assert recall(made_truth([distances]), [np.array(found, np.int64)], k) == expected


def test_recall_is_the_mean_over_queries_that_have_neighbours() -> None:
    truth = made_truth([[0.1, 0.2], [0.1, 0.2], []])
    found = [np.array([0, 1]), np.array([1, 5]), np.array([], np.int64)]
    assert recall(truth, found, 2) == 0.75
    assert recall(made_truth([[]]), [np.array([], np.int64)]) is None
    assert recall(made_truth([]), []) is None


@checked
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 12), st.data())
def test_recall_counts_by_distance(steps: list[int], k: int, data: st.DataObject) -> None:
    distances = sorted(step / 8 for step in steps)
    found = data.draw(st.lists(st.integers(0, len(steps) - 1), unique=True, max_size=k))
    wanted = min(k, len(steps))
    good = sum(distances[row] <= distances[wanted - 1] for row in found[:k])
    assert recall(made_truth([distances]), [np.array(found, np.int64)], k) == pytest.approx(min(wanted, good) / wanted)


# The operating point.


@pytest.mark.parametrize("scanned", [1, 130, 700, 5000])
def test_the_operating_point_is_the_fewest_cells_that_reach_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: int
) -> None:
    """Doubling from those that hold as many codes as nobody need spare."""
    monkeypatch.setattr(gate, "SCANNED_AT_LEAST", scanned)
    rows = [Row(path) for path in paths(2000)]
    store = make_root(tmp_path / "root", rows, 700)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, "ivf-pq")
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    quantizer = load_quantizer(store, record.id)
    index = Index(Store(str(tmp_path / "release")), "", manifest)
    number = {key: i for i, key in enumerate(live.keys)}
    own = np.array([number[key] for key in quantizer.query_keys])
    truth = exact_neighbours(store, quantizer, live.used, placed, own)
    point = choose_point(index, quantizer, truth)
    fewest = min(record.spec.cells, -(-scanned * record.spec.cells // 2000))
    assert point is not None and point.cells in {min(fewest * 2**i, record.spec.cells) for i in range(10)}

    def reached(cells: int) -> float:
        found = recall(truth, ask(index, quantizer, truth, OperatingPoint(cells, point.rerank)))
        assert found is not None
        return found

    assert reached(point.cells) >= gate.TARGET_RECALL or point.cells == record.spec.cells
    assert point.cells == fewest or reached(-(-point.cells // 2)) < gate.TARGET_RECALL
    for rows_found, own_row in zip(ask(index, quantizer, truth, point), own, strict=True):
        assert len(rows_found) == 10 and own_row not in rows_found


def test_a_target_that_is_out_of_reach_takes_all_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "TARGET_RECALL", 1.1)
    rows = [Row(path) for path in paths(500)]
    store = make_root(tmp_path / "root", rows, 700)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, "ivf-pq")
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    measured, _ = measure(store, live, record, tmp_path / "release", manifest, placed)
    assert measured["operating_point"]["cells"] == record.spec.cells


def test_an_exact_index_has_no_operating_point_and_finds_all(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(500)]
    store = make_root(tmp_path / "root", rows, 120)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live)
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    measured, _ = measure(store, live, record, tmp_path / "release", manifest, placed)
    assert measured["operating_point"] is None and measured["recall"]["at_10"] >= 0.99


def test_the_fewest_images_that_an_ivf_takes_are_measured_too(tmp_path: Path) -> None:
    in_band: set[bool] = set()
    for start in range(0, 100_000, 69):
        rows = [Row(path) for path in paths(69, start)]
        some = any(hash_of(f"photos/{row.path}") >= HELD_OUT_FROM for row in rows)
        if some in in_band:
            continue
        in_band.add(some)
        store = make_root(tmp_path / f"root{start}", rows, 700)
        live = find_live(store, entries_of(rows))
        record = quantize(store, live, "ivf-pq")
        manifest, placed = assemble(store, live, record, tmp_path / f"release{start}")
        measured, _ = measure(store, live, record, tmp_path / f"release{start}", manifest, placed)
        assert measured["recall"]["queries"] > 0 and measured["recall"]["at_10"] is not None
        if len(in_band) == 2:
            return
    raise AssertionError("no such collection was found")


# The verdict.

GOOD = {"listed": 100, "failed": 5, "recall": {"at_10": 0.9}, "finite": True}


def test_what_meets_every_demand_passes() -> None:
    assert judge(GateSettings(), GOOD) == []
    assert judge(GateSettings(), GOOD | {"recall": {"at_10": None}}) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"failed": 6}, "6 of 100 images failed (6.0%), --max-failures is 0.05"),
        ({"recall": {"at_10": 0.8999}}, "recall@10 is 0.8999, at least 0.9 is asked for"),
        ({"recall": {"at_10": 0.0}}, "recall@10 is 0, at least 0.9 is asked for"),
        ({"finite": False}, "some vectors are not finite"),
    ],
)
def test_each_fault_is_a_reason(changed: dict[str, object], reason: str) -> None:
    assert judge(GateSettings(), GOOD | changed) == [reason]


def test_all_reasons_are_given_and_settings_decide() -> None:
    bad = {"listed": 10, "failed": 5, "recall": {"at_10": 0.5}, "finite": False}
    assert len(judge(GateSettings(), bad)) == 3
    assert judge(GateSettings(max_failures=0.5, min_recall=0.5), bad) == ["some vectors are not finite"]
    assert judge(GateSettings(max_failures=0), GOOD) != []
    assert judge(GateSettings(max_failures=1, min_recall=0), GOOD | {"failed": 100, "recall": {"at_10": 0}}) == []


def test_a_row_that_is_not_finite_is_seen(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(100)]
    store = make_root(tmp_path / "root", rows)
    live = find_live(store, entries_of(rows))
    for family in ("flat", "ivf-pq"):
        manifest, _ = assemble(store, live, quantize(store, live, family), tmp_path / family)
        assert all_finite(Index(Store(str(tmp_path / family)), "", manifest))
    for value in (np.nan, np.inf, -np.inf):
        folder = tmp_path / str(value)
        manifest, _ = assemble(store, live, quantize(store, live), folder)
        kept = np.load(folder / "segments/000/rows.npy", mmap_mode="r+")
        kept[17, 3] = value
        kept.flush()
        assert not all_finite(Index(Store(str(folder)), "", manifest))

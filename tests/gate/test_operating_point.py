from pathlib import Path

import pytest
from synthetic import Live, Row, assemble, entries_of, find_live, find_truth, make_root, measure, paths, quantize

from sif_batch.gate import operating_point
from sif_batch.gate.checks import ask
from sif_batch.gate.operating_point import Measured, best_points, choose_point, measure_curve
from sif_batch.index.quantizer import Quantizer, load_quantizer
from sif_batch.index.recall import Truth, lower_and_upper, recall, shares
from sif_batch.index.training_sample import HELD_OUT_FROM
from sif_batch.query.index import Index
from sif_batch.query.segments import OperatingPoint
from sif_batch.sources.names import hash_of
from sif_batch.storage.store import Store

COUNT = 2000


def made(cells: int, rerank: int, scanned: float, reached: float, lower: float) -> Measured:
    return Measured(OperatingPoint(cells, rerank), scanned, reached, lower)


CURVE = [
    made(1, 50, 1000, 0.80, 0.78),
    made(1, 200, 1000, 0.85, 0.83),
    made(4, 50, 4000, 0.955, 0.945),
    made(4, 200, 4000, 0.97, 0.96),
    made(8, 50, 8000, 0.97, 0.96),
    made(8, 200, 8000, 0.99, 0.985),
]


def test_the_cheapest_point_whose_lower_bound_meets_the_target_is_chosen() -> None:
    assert choose_point(CURVE, 0.95) == OperatingPoint(8, 50)  # 8000 + 50 x 40 < 4000 + 200 x 40
    assert choose_point(CURVE, 0.7) == OperatingPoint(1, 50)
    assert choose_point(CURVE, 0.98) == OperatingPoint(8, 200)


def test_a_target_that_is_out_of_reach_takes_the_best_there_is() -> None:
    assert choose_point(CURVE, 0.999) == OperatingPoint(8, 200)
    assert choose_point([], 0.9) is None


def test_the_curve_keeps_no_point_that_a_cheaper_one_beats() -> None:
    kept = best_points([*CURVE, made(16, 50, 16_000, 0.96, 0.95)])
    costs, recalls = [m.cost for m in kept], [m.recall for m in kept]
    assert costs == sorted(costs) and recalls == sorted(set(recalls))
    assert all(any(k.recall >= m.recall and k.cost <= m.cost for k in kept) for m in CURVE)


@pytest.fixture(scope="module", params=["ivf-pq", "ivf-rabitq", "hnsw"])
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Index, Quantizer, Truth, list[Measured]]:
    folder = tmp_path_factory.mktemp("tuning")
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(folder / "root", rows, 700)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, request.param)
    manifest, placed = assemble(store, live, record, folder / "release")
    quantizer = load_quantizer(store, record.id)
    index = Index(Store(str(folder / "release")), "", manifest)
    truth = find_truth(store, live, record, placed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operating_point, "SCANNED_AT_LEAST", 1)
        return index, quantizer, truth, measure_curve(index, quantizer, truth, 10, 0.95)


def test_each_point_of_the_curve_is_what_a_user_gets_there(
    measured: tuple[Index, Quantizer, Truth, list[Measured]],
) -> None:
    index, quantizer, truth, curve = measured
    assert len(curve) >= 3
    for point in curve[:: max(1, len(curve) // 6)]:
        found = ask(index, quantizer, truth, point.point, 10)
        # A user's query takes a place more among the candidates for the row that is left out.
        assert recall(truth, found, 10) == pytest.approx(point.recall, abs=0.01)
        assert point.lower == pytest.approx(lower_and_upper(shares(truth, found, 10))[0], abs=0.015)
        assert point.lower <= point.recall
        assert all(len(rows) == 10 and own not in rows for rows, own in zip(found, truth.own, strict=True))


def test_more_cells_scan_more_codes_and_find_no_less(
    measured: tuple[Index, Quantizer, Truth, list[Measured]],
) -> None:
    curve = measured[3]
    deepest = sorted({m.point.cells: m for m in curve}.values(), key=lambda m: m.point.cells)
    assert len(deepest) >= 2
    scanned = [m.codes_scanned for m in deepest]
    assert scanned == sorted(scanned) and scanned[0] > 0
    assert deepest[-1].recall >= deepest[0].recall


def test_the_curve_goes_one_doubling_beyond_the_target_and_back_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operating_point, "SCANNED_AT_LEAST", 1)
    levels: list[tuple[int, float]] = []

    def level(
        index: Index, quantizer: Quantizer, truth: Truth, k: int, cells: int, reranks: list[int], target: float
    ) -> list[Measured]:
        levels.append((cells, target))
        reached = {1: 0.5, 2: 0.8, 4: 0.96}.get(cells, 0.99)
        return [made(cells, 50, 1000 * cells, reached, reached - 0.01)]

    monkeypatch.setattr(operating_point, "_measure_level", level)
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", rows, 700)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, "ivf-pq")
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    index, quantizer = Index(Store(str(tmp_path / "release")), "", manifest), load_quantizer(store, record.id)
    measure_curve(index, quantizer, find_truth(store, live, record, placed), 10, 0.94)
    assert levels == [(1, 0.94), (2, 0.94), (4, 0.94), (8, 1.0), (3, 0.94)]


def test_an_exact_index_has_no_operating_point_and_finds_all(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(500)]
    store = make_root(tmp_path / "root", rows, 120)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live)
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    figures, _ = measure(store, live, record, tmp_path / "release", manifest, placed)
    assert figures["operating_point"] is None and figures["recall"]["at_10"] >= 0.99 and figures["curve"] == []


def has_held_out(rows: list[Row]) -> bool:
    return any(hash_of(f"photos/{row.path}") >= HELD_OUT_FROM for row in rows)


@pytest.mark.parametrize("in_band", [False, True])
def test_the_fewest_images_that_an_ivf_takes_are_measured_too(tmp_path: Path, in_band: bool) -> None:
    collections = ([Row(path) for path in paths(69, start)] for start in range(0, 100_000, 69))
    rows = next(rows for rows in collections if has_held_out(rows) == in_band)
    store = make_root(tmp_path / "root", rows, 700)
    live: Live = find_live(store, entries_of(rows))
    record = quantize(store, live, "ivf-pq")
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    figures, _ = measure(store, live, record, tmp_path / "release", manifest, placed)
    assert figures["recall"]["queries"] > 0 and figures["recall"]["at_10"] is not None

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import (
    Row,
    assemble,
    entries_of,
    find_live,
    make_root,
    measure,
    paths,
    quantize,
    vector_of,
    write_parts,
)

from sif_batch.config import GateSettings
from sif_batch.gate.checks import all_finite, check_sanity, fresh_rows, judge, measure_fresh, measure_recall
from sif_batch.index.quantize_part import quantize_part
from sif_batch.index.quantizer import load_quantizer
from sif_batch.index.training_sample import HELD_OUT_FROM
from sif_batch.query.index import Index
from sif_batch.query.segments import OperatingPoint
from sif_batch.sources.names import hash_of
from sif_batch.storage.store import Store

# The verdict.

RECALL = {"k": 10, "target": 0.95, "at_10": 0.96, "interval": {"at_10": [0.95, 0.97]}, "fresh": None}
SANITY = {"lengths": [1, 2, 3], "constant": 0, "alike": 1, "of_images": 100}
GOOD: dict[str, Any] = {
    "rows": 95,
    "listed": 100,
    "failed": 5,
    "recall": RECALL,
    "sanity": SANITY,
    "finite": True,
    "settings": {},
    "codes_scanned": 8000,
    "curve": [{"codes_scanned": 4000, "recall": 0.9}, {"codes_scanned": 8000, "recall": 0.96}],
}


def test_what_meets_every_demand_passes() -> None:
    assert judge(GateSettings(), GOOD) == []
    assert judge(GateSettings(), GOOD, parent_rows=100, query_ms=3) == []
    unmeasured = {"k": 10, "target": 0.95, "at_10": None, "interval": {}, "fresh": None}
    assert judge(GateSettings(), GOOD | {"recall": unmeasured}) == []
    unsure = RECALL | {"at_10": 0.93, "interval": {"at_10": [0.9, 0.951]}}
    assert judge(GateSettings(), GOOD | {"recall": unsure}) == []


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"failed": 6}, "6 of 100 images failed (6.0%), --max-failures is 0.05"),
    (
        {"recall": RECALL | {"at_10": 0.9, "interval": {"at_10": [0.88, 0.92]}}},
        "recall@10 is 0.9 (0.88 to 0.92), --recall 0.95 is asked for",
    ),
    (
        {"recall": RECALL | {"fresh": {"at_10": 0.4, "interval": [0.3, 0.5], "queries": 32}}},
        "recall@10 of 32 new images is 0.4, --recall 0.95 is asked for",
    ),
    ({"finite": False}, "some vectors are not finite"),
    ({"sanity": SANITY | {"constant": 6}}, "6 of 95 vectors hold one number over and over: check the encoder"),
    ({"sanity": SANITY | {"alike": 91}}, "91 of 100 different images have the same vector: check the encoder"),
    ({"rows": 49}, "49 images, the last release has 100 (51.0% fewer), --max-shrink is 0.5"),
    (
        {"settings": {"max_query_ms": 1.0}},
        "a query takes 2.00 ms, --max-query-ms is 1, about recall 0.9 can be had in that",
    ),
    (
        {"settings": {"max_query_ms": 1.0, "family": "flat"}},
        "a query takes 2.00 ms, --max-query-ms is 1, --family auto takes a quicker kind",
    ),
]


@pytest.mark.parametrize(("changed", "reason"), FAULTS)
def test_each_fault_is_a_reason(changed: dict[str, Any], reason: str) -> None:
    assert judge(GateSettings(), GOOD | changed, parent_rows=100, query_ms=2.0) == [reason]


def test_all_reasons_are_given_and_settings_decide() -> None:
    bad = GOOD | {"failed": 60, "finite": False, "rows": 10}
    assert len(judge(GateSettings(), bad, 100)) == 3
    assert judge(GateSettings(max_failures=0.6, max_shrink=0.9), bad, 100) == ["some vectors are not finite"]
    assert judge(GateSettings(max_failures=0), GOOD) != []
    assert judge(GateSettings(max_failures=1, max_shrink=1), GOOD | {"failed": 100}, 10**6) == []
    assert judge(GateSettings(max_shrink=0), GOOD, 96) != []


# What is measured.


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_recall_is_measured_at_each_depth_with_its_bounds(tmp_path: Path, family: str) -> None:
    rows = [Row(path) for path in paths(1500)]
    store = make_root(tmp_path / "root", rows, 400)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, family)
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    figures, truth = measure(store, live, record, tmp_path / "release", manifest, placed, k=25)
    recall = figures["recall"]
    assert recall["queries"] == len(truth.own) > 50 and recall["k"] == 25 and recall["dimension_cut"] == 0
    for cut in (1, 10, 25, 100):
        low, high = recall["interval"][f"at_{cut}"]
        assert 0.8 < low <= recall[f"at_{cut}"] <= high <= 1


def test_the_dimension_cut_is_told_apart_from_quantization(tmp_path: Path) -> None:
    """The vectors fill all 48 dimensions, so rows of 32 cannot tell near from nearer."""
    rows = [Row(path) for path in paths(1500)]
    store = make_root(tmp_path / "root", rows, 400)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, "ivf-pq", max_bytes_per_row=42, recall=0.3)
    assert record.spec.row_dimension == 32
    manifest, placed = assemble(store, live, record, tmp_path / "release")
    figures, truth = measure(store, live, record, tmp_path / "release", manifest, placed, target=0.3)
    everything = OperatingPoint(record.spec.cells, 1500)
    index = Index(Store(str(tmp_path / "release")), "", manifest)
    exhaustive = measure_recall(index, load_quantizer(store, record.id), truth, everything, 10, 0.3)
    cut = figures["recall"]["dimension_cut"]
    assert cut > 0.1 and 1 - exhaustive["at_10"] == pytest.approx(cut, abs=0.06)


def test_new_images_are_asked_too(tmp_path: Path) -> None:
    old = [Row(path) for path in paths(1500)]
    store = make_root(tmp_path / "root", old, 400)
    live = find_live(store, entries_of(old))
    record = quantize(store, live, "ivf-pq")
    quantizer = load_quantizer(store, record.id)
    assert not len(fresh_rows(quantizer, live.table["hash"].to_numpy(), live.table["key"]))
    new = [Row(path) for path in paths(400, 1500)]
    write_parts(store, new, 200)
    live = find_live(store, entries_of([*old, *new]))
    for part in live.used:
        quantize_part(lambda report: None, store.url, record.id, part)
    picked = fresh_rows(quantizer, live.table["hash"].to_numpy(), live.table["key"])
    keys = {f"photos/{row.path}" for row in new if hash_of(f"photos/{row.path}") >= HELD_OUT_FROM}
    lowest = min(hash_of(key) for key in quantizer.query_keys)
    expected = [key for key in live.keys if key in keys and hash_of(key) > lowest]
    assert len(expected) > 10 and [live.keys[row] for row in picked] == expected[:32]
    manifest, _ = assemble(store, live, record, tmp_path / "release")
    index = Index(Store(str(tmp_path / "release")), "", manifest)
    fresh = measure_fresh(index, picked, 10, OperatingPoint(record.spec.cells, 200))
    assert fresh is not None and fresh["queries"] == len(picked) and fresh["at_10"] > 0.95
    poor = measure_fresh(index, picked, 10, OperatingPoint(1, 50))
    assert poor is not None and poor["at_10"] < fresh["at_10"]


def sanity_of(tmp_path: Path, rows: list[Row]) -> dict[str, Any]:
    store = make_root(tmp_path / "root", rows, 50)
    live = find_live(store, entries_of(rows))
    _, placed = assemble(store, live, quantize(store, live), tmp_path / "release")
    return check_sanity(placed.assembled, live.table["sha256"])


def test_lengths_constant_and_equal_vectors_are_counted(tmp_path: Path) -> None:
    special = {0: np.zeros(48), 1: np.full(48, 2.0), 2: np.full(48, -2.0)}
    special |= dict.fromkeys(range(10, 40), vector_of("placeholder.jpg"))
    rows = [Row(path, vector=special.get(i)) for i, path in enumerate(paths(100))]
    found = sanity_of(tmp_path, rows)
    vectors = [special.get(i, vector_of(row.path)).astype(np.float16) for i, row in enumerate(rows)]
    lengths = np.sort([np.linalg.norm(vector.astype(np.float64)) for vector in vectors])
    assert found["constant"] == 3 and (found["alike"], found["of_images"]) == (30, 100)
    assert found["lengths"] == pytest.approx([lengths[0], np.median(lengths), lengths[-1]], rel=1e-3)


def test_copies_of_one_image_are_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(path, vector=np.arange(48.0)) for path in paths(60)]
    encoded = Row.encoded
    monkeypatch.setattr(Row, "encoded", lambda row: encoded(row) | {"sha256": bytes(32)})
    found = sanity_of(tmp_path, rows)
    assert (found["alike"], found["of_images"]) == (1, 1)


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

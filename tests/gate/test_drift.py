"""Drift: what is measured of it, when a quantizer is trained anew, and that no history decides any of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import Quiet
from synthetic import (
    DIMENSION,
    ENCODER,
    Row,
    assemble,
    entries_of,
    find_live,
    make_root,
    manifest_of,
    paths,
    quantize,
    record_of,
    seed_of,
    vector_of,
    write_parts,
)

from sif_batch.config import IndexSettings, RootRecord, Source
from sif_batch.errors import SifBatchError
from sif_batch.gate.drift import MAX_IMBALANCE, MAX_RATIO, measure_drift, why_drifted, why_outgrown, why_unfit
from sif_batch.index.quantize_part import quantize_part
from sif_batch.index.quantizer import Quantizer, count_cells, imbalance_of, load_quantizer
from sif_batch.jobs.nightly.embed_stage import ledger_of
from sif_batch.jobs.nightly.index_stage import Indexed, index_collection
from sif_batch.jobs.settings import RunSettings
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.release.history import read_top
from sif_batch.sources.listing import Listing
from sif_batch.storage.lease import holding
from sif_batch.storage.store import Store

COUNT = 800
AUTO, FLAT, IVF = (IndexSettings.model_validate({"family": family}) for family in ("auto", "flat", "ivf-pq"))


def drifted(path: str) -> Row:
    """An image of another kind: noise that fills other directions."""
    random = np.random.default_rng(seed_of(path))
    return Row(path, vector=random.standard_exponential(DIMENSION) * (np.arange(DIMENSION) % 3 == 0))


def same(path: str) -> Row:
    return Row(path)


# What is measured.


@pytest.mark.parametrize("family", ["ivf-pq", "ivf-rabitq", "ivf-flat", "hnsw"])
def test_the_error_is_the_distance_to_what_the_code_tells(tmp_path: Path, family: str) -> None:
    rows = [same(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", rows, 400)
    quantizer = load_quantizer(store, quantize(store, find_live(store, entries_of(rows)), family).id)
    y = quantizer.transform.apply(np.stack([vector_of(path) for path in paths(50, COUNT)]))
    index = import_faiss().downcast_index(quantizer.index)
    coder = import_faiss().downcast_index(index.storage) if family == "hnsw" else index
    z = quantizer.reduce(y)
    codes = coder.sa_encode(z)
    lost = y - told(quantizer, coder.sa_decode(codes))
    assert np.allclose(quantizer.errors(y, z, codes), (lost**2).sum(axis=1), rtol=1e-4, atol=1e-6)
    if family != "hnsw":
        nearest = index.quantizer.search(quantizer.reduce(y), 1)[1].ravel()
        assert np.array_equal(count_cells(index, codes), np.bincount(nearest, minlength=index.nlist))


def test_imbalance_is_one_for_even_cells_and_their_number_for_one_full_cell() -> None:
    assert imbalance_of(np.array([1000, 0, 0, 0])) == 4.0
    assert imbalance_of(np.full(4, 10**6)) == pytest.approx(1, abs=1e-4)
    chance = np.random.default_rng(0).multinomial(300, np.full(100, 0.01))
    assert imbalance_of(chance) == pytest.approx(1, abs=0.1)  # faiss would say 1.33
    assert imbalance_of(np.array([1, 0])) is None


def test_new_rows_are_told_from_those_that_training_saw(tmp_path: Path) -> None:
    old, new = [same(path) for path in paths(COUNT)], [drifted(path) for path in paths(200, COUNT)]
    store = make_root(tmp_path / "root", old)
    record = quantize(store, find_live(store, entries_of(old)), "ivf-pq")
    quantizer = load_quantizer(store, record.id)

    def measured(rows: Sequence[Row], folder: str) -> dict:
        live = find_live(store, entries_of(rows))
        for part in live.used:
            quantize_part(lambda report: None, store.url, record.id, part)
        _, placed = assemble(store, live, record, tmp_path / folder)
        found = measure_drift(quantizer, placed.assembled, placed.placement.hashes)
        assert found is not None
        return found

    still = measured(old, "still")
    assert still["new"] == 0 and still["sampled"] == record.training_rows and still["ratio"] is None
    assert still["error"]["trained"] == pytest.approx(float(errors(quantizer, quantizer.asked).mean()), rel=1e-4)
    assert why_drifted(still) is None
    write_parts(store, new, 70)
    moved = measured([*old, *new], "moved")
    hashes = find_live(store, entries_of(new)).table["hash"].to_numpy()
    among = hashes <= record.seen_to
    assert moved["new"] == among.sum() and moved["sampled"] == record.training_rows + among.sum()
    y = quantizer.transform.apply(np.stack([r.vector for r in new]).astype(np.float16))
    keyed = dict(zip([f"photos/{row.path}" for row in new], errors(quantizer, y), strict=True))
    wanted = [keyed[key] for key in find_live(store, entries_of(new)).table["key"].to_pylist()]
    assert moved["error"]["new"] == pytest.approx(np.mean(np.array(wanted)[among]), rel=1e-4)
    assert moved["ratio"] > moved["at_least"] > MAX_RATIO
    assert "new images" in (why_drifted(moved) or "")


def told(quantizer: Quantizer, z: np.ndarray) -> np.ndarray:
    """The compared vectors, (n, d), that decoded codes, (n, reduced), tell of."""
    transform, coded = quantizer.transform, quantizer.spec.coded
    return z.astype(np.float64) @ transform.components[:, coded].T + transform.mean


def errors(quantizer: Quantizer, y: np.ndarray) -> np.ndarray:
    """Squared distances between compared vectors and what their codes tell."""
    index = quantizer.index
    return ((y - told(quantizer, index.sa_decode(index.sa_encode(quantizer.reduce(y))))) ** 2).sum(axis=1)


def test_few_new_rows_or_an_unsure_ratio_train_nothing_and_uneven_cells_do() -> None:
    calm = {"sampled": 1000, "new": 500, "ratio": 1.2, "at_least": 1.1, "imbalance": {"trained": 1.2, "now": 1.3}}
    assert why_drifted(calm) and why_drifted(None) is None
    assert why_drifted(calm | {"new": 40}) is None
    assert why_drifted(calm | {"at_least": 1.04}) is None
    uneven = {"trained": 1.2, "now": 1.2 * MAX_IMBALANCE + 0.1}
    assert "uneven" in (why_drifted(calm | {"new": 0, "at_least": None, "imbalance": uneven}) or "")
    assert why_drifted(calm | {"new": 0, "at_least": None, "imbalance": {"trained": None, "now": None}}) is None


def test_a_quantizer_is_outgrown_when_the_images_double_or_another_kind_is_for_so_many() -> None:
    assert not why_outgrown(record_of(), AUTO, 39_999) and not why_outgrown(record_of(), AUTO, 8_000)
    assert "there are 40,000" in (why_outgrown(record_of(), AUTO, 40_000) or "")
    assert "flat" in (why_outgrown(record_of(), AUTO, 7_999) or "")
    assert not why_outgrown(record_of(), IVF, 100)


def test_a_quantizer_is_unfit_for_another_encoder_or_kind_whatever_the_size() -> None:
    assert not why_unfit(record_of(), AUTO, ENCODER)
    older = record_of()
    older = older.model_copy(update={"spec": older.spec.model_copy(update={"pieces": 0})})
    assert record_of().spec.pieces and not why_unfit(older, AUTO, ENCODER)
    assert "flat" in (why_unfit(record_of(), FLAT, ENCODER) or "")
    assert "encoder" in (why_unfit(record_of(), AUTO, "another") or "")
    assert "kind" in (why_unfit(record_of(), AUTO.model_copy(update={"metric": "euclidean"}), ENCODER) or "")


# What a night does about it.


def night(store: Store, rows: Sequence[Row], retrain: str = "auto", **index: object) -> Indexed:
    """The second half of a run, of these images, whose parts stand."""
    settings = RunSettings.model_validate({"sources": (), "root": store.url, "workers": 1, "retrain": retrain})
    record = RootRecord(
        sources=(Source(name="photos", url="/photos"),),
        encoder=ENCODER,
        index=IndexSettings.model_validate({"family": "ivf-pq", "recall": 0.8} | index),
    )
    listing = Listing(entries_of(rows))
    embedded = ledger_of(store, record, listing, listing.save(store), settings, Quiet())
    with holding(store, "test", print) as lease:
        return index_collection(store, lease, record, embedded, settings, Quiet())


def test_nights_train_when_the_images_drift_or_double_and_not_before(tmp_path: Path) -> None:
    old = [same(path) for path in paths(COUNT)]
    more, strange = [same(path) for path in paths(150, COUNT)], [drifted(path) for path in paths(150, 2 * COUNT)]
    store = make_root(tmp_path / "root", old, 400)
    first = night(store, old)
    assert first.outcome == "published" and first.training and "no release" in first.training["why"]
    assert first.training["seconds"]["train"] > 0
    named = manifest_of(store, first.candidate.release)["quantizer"]["id"]

    write_parts(store, more, 100)
    calm = night(store, [*old, *more])
    assert calm.outcome == "published" and calm.training is None
    drift = calm.candidate.manifest["drift"]
    assert drift["new"] > 100 and 0.9 < drift["ratio"] < 1.1

    write_parts(store, strange, 100)
    everything = [*old, *more, *strange]
    never = night(store, everything, "never")
    assert never.training is None and never.candidate.manifest["quantizer"]["id"] == named
    assert why_drifted(never.candidate.manifest["drift"])
    moved = night(store, everything)
    assert moved.outcome == "published" and moved.training and "new images" in moved.training["why"]
    manifest = manifest_of(store, moved.candidate.release)
    assert manifest["quantizer"]["id"] == moved.training["quantizer"] != named
    assert manifest["drift"]["new"] == 0 and manifest["drift"]["trained_for_rows"] == len(everything)
    top = read_top(store)
    assert top and top["note"] == f"trained: {moved.training['why']}"
    assert night(store, everything).outcome == "unchanged"

    # The same images under the same quantizer are the same release, whatever the nights before.
    other = make_root(tmp_path / "other", everything, 400)
    assert night(other, everything).candidate.release == moved.candidate.release


def test_now_trains_always_and_never_not_even_for_twice_the_images(tmp_path: Path) -> None:
    rows = [same(path) for path in paths(900)]
    store = make_root(tmp_path / "root", rows, 400)
    first = night(store, rows[:400])
    kept = night(store, rows, "never")
    assert kept.outcome == "published" and kept.training is None
    assert kept.candidate.manifest["quantizer"] == first.candidate.manifest["quantizer"]
    with pytest.raises(SifBatchError, match="--retrain never, and the quantizer .* another kind"):
        night(store, rows, "never", metric="euclidean")
    doubled = night(store, rows)
    assert doubled.training and "trained for 400 images, there are 900" in doubled.training["why"]
    again = night(store, rows, "now")
    assert again.outcome == "unchanged" and again.training and again.training["why"] == "--retrain now"
    fewer = night(store, rows[:800], "now")
    assert fewer.outcome == "published"
    assert fewer.candidate.manifest["quantizer"]["id"] != doubled.candidate.manifest["quantizer"]["id"]

"""Marks and expansion on real photos: a person who knows the labels marks hits, and the answers get better."""

import json
import subprocess
import sys

import numpy as np
import pytest
from paths import PHOTOS, REPOSITORY

from benchmarks.feedback import Collection, expansion, rocchio, simulate
from sif_batch.encoders.installed import built_in_spec
from sif_batch.encoders.networks import BUILT_IN
from sif_batch.encoders.runtime import Encoder
from sif_batch.evaluation.metrics import plan_trials
from sif_batch.evaluation.relevance import by_labels
from sif_batch.query import feedback

EACH = 10  # photos of a folder


@pytest.fixture(scope="module")
def collection() -> Collection:
    encoder = Encoder(built_in_spec("efficientnet_lite0"), BUILT_IN["efficientnet_lite0"] / "model.onnx")
    photos = [photo for folder in sorted(PHOTOS.iterdir()) for photo in sorted(folder.glob("*.jpg"))[:EACH]]
    x = encoder.embed(np.stack([encoder.read_image(photo.read_bytes())[0] for photo in photos])).astype(np.float64)
    relevance = by_labels(photo.parent.name for photo in photos)
    (trial,) = plan_trials(relevance, len(photos), 3, only_first=True)
    return Collection(x / np.linalg.norm(x, axis=1, keepdims=True), relevance, trial)


def test_no_round_of_marks_makes_answers_worse(collection: Collection) -> None:
    found = simulate(collection, rocchio(feedback.RIGHT, feedback.WRONG), rounds=3, marks=2)
    for name in ("map", "map_unseen"):
        before, *after = found[name]
        assert len(after) == 3 and min(after) > before + 0.01, found
    assert found["map"] == sorted(found["map"])  # of what a person sees no round is worse than the one before
    nothing = simulate(collection, lambda query, right, wrong: query, rounds=3, marks=2)
    assert len(set(nothing["map_unseen"])) == 1  # what is never marked does not move by itself


def test_expansion_does_not_make_answers_worse(collection: Collection) -> None:
    assert expansion(collection, 3, feedback.ALPHA) > expansion(collection, 0, feedback.ALPHA)


def test_marks_of_nothing_right_still_help(collection: Collection) -> None:
    """Whoever finds only wrong hits is led away from them, not astray."""
    found = []
    for query in collection.trial.queries.tolist():
        ranking = collection.ranking(collection.rows[query])
        wrong = ranking[~collection.relevance.hits(query, ranking)][:3]
        moved = feedback.learn(collection.rows[query], collection.rows[:0], collection.rows[wrong], True)
        rankings = [collection.ranking(q) for q in (collection.rows[query], moved)]
        found.append([collection.precision(query, ranking, wrong) for ranking in rankings])

    before, after = np.mean(found, axis=0)
    assert after > before - 0.005


@pytest.mark.slow
def test_the_benchmark_of_filters_runs_small() -> None:
    command = [sys.executable, "-m", "benchmarks.filters", "--rows", "3000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [figures["rows"] for figures in found.values()] == [3000, 1000, 2000, 300]
    assert all(figures["outside"] == 0 for figures in found.values())


@pytest.mark.slow
def test_the_benchmark_of_duplicates_finds_what_it_put_there() -> None:
    command = [sys.executable, "-m", "benchmarks.duplicates", "--rows", "3000", "--dimension", "64", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["found"] == {"exact": 1.0, "near": 1.0} and report["exact"] >= 27

import json
import os
import subprocess
import sys

import pytest
from paths import REPOSITORY

from benchmarks.index.goals import goals
from benchmarks.index.peer import recall
from benchmarks.synthetic_roots import clustered, spread


def run(*arguments: object) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.index", "--json", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_every_case_runs_small() -> None:
    report = run("--rows", 5000, "--no-peer")
    assert {"peer", "millions", "hundred", "night", "photos", "families", "build_s", "recall_at_10"} <= report.keys()
    named = [what for what, *_ in goals(report)]
    assert len(named) == len(set(named)) >= 15
    assert report["recall_at_10"]["sif-batch"] > 0.95  # type: ignore[index]
    assert report["night"]["outcome"] == "published"  # type: ignore[index]
    assert report["millions"]["rows"]["segments"] == 1  # type: ignore[index]


def test_goals_are_told_reached_or_missed() -> None:
    peer = {
        "build_s": {"sif-batch": 10, "autofaiss": 400},
        "build_ratio": 40,
        "quickest": {"recall": 0.98, "query_ms": 0.2},
        "bytes_per_row": {"sif-batch": 561},
    }
    found = {what: reached for what, _, _, reached in goals({"peer": peer})}
    assert found["build, times faster than autofaiss"] is False and found["bytes a row"] is False
    assert found["milliseconds a query there"] and found["recall@10, one query, one thread"]


def test_made_up_collections_are_what_they_say() -> None:
    part, row, hashes = spread(10_000, 7)
    assert (hashes[1:] >= hashes[:-1]).all() and set(part.tolist()) == set(range(7))
    for number in range(7):
        assert row[part == number].tolist() == list(range(int((part == number).sum())))
    assert clustered(3, 5, 16).tobytes() == clustered(3, 5, 16).tobytes() != clustered(4, 5, 16).tobytes()


def test_recall_counts_what_is_as_similar_as_the_tenth() -> None:
    import numpy as np

    least = np.array([0.5, 0.9])
    assert recall(least, np.array([[0.6, 0.5], [0.95, 0.8]])) == 0.75

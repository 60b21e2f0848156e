"""Real images, mutated: an image or a reason, in a process that lives on and does not grow."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Finished
from hypothesis import given
from hypothesis import strategies as st
from paths import REPOSITORY
from synthetic import checked

from benchmarks.fuzz import MOST_MB, fuzz, mutate, seeds, try_all
from sif_batch.failures import PERMANENT
from sif_batch.machine.child import Child

MUTANTS = 1500


@checked
@given(st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=200))
def test_a_mutant_is_decided_by_its_seed(seed: int, data: bytes) -> None:
    assert mutate(data, seed) == mutate(data, seed)


def test_every_seed_is_an_image() -> None:
    found = try_all(list(seeds().values()))
    assert found.kinds == {"image": len(seeds())}, found


@pytest.mark.filterwarnings("ignore")
def test_mutated_images_end_as_an_image_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    child = Child()
    whole = list(seeds().values())
    mutants = [mutate(whole[number % len(whole)], number) for number in range(MUTANTS)]
    try:
        first = child.call("benchmarks.fuzz:try_in_child", stall_s=60, datas=mutants[:500])
        again = child.call("benchmarks.fuzz:try_in_child", stall_s=60, datas=mutants)
    finally:
        child.close()
    assert sum(again.kinds.values()) == MUTANTS
    assert set(again.kinds) <= {"image", *PERMANENT} and again.kinds["image"] > 50 and len(again.kinds) >= 4
    assert again.peak_mb < first.peak_mb + 150 and again.peak_mb < MOST_MB


def test_a_run_accounts_for_every_mutant(sif_batch: Callable[..., Finished], tmp_path: Path) -> None:
    whole = list(seeds().values())
    (tmp_path / "mutants").mkdir()
    for number in range(150):
        (tmp_path / "mutants" / f"{number}.jpg").write_bytes(mutate(whole[number % len(whole)], 10**6 + number))
    run = sif_batch("run", "mutants", "root", "--max-failures", 1, "--shard-images", 40, "--json").json
    assert run["listed"] == run["embedded"] + run["failed"] == 150 and run["in_index"] == run["embedded"] > 10
    failures = sif_batch("status", "root", "--failures", "--json").json["failures"]
    assert len({failure["key"] for failure in failures}) == len(failures) == run["failed"]
    assert {failure["kind"] for failure in failures} <= set(PERMANENT) and all(failure["error"] for failure in failures)


def test_what_takes_too_much_memory_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr("benchmarks.fuzz.MOST_MB", 1)
    monkeypatch.setattr("benchmarks.fuzz.BATCH", 2)
    found = fuzz(1e-9, 5, tmp_path)
    assert found["mutants"] == len(found["bad"]) == 2 and "MB resident" in found["bad"][0]["reason"]
    whole = list(seeds().values())
    assert Path(found["bad"][0]["file"]).read_bytes() == mutate(whole[5 % len(whole)], 5)


def test_the_benchmark_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--minutes", "0", "--json", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mutants"] == sum(found["kinds"].values()) > 0 and not found["bad"]

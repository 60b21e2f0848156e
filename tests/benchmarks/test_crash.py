import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Finished, run_command
from paths import PHOTOS, REPOSITORY

from benchmarks.crash.faults import IDENTICAL, find_fault
from sif_batch.storage.temporary_files import HOST, TEMPORARY


def run_crash(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.crash", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_killed_runs_end_in_the_same_release(photos: Callable[[int], Path]) -> None:
    found = run_crash("--runs", 2, "--child-runs", 1, "--at-once", 2, "--family", "flat", "--images", photos(40))
    assert (found["runs"], found["identical"]) == (5, 5)
    assert [trial["killed"] for trial in found["trials"]] == ["group", "group", "child", "nothing", "nothing"]
    assert sum(trial["asked"] for trial in found["trials"]) > 0
    assert {trial["outcome"] for trial in found["trials"]} == {"identical"}


@pytest.mark.slow
def test_killed_runs_end_in_the_same_release_at_full_size() -> None:
    found = run_crash()
    assert (found["runs"], found["identical"]) == (19, 19)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A ROOT and its release."""
    folder = tmp_path_factory.mktemp("crash")
    done = run_command(folder, "run", PHOTOS / "pizza", folder / "root", "--json")
    assert done.code == 0, done.err
    return folder / "root", done.json["release"]


@pytest.fixture
def published(untouched: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """A copy of that ROOT, and its release."""
    root, release = untouched
    return shutil.copytree(root, tmp_path / "root"), release


def test_what_a_killed_run_left_is_mended_by_the_next(
    published: tuple[Path, str], sif_batch: Callable[..., Finished]
) -> None:
    root, release = published
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    with subprocess.Popen(["true"]) as ended, subprocess.Popen(["true"]) as zombie:
        ended.wait(900)
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # ended too, and its parent has not asked yet
        for pid in (ended.pid, zombie.pid):
            for folder in folders:
                if "releases" not in folder.relative_to(root).parts[:-1]:  # a release is renamed into place, whole
                    (folder / f"{TEMPORARY}{HOST}-{pid}-0123456789ab").write_bytes(b"half")
            (root / "releases" / f"{TEMPORARY}{HOST}-{pid}-ba9876543210" / "release").mkdir(parents=True)
        (root / "LATEST").unlink()  # killed between the entry of history and its cache
        again = sif_batch("run", root, "--json")
        assert (again.code, again.json["outcome"], again.json["release"]) == (0, "unchanged", release)
        assert find_fault(root, again.json, release) == IDENTICAL


# Python imports this by itself: the first time that a process is about to put a file in its place, it is killed.
KILL_ONCE = """
import os, pathlib, signal, sys

def watch(event, arguments):
    if event == "os.link":
        folder = pathlib.Path(arguments[1]).parents[1]
        flag = pathlib.Path(__file__).with_name(folder.name)
        if folder.name in ("parts", "codes") and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
"""


def test_a_child_killed_while_it_writes_leaves_nothing(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(KILL_ONCE)
    root = tmp_path / "root"
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "run", str(photos(3)), str(root), "--json"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(modules), str(REPOSITORY)])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in modules.glob("*s")} == {"parts", "codes"}
    result = json.loads(done.stdout)
    assert (result["outcome"], result["embedded"]) == ("published", 3)
    assert find_fault(root, result, result["release"]) == IDENTICAL


def test_faults_are_found(published: tuple[Path, str]) -> None:
    root, release = published
    result = {"release": release}
    assert find_fault(root, result, release) == IDENTICAL
    assert find_fault(root, result, "0" * 64) == f"another release: {release[:12]}"
    (root / "codes" / f"{TEMPORARY}x").write_bytes(b"")
    assert find_fault(root, result, release) == f"temporary files are left: codes/{TEMPORARY}x"
    (root / "codes" / f"{TEMPORARY}x").unlink()
    (root / "releases" / release / "images.arrow").unlink()
    assert find_fault(root, result, release) == f"damaged: releases/{release}/images.arrow"
    (root / "LATEST").write_text("another")
    assert find_fault(root, result, release) == "LATEST is another"

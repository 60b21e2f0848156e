"""Releases by hand: rollback, publish, holds; and two writers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from commands import Finished
from paths import REPOSITORY

from sif_batch.query.index import Index

Run = Callable[..., Finished]
Photos = Callable[[int], Path]


def test_a_rollback_holds_publishing_until_publish(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(6), tmp_path / "root"
    first = sif_batch("run", source, root, "--json").json["release"]
    assert "no release before" in sif_batch("rollback", root).err
    assert "nothing is held" in sif_batch("publish", root).err
    photos(8)
    bad = sif_batch("run", root, "--json").json["release"]
    reader = Index.open(root)

    back = sif_batch("rollback", root, "--json").json
    assert (back["release"], back["n"], back["action"], back["held"]) == (first, 3, "rollback", True)
    assert (root / "LATEST").read_text().strip() == first
    assert reader.release == bad and len(reader.search(key="photos/Leopards/image_0002.jpg", k=9)) == 7
    assert reader.refresh().release == first and reader.refresh().refresh() is not reader

    night = sif_batch("run", root, "--json")
    assert night.code == 0 and night.json["outcome"] == "held" and night.json["release"] == bad
    assert Index.open(root).release == first
    shown = sif_batch("run", root)
    assert "after a rollback" in shown.out and "publishing is held" in sif_batch("releases", root).out

    done = sif_batch("publish", root, "--json").json
    assert (done["release"], done["held"], done["gate"]) == (bad, False, "passed")
    assert sif_batch("run", root, "--json").json["outcome"] == "unchanged"
    assert sif_batch("rollback", root, 1, "--json").json["release"] == first
    assert sif_batch("publish", root, bad[:10], "--json").json["release"] == bad
    listed = sif_batch("releases", root, "--json").json["releases"]
    assert [(r["id"], r["action"]) for r in listed] == [
        (first, "publish"),
        (bad, "publish"),
        (first, "rollback"),
        (bad, "publish"),
        (first, "rollback"),
        (bad, "publish"),
    ]
    assert "are meant by that" in sif_batch("rollback", root, "zzz").err
    with open(root / "releases" / first / "images.arrow", "ab") as file:
        file.write(b"x")
    damaged = sif_batch("rollback", root)
    assert damaged.code == 1 and "images.arrow: altered" in damaged.err
    assert Index.open(root).release == bad


def test_a_refused_candidate_can_be_published_by_hand(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(6), tmp_path / "root"
    sif_batch("run", source, root)
    (source / "broken.jpg").write_bytes(b"no image")
    refused = sif_batch("run", root, "--json").json
    assert refused["outcome"] == "refused"
    assert "nothing is held" in sif_batch("publish", root).err
    done = sif_batch("publish", root, refused["release"], "--json").json
    assert (done["release"], done["gate"]) == (refused["release"], "skipped")
    assert sif_batch("run", root, "--json", "--max-failures", 0.5).json["outcome"] == "unchanged"


def test_the_two_halves_make_what_run_makes(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(6), tmp_path / "root"
    whole = sif_batch("run", source, tmp_path / "other", "--json").json["release"]
    assert "is not a ROOT" in sif_batch("index", root).err
    half = sif_batch("embed", source, root, "--json").json
    assert (half["outcome"], half["embedded"], half["release"]) == ("embedded", 6, None)
    assert "sif-batch index" in sif_batch("embed", root).out
    done = sif_batch("index", root, "--json").json
    assert (done["outcome"], done["release"], done["unchanged"]) == ("published", whole, 6)
    assert sif_batch("index", source, root).code == 2


@contextmanager
def slow_run(root: Path, *arguments: object) -> Iterator[subprocess.Popen]:
    """A run that has taken the lease and waits for an image, a pipe that nobody writes to."""
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "run", *map(str, arguments), str(root)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True
    )
    try:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("embedding on"):
                break
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(900)


def test_a_second_run_says_who_holds_root(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(40), tmp_path / "root"
    with slow_run(root, source, "--workers", 1) as first:
        os.killpg(first.pid, signal.SIGSTOP)
        for command in (("run",), ("rollback",), ("publish",), ("index",)):
            second = sif_batch(*command, root, "--json")
            assert second.code == 4, second.err
            assert f"process {first.pid}" in second.json["error"] and "since 20" in second.json["error"]
        assert sif_batch("status", root).code == 0
    again = sif_batch("run", root, "--json")
    assert again.code == 0 and "is taken over" in again.err


def test_sigterm_gives_the_lease_back(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(40), tmp_path / "root"
    with slow_run(root, source, "--workers", 1) as first:
        first.send_signal(signal.SIGTERM)
        assert first.wait(900) == 143
    assert json.loads((root / "lease.json").read_bytes())["holder"] is None
    again = sif_batch("run", root, "--json")
    assert again.code == 0 and "is taken over" not in again.err


@pytest.mark.parametrize("command", ["run", "rollback", "publish", "releases"])
def test_a_newer_layout_is_refused_by_all(sif_batch: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "root.json").write_text('{"layout": 99}')
    done = sif_batch(command, tmp_path)
    assert done.code == 1 and "layout 99" in done.err and "nothing was changed" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["root.json"]

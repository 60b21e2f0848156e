"""Preflight: what a dry run foretells, against what the run then takes; what cannot fit is said before."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pyarrow as pa
import pytest
from commands import Finished
from paths import PHOTOS
from schemas import schema

from sif_batch.config import IndexSettings, Source
from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer_spec import choose_spec
from sif_batch.jobs.nightly.capacity import find_problems, fit_task, roughly_count
from sif_batch.jobs.nightly.forecast import (
    MB,
    Past,
    Sample,
    Task,
    foresee,
    lane_bytes,
    lanes_within,
    past_of,
    worker_bytes,
)
from sif_batch.jobs.nightly.timed_sample import count_images
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.plan import DEFAULT_LIMITS, OPEN, SPAN_SCHEMA
from sif_batch.machine.devices import Lane
from sif_batch.machine.memory import available_bytes, parse_size, peak_bytes, resident_bytes
from sif_batch.storage.store import Store

Run = Callable[..., Finished]
SPEC = choose_spec(IndexSettings(), "ivf-pq", "e", 1280, 20_000)
TASK = Task(10_000, 1000, 20_000, 10_000, 0, SPEC, 10 * MB, True, [2, 2], 4, False)


def settings(**changes: object) -> RunSettings:
    return RunSettings.model_validate({"sources": (), "root": "/nowhere", "workers": 4} | changes)


def test_a_dry_run_writes_nothing_and_foretells_what_the_run_then_takes(
    sif_batch: Run, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    source, root = photos(24), tmp_path / "root"
    (source / "no.txt").write_text("no image")
    limits = ("--workers", 16, "--max-memory", "1G", "--json")
    foretold = sif_batch("run", source, root, "--dry-run", *limits).json
    assert not root.exists() and foretold["outcome"] == "foretold" and not foretold["problems"]
    jsonschema.validate(foretold, schema("dry-run-output"))
    todo, sample, forecast = foretold["to_do"], foretold["sample"], foretold["forecast"]
    assert (foretold["listed"], foretold["ignored"], foretold["standing"]) == (24, 1, 0)
    size = sum(file.stat().st_size for file in source.rglob("*.jpg"))
    assert (todo["entries"], todo["images"], todo["counted"], todo["bytes"]) == (24, 24, True, size)
    assert (sample["images"], sample["failed"]) == (24, 0) and sample["images_per_s"] > 0
    assert forecast["seconds"]["total"] >= forecast["seconds"]["embed"] > 0

    night = sif_batch("run", source, root, *limits).json
    assert night["embedded"] == 24 and foretold["index"]["shape"] == night["index"]["shape"]
    assert 1 <= night["embedding"]["threads"] == todo["threads"] < 16
    for folder in ("parts", "codes", "releases", "encoders"):
        taken = sum(file.stat().st_size for file in (root / folder).rglob("*") if file.is_file())
        name = {"releases": "release", "encoders": "encoder"}.get(folder, folder)
        assert forecast["disk"][name] == pytest.approx(taken, rel=0.25), folder
    taken = night["memory"]["main"] + sum(night["memory"]["workers"])
    assert forecast["memory"]["total"] == pytest.approx(taken, rel=0.25) and taken <= 2**30

    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    idle = sif_batch("run", root, "--dry-run", "--json").json
    assert idle["to_do"]["images"] == 0 and idle["sample"] is None and idle["forecast"]["disk"]["total"] == 0
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before


def test_too_little_memory_is_said_before_anything_is_embedded(
    sif_batch: Run, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    done = sif_batch("run", photos(6), tmp_path / "root", "--max-memory", "300M")
    assert done.code == 1 and "--max-memory 300 MB: this run needs about" in done.err and "raise it" in done.err
    assert not list(tmp_path.glob("root/parts/*"))


def test_what_cannot_fit_is_told_with_a_remedy(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    forecast = foresee(TASK, None, Past(), 1.0)
    assert not find_problems(store, forecast, settings())
    (disk,) = find_problems(store, forecast | {"disk": {"total": 2**60}}, settings())
    assert str(tmp_path) in disk[0] and "disk are needed" in disk[0] and "gc" in disk[1]
    (memory,) = find_problems(store, forecast | {"memory": {"total": 2**60}}, settings())
    assert "memory are needed" in memory[0] and "--max-memory" in memory[1]


def test_processes_and_threads_shrink_to_what_memory_has_room_for() -> None:
    need = [lane_bytes(TASK, threads) for threads in (1, 2, 4)]
    assert lanes_within(2 * need[2], TASK, [4, 4]) == [4, 4]
    assert lanes_within(2 * need[2] - 1, TASK, [4, 4]) == [4]
    assert lanes_within(need[1], TASK, [4, 4]) == [2]
    assert lanes_within(need[0] - 1, TASK, [4, 4]) == []
    lanes = [Lane("cpu", 2), Lane("cpu", 2)]
    main = foresee(TASK, None, Past(), 0)["memory"]["main"]
    said: list[str] = []
    task, fitted = fit_task(TASK, Past(), lanes, settings(max_memory=main + need[1]), said.append)
    assert task.lanes == [2] and fitted == [Lane("cpu", 2, need[1])] and "1 of 2 worker processes" in said[0]
    assert foresee(task, None, Past(), 0)["memory"]["total"] <= main + need[1] + 2 * worker_bytes(0, 1)
    assert fit_task(TASK, Past(), lanes, settings(), said.append) == (TASK, lanes)
    with pytest.raises(SifBatchError, match="at least"):
        fit_task(TASK, Past(), lanes, settings(max_memory=main), said.append)


def test_a_forecast_grows_with_what_there_is_to_do() -> None:
    sample = Sample(100, 0, 2, 1.0, 0.5, 300 * MB, 290_000)
    found = foresee(TASK, sample, Past(), 3.0)
    assert found["seconds"]["embed"] == pytest.approx(1.5 + 10_000 * 0.01 * 2 / 4)  # of two threads, on four
    assert found["disk"]["parts"] == 10_000 * 2900
    assert sum(v for k, v in found["seconds"].items() if k != "total") == pytest.approx(found["seconds"]["total"])
    trained = foresee(Task(**{**TASK.__dict__, "trained": 16_384, "quantized": 20_000}), sample, Past(), 3.0)
    assert (
        trained["seconds"]["index"] > found["seconds"]["index"]
        and trained["disk"]["codes"] == 2 * found["disk"]["codes"]
    )
    nothing = Task(**{**TASK.__dict__, "images": 0, "quantized": 0, "lanes": [], "quantizers": 0})
    assert foresee(nothing, None, Past(), 3.0)["seconds"]["total"] == pytest.approx(4.3)


def test_past_runs_tell_what_no_sample_does() -> None:
    embedding = {"images_per_s": 50.0, "threads": 4}
    steps = {"assemble": 1.0, "measure": 2.0, "seal": 1.0}
    memory = {"main": 5 * MB, "workers": [7 * MB, 6 * MB]}
    night = {"encoder": "e", "embedding": embedding, "memory": memory, "in_index": 1000, "index": {"seconds": steps}}
    runs = [{"result": {"outcome": "error"}}, {"result": night}]
    assert past_of(runs, "e", 4) == Past(0.02, 0.004, 1000, 5 * MB, 7 * MB)
    assert past_of(runs, "another", 4) == past_of(runs, "e", 2) == Past(None, 0.004, 1000, 5 * MB, None)
    assert past_of([], "e", 4) == Past()


def test_images_in_containers_are_counted_or_estimated_by_their_first_members(tmp_path: Path) -> None:
    files = sorted(PHOTOS.rglob("*.jpg"))
    for name, times in (("small", 1), ("large", 4)):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for n, file in enumerate(files[:40] * times):
                tar.add(file, f"{n:04d}.jpg")

    def counted(name: str) -> tuple[int, bool]:
        size = (tmp_path / f"{name}.tar").stat().st_size
        version = f"{size}-{(tmp_path / f'{name}.tar').stat().st_mtime_ns}"
        span = {"source": "s", "path": f"{name}.tar", "size": size, "version": version, "first": 0, "last": OPEN}
        span |= {"end": False, "attempt": 1, "duplicate": False}
        todo = pa.Table.from_pylist([span], schema=SPAN_SCHEMA)
        assert roughly_count(todo) >= 1
        return count_images(todo, {"s": Source(name="s", url=f"{tmp_path}/*.tar")}, DEFAULT_LIMITS)

    assert counted("small") == (40, True)
    images, exact = counted("large")
    assert not exact and images == pytest.approx(160, rel=0.15)


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size(text) for text in ("1", "2k", "3 MB", "1.5G", "1GiB")] == [1, 2048, 3 * MB, 3 * 2**29, 2**30]
    for text in ("", "G", "-1", "0", "4 apples"):
        with pytest.raises(SifBatchError, match="no size"):
            parse_size(text)
    assert peak_bytes() >= resident_bytes() > MB and (available_bytes() or 0) > MB
    assert peak_bytes(2**22 + os.getpid()) == 0 and json.dumps(peak_bytes())

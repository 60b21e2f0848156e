"""A disk that is full, or fails, at any write: a clear error, nothing lost, and the next run goes on."""

import errno
import functools
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pytest
import write_faults
from paths import PHOTOS, SUPPORT

from sif_batch.jobs.cli import main
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.machine.child import close_shared_children
from sif_batch.query.index import Index
from sif_batch.release.history import read_top
from sif_batch.release.write_files import write_index
from sif_batch.storage.lease import release_all
from sif_batch.storage.store import Store
from sif_batch.storage.temporary_files import TEMPORARY

install_once = functools.cache(write_faults.install)
ERRORS = (errno.ENOSPC, errno.EIO)


@dataclass
class Disk:
    """A disk that fails at one write. folder: holds the ROOT of each trial as `root`; capture: of what is printed."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def run(self, *arguments: object, failing_at: int = 0) -> tuple[int, str, bool]:
        """A command's exit code, what it printed on stderr, and whether that write came."""
        plan, count = self.folder / "plan", self.folder / "count"
        if failing_at:
            plan.write_text(f"{failing_at} {ERRORS[failing_at % 2]}")
        try:
            code = main.guarded(lambda: main.cli([*map(str, arguments)], standalone_mode=False), False)
        except SystemExit as ended:
            code = int(ended.code or 0)
        came = count.exists() and count.stat().st_size >= failing_at
        for file in (plan, count):
            file.unlink(missing_ok=True)
        release_all()  # what a lease that could not be given back is worth ends with the process: this one goes on
        return code, self.capture.readouterr().err, came


@pytest.fixture
def disk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    install_once()
    close_shared_children()  # the next one knows of the faults
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text("import write_faults\n\nwrite_faults.install()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), str(SUPPORT)]))
    monkeypatch.setenv("SIF_FAULTS", str(tmp_path))
    monkeypatch.setattr(main, "close_shared_children", lambda: None)
    yield Disk(tmp_path, capsys)
    close_shared_children()


def make_base(disk: Disk, family: str, count: int) -> tuple[Path, Path]:
    """A source after which a first night, and then some changes; and that night's ROOT."""
    source, base = disk.folder / "photos", disk.folder / "base"
    for photo in sorted(PHOTOS.rglob("*.jpg"))[:count]:
        (source / photo.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, source / photo.parent.name / photo.name)
    code, error, _ = disk.run("run", source, base, "--family", family, "--no-report", "--shard-images", 50)
    assert code == 0, error
    images = sorted(source.rglob("*.jpg"))
    images[0].unlink()
    shutil.copyfile(images[1], images[2])
    shutil.copyfile(PHOTOS / "pizza/image_0003.jpg", source / "new.jpg")
    (source / "broken.jpg").write_text("no image")
    return source, base


def top_of(root: Path) -> str:
    top = read_top(Store(str(root)))
    assert top is not None
    return str(top["release"])


def fail_at(disk: Disk, base: Path, command: list[str], writes: Iterable[int]) -> int:
    """Let each of these writes of a command fail in turn. Returns the number of the first that it has no more."""
    shutil.copytree(base, disk.root)
    assert disk.run(*command)[0] == 0
    expected, old = top_of(disk.root), top_of(base)
    for write in writes:
        shutil.rmtree(disk.root)
        shutil.copytree(base, disk.root)
        reader = Index.open(disk.root)
        code, error, came = disk.run(*command, failing_at=write)
        if not came:
            assert code == 0
            return write
        told = [line for line in error.splitlines() if line.startswith("sif-batch: ")]
        assert (code, len(told)) in ((1, 1), (0, 0)), error
        assert "defect" not in error and all("; " in line for line in told)
        assert not list(disk.root.rglob(f"{TEMPORARY}*")), (write, error)
        assert Index.open(disk.root).release in ((old, expected) if code else (expected,)), write
        assert len(reader.search(key=str(reader.column("key")[0]), k=5)) == 5
        assert verify(str(disk.root))["ok"], write
        assert disk.run(*command)[0] == 0
        assert top_of(disk.root) == expected and verify(str(disk.root))["ok"], write
    return -1


def night(root: Path) -> list[str]:
    return ["run", str(root), "--no-report", "--no-gate", "--shard-images", "50"]


def test_a_night_outlives_a_failing_disk(disk: Disk) -> None:
    _, base = make_base(disk, "flat", 12)
    fail_at(disk, base, night(disk.root), (2, 15, 31))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "images"), [("flat", 60), ("ivf-pq", 200)])
def test_a_night_outlives_a_disk_that_fails_anywhere(disk: Disk, family: str, images: int) -> None:
    _, base = make_base(disk, family, images)
    assert fail_at(disk, base, night(disk.root), range(1, 1000)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flat", "ivf-flat"])
def test_a_takedown_outlives_a_disk_that_fails_anywhere(disk: Disk, family: str) -> None:
    _, base = make_base(disk, family, 80)
    keys = Index.open(base).column("key").to_pylist()
    command = ["erase", str(disk.root), keys[0], keys[-1], "--yes"]
    assert fail_at(disk, base, command, range(1, 1000)) > 20


@pytest.mark.slow
def test_compaction_outlives_a_disk_that_fails_anywhere(disk: Disk) -> None:
    _, base = make_base(disk, "flat", 12)
    assert disk.run("run", base, "--no-report", "--no-gate")[0] == 0
    assert fail_at(disk, base, ["compact", str(disk.root), "--yes"], range(1, 1000)) > 4


def test_faiss_tells_when_the_last_bytes_of_an_index_find_no_room(tmp_path: Path) -> None:
    for rows in (3, 50_000):
        index = faiss.IndexFlatL2(8)
        index.add(np.random.default_rng(rows).random((rows, 8), np.float32))
        write_index(index, tmp_path / "ours")
        faiss.write_index(index, str(tmp_path / "theirs"))
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
        if Path("/dev/full").exists():
            with pytest.raises(OSError, match="No space left on device"):
                write_index(index, Path("/dev/full"))

"""What tests share: where data lies, small real photos, and a way to call the command line."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.progress import Reporter
from sif_batch.child import close_shared_children

REPOSITORY = Path(__file__).parents[1]
PHOTOS = REPOSITORY / "examples" / "photos"
DATA = Path(os.environ.get("SIF_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


def run_command(folder: Path, *arguments: object, timeout_s: float = 300) -> Finished:
    """Run `sif-batch` in `folder` as a user does: another process, exit code, stdout, stderr."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    env = {"SIF_BATCH_REPORT": "0"} | os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env, cwd=folder)
    return Finished(done.returncode, done.stdout, done.stderr)


class Quiet(Reporter):
    """Says nothing."""

    def say(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def children() -> Iterator[None]:
    """The children that this process shares end with the module."""
    yield
    close_shared_children()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of remote releases are made in the test's own folder."""
    monkeypatch.setenv("SIF_BATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sif_batch(tmp_path: Path) -> Callable[..., Finished]:
    """`run_command` in the test's own folder."""
    return functools.partial(run_command, tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[int], Path]:
    """A folder `photos` of the first n example photos, in their folders; called again, it is filled up."""

    def copy(count: int) -> Path:
        for photo in sorted(PHOTOS.rglob("*.jpg"))[:count]:
            target = tmp_path / "photos" / photo.relative_to(PHOTOS)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(photo, target)
        return tmp_path / "photos"

    return copy


@pytest.fixture
def test_data() -> Callable[[str], Path]:
    """A folder of SIF_TEST_DATA; the test is skipped where it is not there."""

    def folder(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"needs {name} in SIF_TEST_DATA (default ../shared/data)")
        return DATA / name

    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository's own files, times kept, for what builds or writes in it."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in listed.stdout.decode().splitlines():
        if (REPOSITORY / name).is_file():
            target = tmp_path / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
    return tmp_path / "checkout"

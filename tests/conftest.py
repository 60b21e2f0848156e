"""What tests share: where data lies, small real photos, and a way to call the command line."""

import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Finished, run_command
from paths import DATA, PHOTOS, REPOSITORY

from sif_batch.machine.child import close_shared_children


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
        target = tmp_path / "checkout" / name
        if (REPOSITORY / name).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target, follow_symlinks=False)
    return tmp_path / "checkout"

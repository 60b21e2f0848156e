"""Copies of a remote release on this machine: fetched once, by its id, whole and checked.

They lie in SIF_BATCH_CACHE (~/.cache/sif-batch), for all processes. A file appears whole under its name: several
processes may fetch it at once, and all bring the same bytes.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from sif_batch.digests import sha256_of
from sif_batch.errors import SifBatchError
from sif_batch.release.manifest import damaged
from sif_batch.storage.store import Store
from sif_batch.storage.temporary_files import temporary_name

KEEP_S = 30 * 24 * 3600  # copies that nobody opened for so long are removed


def cache_home() -> Path:
    """The folder of this user for what can be had again."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SIF_BATCH_CACHE") or Path(cache, "sif-batch"))


def copies_home() -> Path:
    """Where copies lie."""
    return cache_home() / "releases"


class Copies:
    """The copied files of one release. files: of its release.json, by name."""

    def __init__(self, store: Store, folder: str, release: str, files: dict[str, Any]):
        self._store, self._folder, self._files = store, folder, files
        self._own = copies_home() / release
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            os.utime(self._own)
            _remove_old(self._own.parent)
        except OSError as error:
            raise SifBatchError(
                f"{self._own}: the release cannot be copied there ({error.strerror or error})",
                remedy="give another folder by SIF_BATCH_CACHE, or open a local copy of the release",
            ) from error

    def path(self, name: str, again: bool = False) -> Path:
        """The local file; again: fetched anew, since what lies there was found damaged."""
        target, wanted = self._own / name, self._files[name]
        with contextlib.suppress(FileNotFoundError):
            if not again and target.stat().st_size == wanted["size"]:
                return target
        place = f"{self._folder}/{name}" if self._folder else name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(temporary_name())
        try:
            self._store.fs.get_file(self._store.path(place), str(partial))
            if sha256_of(partial) != wanted["sha256"]:
                raise damaged(self._store.path(place))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return target


def forget(release: str) -> None:
    """Remove this machine's copy of a release."""
    shutil.rmtree(copies_home() / release, ignore_errors=True)


def _remove_old(home: Path) -> None:
    for folder in home.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > KEEP_S:
                shutil.rmtree(folder, ignore_errors=True)

"""Where bytes lie: ROOT as a local directory or bucket, and files that appear whole or not at all."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from sif_batch.digests import digest
from sif_batch.errors import SifBatchError
from sif_batch.storage.bucket_filesystem import Objects
from sif_batch.storage.temporary_files import SWEEP_AFTER_S, TEMPORARY, is_abandoned, sync_folder, temporary_name
from sif_batch.storage.urls import check_text, is_local, open_filesystem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store:
    """The files under one ROOT or release, named by their path relative to it.

    `create` never replaces: of several writers of one name one wins and the others learn that they lost.
    """

    def __init__(self, url: str):
        check_text(url)
        self.fs, base = open_filesystem(url)
        self.local = is_local(self.fs)
        self.base = os.path.abspath(base) if self.local else base.rstrip("/")
        self.url = self.base if self.local else self.fs.unstrip_protocol(self.base)

    def path(self, name: str = "") -> str:
        """The file's path inside its filesystem."""
        return f"{self.base}/{name}" if name else self.base

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(self.path(name)))

    def sizes(self, folder: str) -> dict[str, int]:
        """The names in `folder` (not deeper) with their sizes in bytes, in order; without temporary files."""
        try:
            if self.local:
                sizes = {}
                with os.scandir(self.path(folder)) as found:
                    for entry in found:
                        # Another process may be done with its temporary files, or with old ones, meanwhile.
                        with contextlib.suppress(FileNotFoundError):
                            sizes[entry.name] = entry.stat().st_size
            else:
                own = self.path(folder)  # a marker that a console made for the folder itself
                infos = self.fs.ls(own, detail=True, refresh=True)
                sizes = {i["name"].rstrip("/").rsplit("/", 1)[-1]: i["size"] or 0 for i in infos if i["name"] != own}
        except FileNotFoundError:
            return {}
        return {name: sizes[name] for name in sorted(sizes) if not name.startswith(TEMPORARY)}

    def read(self, name: str) -> bytes:
        return bytes(self.fs.cat_file(self.path(name)))

    def open(self, name: str) -> Any:
        """The file for reading at random.

        A local one is Arrow's own: its threads may still read as the process ends, and one that then waits for Python
        would abort it.
        """
        return pa.OSFile(self.path(name)) if self.local else self.fs.open(self.path(name), "rb")

    def create(self, name: str, data: bytes) -> bool:
        """Make the file appear, whole; False, and nothing changed, if it already stands."""
        if not self.local:
            try:
                self.fs.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return False
            return True
        temporary = self._write_temporary(name, data)
        try:
            os.link(temporary, self.path(name))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        sync_folder(os.path.dirname(self.path(name)))
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Put the file, whole, in place of an older one."""
        if not self.local:
            self.fs.pipe_file(self.path(name), data)
            return
        temporary = self._write_temporary(name, data)
        try:
            os.replace(temporary, self.path(name))
        except OSError:
            os.unlink(temporary)
            raise
        sync_folder(os.path.dirname(self.path(name)))

    def publish(self, name: str, made: Path, replace: bool = False) -> bool:
        """As `create`, or `replace`, of a local file that `scratch` holds."""
        if not self.local:
            if replace:
                self.fs.put_file(str(made), self.path(name))
                return True
            return self.create(name, made.read_bytes())
        sync_folder(str(made))
        try:
            (os.replace if replace else os.link)(made, self.path(name))
        except FileExistsError:
            return False
        sync_folder(os.path.dirname(self.path(name)))
        return True

    def read_versioned(self, name: str) -> tuple[bytes, str]:
        """The file and its version, for `replace_if`."""
        if isinstance(self.fs, Objects):
            return self.fs.read_versioned(self.path(name))
        data = self.read(name)
        return data, digest(data)

    def replace_if(self, name: str, data: bytes, version: str) -> bool:
        """`replace` the file if it still has this version; False, and nothing changed, if not.

        Of several at once one wins: in a bucket by a conditional put, in a local folder by its lock, elsewhere only
        within this process.
        """
        if isinstance(self.fs, Objects):
            return self.fs.replace_if(self.path(name), data, version)
        with self._locked(os.path.dirname(self.path(name))):
            try:
                if self.read_versioned(name)[1] != version:
                    return False
            except FileNotFoundError:
                return False
            self.replace(name, data)
            return True

    @contextlib.contextmanager
    def _locked(self, folder: str) -> Iterator[None]:
        with _replacing:
            if not self.local:
                yield
                return
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def create_folder(self, name: str, files: Path, last: str) -> bool:
        """Publish the local folder `files` under `name`; its file `last` appears last. False if it stands."""
        if self.local:
            for file in files.rglob("*"):
                sync_folder(str(file))
            sync_folder(str(files))
            try:
                os.rename(files, self.path(name))
            except OSError:
                if self.exists(f"{name}/{last}"):
                    return False
                raise
            sync_folder(os.path.dirname(self.path(name)))
            return True
        if self.exists(f"{name}/{last}"):
            return False
        for file in sorted(f for f in files.rglob("*") if f.is_file() and f.name != last):
            self.fs.put_file(str(file), self.path(f"{name}/{file.relative_to(files).as_posix()}"))
        return self.create(f"{name}/{last}", (files / last).read_bytes())

    @contextlib.contextmanager
    def scratch(self, folder: str, elsewhere: str | None = None) -> Iterator[Path]:
        """A local folder for work in progress, gone afterwards; beside `folder` where ROOT is local, else in
        `elsewhere`."""
        if self.local:
            os.makedirs(self.path(folder), exist_ok=True)
            made = Path(self.path(folder), temporary_name())
            made.mkdir()
        else:
            if elsewhere is not None:
                os.makedirs(elsewhere, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix="sif-batch-", dir=elsewhere))
        try:
            yield made
        except OSError as error:
            if error.errno in FULL:  # which does not say where
                error.filename = error.filename or str(made)
            raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def fetch(self, name: str, into: Path) -> Path:
        """A local path that holds the file: itself where it is local, else a copy below `into`."""
        if self.local:
            return Path(self.path(name))
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            self.fs.get_file(self.path(name), str(target))
        return target

    def check_writable(self) -> None:
        """Fail now, not after hours, if nothing can be written here. Leaves nothing behind."""
        if not self.local:
            self._check_conditional()
            return
        ancestor = Path(self.base)
        while not ancestor.exists():
            ancestor = ancestor.parent
        try:
            with tempfile.TemporaryFile(dir=ancestor):
                pass
        except OSError as error:
            raise SifBatchError(
                f"{self.url}: cannot be written ({error.strerror or error})",
                remedy="give a ROOT in a folder that this user may write",
            ) from error

    def _check_conditional(self) -> None:
        """Refuse a store that takes a conditional put for a plain one: two runs at once would overwrite each other."""
        probe = temporary_name()
        try:
            created = [self.create(probe, data) for data in (b"1", b"2")]
        except OSError as error:
            raise SifBatchError(
                f"{self.url}: cannot be written ({error.strerror or error})",
                remedy="see to the store and to the rights there",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                self.fs.rm_file(self.path(probe))
        if created != [True, False]:
            raise SifBatchError(
                f"{self.url}: this store does not keep to conditional puts (If-None-Match)",
                remedy="use one that does for ROOT",
            )

    def sweep(self, after_s: float = SWEEP_AFTER_S) -> None:
        """Remove temporary files and folders that a killed process left; of other machines after so many seconds."""
        if not self.local:
            return
        for folder, folders, files in os.walk(self.base):
            for name in [name for name in (*folders, *files) if name.startswith(TEMPORARY)]:
                found = Path(folder, name)
                if is_abandoned(found, after_s):
                    shutil.rmtree(found, ignore_errors=True) if found.is_dir() else found.unlink(missing_ok=True)
            folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]

    def _write_temporary(self, name: str, data: bytes) -> str:
        folder = os.path.dirname(self.path(name))
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, temporary_name())
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                error.filename = error.filename or self.path(name)  # a full disk does not say where
            raise
        return temporary


_replacing = threading.Lock()


def remove(store: Store, name: str, first: str = "") -> None:
    """Remove a file or folder of ROOT. A folder is gone at once, or after its file `first` no longer whole."""
    if not store.local:
        for path in ([f"{name}/{first}"] if first else []) + [name]:
            with contextlib.suppress(FileNotFoundError):
                store.fs.rm(store.path(path), recursive=path == name)
        return
    path = store.path(name)
    if not os.path.isdir(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    aside = os.path.join(os.path.dirname(path), temporary_name())
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)  # what is left, a later run sweeps


def size_of(store: Store, name: str) -> int:
    """Bytes of a file or of all files in a folder."""
    found = store.fs.find(store.path(name), detail=True)
    return sum(info["size"] or 0 for info in found.values())

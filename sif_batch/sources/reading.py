"""Checked reads: the bytes that were listed, or the reason why not."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError, telling_io
from sif_batch.sources.archives import read_archive
from sif_batch.sources.containers import Pieces, container_kind
from sif_batch.sources.files import entry_rule, local_version, open_source, remote_version
from sif_batch.sources.names import local_of
from sif_batch.sources.parquet import read_table
from sif_batch.storage.bucket_filesystem import Objects
from sif_batch.storage.urls import is_local

REMOTE_BLOCK = 8 * 2**20


def read_file(source: Source, path: str, size: int, version: str, max_bytes: int) -> bytes:
    """The entry's bytes, checked against what was listed. Raises ImageError."""
    if size > max_bytes:
        raise ImageError("too_large", f"{size} bytes; the limit is {max_bytes}")
    fs, base = open_source(source)
    with _telling_store(source):
        if is_local(fs):
            with open(local_of(f"{base}/{path}"), "rb") as file:
                data = file.read(size + 1)  # asked for 512 MB, Python takes them first
                _check_version(local_version(os.fstat(file.fileno())), version)
        elif isinstance(fs, Objects):
            data, info = fs.read(f"{base}/{path}")
            _check_version(remote_version(info), version)
        else:
            data = bytes(fs.cat_file(f"{base}/{path}"))
            _check_version(remote_version(fs.info(f"{base}/{path}")), version)
    if len(data) != size:
        raise ImageError("short_read", f"{len(data)} bytes of {size}")
    return data


def read_container(
    source: Source, path: str, version: str, first: int, max_bytes: int, on_read: Callable[[], None] = lambda: None
) -> Pieces:
    """The container's images from ordinal `first` on; each read of its bytes calls `on_read`.

    Raises ImageError, after the last that can be read.
    """
    with _telling_store(source), _open(source, path, version, on_read) as file:
        if container_kind(path) == "parquet":
            yield from read_table(file, first, source.image_column, source.keep, max_bytes)
        else:
            yield from read_archive(file, first, entry_rule(source), max_bytes)


def check_unchanged(source: Source, path: str, version: str) -> None:
    """Raise ImageError `changed` if the entry is not what was listed any more."""
    fs, base = open_source(source)
    with _telling_store(source):
        if is_local(fs):
            _check_version(local_version(os.stat(local_of(f"{base}/{path}"))), version)
        else:
            fs.invalidate_cache()
            _check_version(remote_version(fs.info(f"{base}/{path}")), version)


@contextmanager
def _telling_store(source: Source) -> Iterator[None]:
    """`telling_io`; a source that is away altogether is no image's fault and raises SifBatchError."""
    try:
        with telling_io():
            yield
    except ImageError as error:
        fs, base = open_source(source)
        if error.kind == "missing" and is_local(fs) and _is_away(local_of(base)):
            raise SifBatchError(
                f"{socket.gethostname()} does not see {source.url}",
                remedy="see to the mount; on a cluster a source must be in a bucket, or on a mount that all nodes have",
            ) from error
        if error.kind == "unreadable" and isinstance(fs, Objects):
            try:
                fs.ls(base)
            except OSError as away:
                raise SifBatchError(
                    f"{source.url}: the store does not answer ({away.strerror or away})",
                    remedy="see to the store; the same command goes on where this one stopped",
                ) from away
        raise


def _is_away(folder: str) -> bool:
    """Whether a folder that something was listed in is not there, or empty like the place of a forgotten mount."""
    try:
        with os.scandir(folder) as found:
            return next(found, None) is None
    except OSError:
        return True


def _check_version(found: str, listed: str) -> None:
    if found != listed.partition("#")[0]:
        raise ImageError("changed", "it changed after it was listed")


@contextmanager
def _open(source: Source, path: str, version: str, on_read: Callable[[], None]) -> Iterator[BinaryIO]:
    fs, base = open_source(source)
    if is_local(fs):
        file = open(local_of(f"{base}/{path}"), "rb")  # noqa: SIM115 (closed below)
    else:
        file = fs.open(f"{base}/{path}", "rb", block_size=REMOTE_BLOCK, cache_type="readahead")
    with file:
        check_unchanged(source, path, version)
        yield cast(BinaryIO, _Telling(file, on_read))


class _Telling:
    """A file whose failures are ImageError, so that a format's own errors are told from those of the disk."""

    closed = False

    def __init__(self, file: Any, on_read: Callable[[], None]):
        self._file, self._on_read = file, on_read

    def read(self, size: int = -1) -> bytes:
        self._on_read()
        with telling_io():
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None: ...
    def close(self) -> None: ...

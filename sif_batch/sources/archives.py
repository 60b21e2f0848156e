"""Archives of any kind, told by their first bytes, whatever they are called: zip, or tar, compressed or not."""

import threading
from collections.abc import Iterable
from typing import Any, BinaryIO

from sif_batch.failures import ImageError
from sif_batch.sources import tars, zips
from sif_batch.sources.containers import IsEntry, Pieces
from sif_batch.sources.inflation import inflated
from sif_batch.sources.names import text_of


def read_archive(file: BinaryIO, first: int, is_entry: IsEntry, max_bytes: int) -> Pieces:
    """The archive's images from member number `first` on. Raises ImageError after the last that can be read."""
    read = zips.read_zip if zips.is_zip(file) else tars.read_tar
    return read(inflated(file), first, is_entry, max_bytes)


class OpenArchive:
    """An archive whose members are asked for by name, one at a time."""

    def __init__(self, file: BinaryIO):
        self._one_reads = threading.Lock()  # an open archive has one place that it reads at
        self._zip, self._file = zips.is_zip(file), inflated(file, rewinds=2**31)
        found: Iterable[tuple[str, Any]]
        if self._zip:
            self._file, infos, _ = zips.open_zip(file)
            found = infos
        else:
            found = ((text_of(info.name), info) for info in tars.members_of(self._file, []) if info.isfile())
        self._members = dict(found)  # of two with one name the last counts

    def read(self, name: str, max_bytes: int) -> bytes:
        """Raises ImageError."""
        if name not in self._members:
            raise ImageError("missing", "the archive has no such member any more")
        with self._one_reads:
            data_of = zips.data_of if self._zip else tars.data_of
            data = data_of(self._file, self._members[name], max_bytes)
        if isinstance(data, ImageError):
            raise data
        return data

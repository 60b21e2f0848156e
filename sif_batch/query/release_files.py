"""The files of a release as its reader takes them: local, those that would fail silently checked first."""

from pathlib import Path
from typing import Any

import numpy as np

from sif_batch.digests import sha256_of
from sif_batch.index.quantizer_spec import QuantizerSpec
from sif_batch.index.rerank_rows import row_type
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.query.segments import Segment
from sif_batch.release.local_copies import Copies
from sif_batch.release.manifest import damaged
from sif_batch.storage.store import Store

MAPPED_BYTES = 128  # a file of a header alone cannot be mapped


class ReleaseFiles:
    """The files of the release in a folder of a store.

    release: its id. files: of its release.json, by name; a candidate, which is local, has none yet.
    """

    def __init__(self, store: Store, folder: str, release: str, files: dict[str, Any] | None):
        self.store, self.folder = store, folder
        self._files = files
        self._copies = None if store.local else Copies(store, folder, release, files or {})

    @property
    def url(self) -> str:
        """Where this release lies, whatever is published meanwhile."""
        return f"{self.store.url}/{self.folder}" if self.folder else self.store.url

    def name(self, name: str) -> str:
        """A file's name in the store."""
        return f"{self.folder}/{name}" if self.folder else name

    def path(self, name: str) -> str:
        """A file's path inside the store's filesystem."""
        return self.store.path(self.name(name))

    def local(self, name: str) -> Path:
        """A file's local path; fetched once where the release is not local."""
        return self._copies.path(name) if self._copies else Path(self.path(name))

    def checked(self, name: str) -> Path:
        """A file's local path, its checksum compared first. Raises SifBatchError."""
        path = self.local(name)
        if self._files and sha256_of(path) != self._files[name]["sha256"]:
            if self._copies is None:
                raise damaged(self.path(name))
            path = self._copies.path(name, again=True)
        return path

    def open_segment(self, number: int, start: int, spec: QuantizerSpec) -> Segment:
        """A segment whose first row is `start` in the release. Raises ValueError where it is not of that shape."""
        folder = f"segments/{number:03d}"
        index: Any = None
        if spec.family != "flat":  # most flipped bits in a faiss index would open silently
            index = import_faiss().read_index(str(self.checked(f"{folder}/index.faiss")))
        if spec.rows == "none":
            return Segment(start, int(index.ntotal), None, index)
        path = self.local(f"{folder}/rows.npy")
        rows = np.load(path, mmap_mode="r" if path.stat().st_size > MAPPED_BYTES else None)
        kind = row_type(spec.rows)
        if rows.dtype != kind or rows.shape[1:] != (spec.row_bytes // kind.itemsize,):
            raise ValueError(f"{folder}/rows.npy holds {rows.shape} of {rows.dtype}")
        if index is not None and index.ntotal != len(rows):
            raise ValueError(f"{folder}: {index.ntotal} codes, {len(rows)} rows")
        return Segment(start, len(rows), np.asarray(rows), index)

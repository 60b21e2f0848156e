"""An external bucket sort: rows are dealt to buckets on disk, and each bucket is put in order in memory."""

import io
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sif_batch.errors import SifBatchError

IN_MEMORY_BYTES = 2**27  # of rows that need no files
BUCKET_BYTES = 2**25  # of rows that are put in order at a time
MOST_BUCKETS = 256  # files open at once
RESERVE = 2**26  # bytes of disk that are left alone


def bucket_ends(ends: np.ndarray, width: int) -> np.ndarray:
    """Where buckets end: at the ends of segments, and often enough between that none is too large."""
    rows = max(1, BUCKET_BYTES // max(1, width), -(-int(ends[-1]) // MOST_BUCKETS))
    inner = np.arange(rows, int(ends[-1]), rows)
    return np.unique(np.concatenate([inner, ends]))


class Buckets:
    """Rows by ranges of release rows, in memory if they are few, else in files of one range each.

    A record is a row's place in its bucket (uint32), its code and its kept row.
    """

    def __init__(self, ends: np.ndarray, widths: tuple[int, int], scratch: str | os.PathLike[str]):
        self.ends = ends
        self.record = np.dtype([("place", "<u4"), ("code", "u1", widths[0]), ("rerank", "u1", widths[1])])
        self._starts = np.concatenate([[0], ends[:-1]])
        total = int(ends[-1]) * self.record.itemsize
        self._stack = ExitStack()
        self._files: list[BinaryIO] = []
        if total <= IN_MEMORY_BYTES:
            self._files = [io.BytesIO() for _ in ends]
            return
        os.makedirs(scratch, exist_ok=True)
        check_scratch(scratch, total)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix=".tmp-buckets-", dir=scratch))
        for number in range(len(ends)):
            file = open(Path(folder, f"{number}"), "w+b", buffering=2**16)  # noqa: SIM115 (closed by the stack)
            self._files.append(self._stack.enter_context(file))

    def __enter__(self) -> "Buckets":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def put(self, at: np.ndarray, code: np.ndarray, rerank: np.ndarray) -> None:
        """Rows of a part: at: release rows, rising; code (n, c) uint8; rerank: (n, w) of any type."""
        bounds = np.searchsorted(at, self.ends)
        records = np.empty(len(at), self.record)
        records["code"] = code
        records["rerank"] = np.ascontiguousarray(rerank).view(np.uint8)
        start = 0
        for bucket, end in enumerate(bounds.tolist()):
            if end > start:
                records["place"][start:end] = at[start:end] - self._starts[bucket]
                self._files[bucket].write(records[start:end].tobytes())
            start = end

    def take(self, bucket: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, c) and kept rows (n, w) of a bucket in order, uint8; what held them is given back."""
        file = self._files[bucket]
        file.seek(0)
        found = np.frombuffer(file.read(), self.record)
        size = int(self.ends[bucket] - self._starts[bucket])
        order = np.argsort(found["place"], kind="stable")
        if len(found) != size or not np.array_equal(found["place"][order], np.arange(size)):
            raise SifBatchError(f"{size} rows were to be assembled, {len(found)} came", remedy="run again")
        file.seek(0)
        file.truncate()
        return found["code"][order], found["rerank"][order]


def check_scratch(folder: str | os.PathLike[str], needed: int) -> None:
    """Fail now, not after hours, where the disk is too full."""
    free = shutil.disk_usage(folder).free - RESERVE
    if free < needed:
        raise SifBatchError(
            f"{os.fspath(folder)}: {needed / 1e9:.1f} GB are needed there, {max(0, free) / 1e9:.1f} GB are free",
            remedy="make room, or give --scratch DIR on a larger disk",
        )

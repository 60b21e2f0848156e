"""Placement: which row of a release, in which segment, each live row becomes."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

SEGMENT_ROWS = 16 * 2**20


def segment_ends(hashes: np.ndarray, max_rows: int) -> np.ndarray:
    """Where segments end: equal ranges of the hash, a power of two of them, the fewest that hold `max_rows` at most.

    hashes: (n,) uint64 in order. Returns (segments,) int64, the last is n.
    """
    bits = 0
    while True:
        bounds = np.array([(i + 1) << (64 - bits) for i in range(2**bits - 1)], np.uint64)
        ends = np.append(np.searchsorted(hashes, bounds), len(hashes))
        if np.diff(ends, prepend=0).max(initial=0) <= max_rows:
            return ends
        bits += 1


class Placement:
    """Which release row each part's rows become. part, row, hashes: (n,) of the live rows, in order."""

    def __init__(self, part: np.ndarray, row: np.ndarray, hashes: np.ndarray, parts: Sequence[str]):
        self.parts, self.row, self.hashes = parts, row, hashes
        narrow = part.astype(np.uint16) if len(parts) < 2**16 else part  # 16 bits are sorted ten times faster
        order = np.argsort(narrow, kind="stable").astype(np.uint32)
        bounds = np.searchsorted(part, np.arange(len(parts) + 1), sorter=order)
        self._order, self._bounds = order, bounds
        self.used = np.flatnonzero(np.diff(bounds)).tolist()

    @staticmethod
    def of(live: pa.Table, parts: Sequence[str]) -> "Placement":
        return Placement(live["part"].to_numpy(), live["row"].to_numpy(), live["hash"].to_numpy(), parts)

    def __len__(self) -> int:
        return len(self.row)

    def rows_of(self, number: int) -> np.ndarray:
        """The release rows of a part, rising."""
        return self._order[self._bounds[number] : self._bounds[number + 1]]

    def released(self, number: int, numbers: np.ndarray) -> np.ndarray:
        """The release row of each of some rows of a part, (n,) int64, -1 for a dead one. numbers: rising."""
        at = self.rows_of(number)
        rows = self.row[at]
        place = np.searchsorted(numbers, rows)
        if place.max(initial=-1) >= len(numbers) or not np.array_equal(numbers[place], rows):
            raise LookupError
        found = np.full(len(numbers), -1, np.int64)
        found[place] = at
        return found

"""Matching: which listed entry a row is of, by 128-bit digests of source, path and version instead of the strings.

Ten million of each are matched in seconds, in memory of 24 bytes an entry. The digests are no file's name and stand in
nothing but the catalog's cache.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

ENTRY = ["source", "path", "version"]
BATCH = 2**14  # rows at a time: they stay in the processor's cache
SEEDS = np.array([[0x243F6A8885A308D3], [0x13198A2E03707344]], np.uint64)  # of pi
ODD = np.array([[0x9E3779B97F4A7C15], [0xD6E8FEB86659FD93]], np.uint64)
SHIFT, ONE, ALL = np.uint64(32), np.uint64(1), np.uint64(2**64 - 1)


def entry_digests(table: pa.Table) -> pa.ChunkedArray:
    """The digest of each row's ENTRY: binary(16)."""
    made = [_digests(batch) for batch in batches(table.select(ENTRY))]
    return pa.chunked_array(
        [pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(one), [None, pa.py_buffer(one)]) for one in made],
        pa.binary(16),
    )


def batches(table: pa.Table, rows: int = BATCH) -> Iterator[pa.Table]:
    """The table in pieces of so many rows, each in one chunk."""
    for start in range(0, len(table), rows):
        yield table.slice(start, rows).combine_chunks()


def _digests(table: pa.Table) -> np.ndarray:
    """(n, 2) uint64 of all columns, strings without nulls in one chunk each."""
    state = np.repeat(SEEDS, len(table), axis=1)
    for column in table.columns:
        _absorb(state, column.chunk(0))
    return np.ascontiguousarray(state.T)


def _absorb(state: np.ndarray, texts: pa.StringArray) -> None:
    """Mix the bytes of each text, and how many they are, into its column of the state, (2, n) uint64."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    lengths, at = np.diff(offsets), offsets[:-1] - offsets[0]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    data = np.concatenate([data, np.zeros(8, np.uint8)])
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the eight bytes from each place on
    shortest, longest = int(lengths.min()), int(lengths.max())
    for start in range(0, longest, 8):
        reached: Any = slice(None) if start < shortest else np.flatnonzero(lengths > start)
        word = words[at[reached] + start]
        if start + 8 > shortest:  # of some it is the last one, and not whole
            rest = np.minimum(8 * (lengths[reached] - start), 64).astype(np.uint64)
            word &= np.where(rest == 64, ALL, (ONE << np.minimum(rest, 63)) - ONE)
        mixed = state[:, reached]
        _mix(mixed, word)
        state[:, reached] = mixed
    _mix(state, lengths.astype(np.uint64))


def _mix(state: np.ndarray, word: np.ndarray) -> None:
    """Each of a column's two numbers changes with every bit of the word: (2, n) and (n,) uint64, in place."""
    state ^= word
    state *= ODD
    state ^= state >> SHIFT
    state *= ODD
    state ^= state >> SHIFT


class Entries:
    """The digests of a listing's entries, to look rows up in."""

    def __init__(self, entries: pa.Table):
        made = [_digests(batch) for batch in batches(entries.select(ENTRY))]
        digests = np.concatenate([np.empty((0, 2), np.uint64), *made])
        self._order = np.argsort(digests[:, 0]).astype(np.uint32)
        self._first, self._second = (np.take(digests[:, half], self._order) for half in (0, 1))

    def find(self, digests: Iterable[pa.Array]) -> np.ndarray:
        """The entry of each row by its digest, binary(16); -1 for none: (n,) int32."""
        return np.concatenate([np.empty(0, np.int32), *(self._find(one) for one in digests)])

    def _find(self, digests: pa.Array) -> np.ndarray:
        wanted = np.frombuffer(digests.buffers()[1], np.uint64).reshape(-1, 2)
        wanted = wanted[digests.offset : digests.offset + len(digests)]
        found = np.full(len(wanted), -1, np.int32)
        pending = np.argsort(wanted[:, 0])  # neighbours are looked up one after another: ten times as fast
        place = np.searchsorted(self._first, wanted[pending, 0])
        while len(pending):
            there = place < len(self._first)
            there[there] = self._first[place[there]] == wanted[pending[there], 0]
            pending, place = pending[there], place[there]
            same = self._second[place] == wanted[pending, 1]
            found[pending[same]] = self._order[place[same]]
            pending, place = pending[~same], place[~same] + 1
        return found

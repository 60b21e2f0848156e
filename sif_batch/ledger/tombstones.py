"""What was erased from a ROOT and is never indexed again: erased/<digest>.json, one for each erasure, only ever added.

They hold digests, never a name: of keys, of contents, and of the listed files that had such contents.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import Frozen
from sif_batch.digests import canonical_json, digest
from sif_batch.errors import SifBatchError
from sif_batch.sources.listing import Listing, keys_of
from sif_batch.sources.names import hash_of
from sif_batch.storage.store import Store

FOLDER = "erased"


class Erased(Frozen):
    """keys: hash and length of each, those of whole containers too; contents: sha256, hexadecimal; entries: hash, and
    length of the path, of source, path and version of files that had such contents."""

    keys: frozenset[tuple[int, int]] = frozenset()
    contents: frozenset[str] = frozenset()
    entries: frozenset[tuple[int, int]] = frozenset()

    def __or__(self, other: "Erased") -> "Erased":
        both = {name: getattr(self, name) | getattr(other, name) for name in type(self).model_fields}
        return Erased.model_validate(both)

    def canonical(self) -> bytes:
        return canonical_json({name: sorted(getattr(self, name)) for name in type(self).model_fields})

    def has_key(self, key: str) -> bool:
        """Whether the image of this key, or the container that it is in, was erased by name."""
        hashes = {key_hash for key_hash, _ in self.keys}
        return bool(hashes) and not hashes.isdisjoint((hash_of(key), hash_of(key.partition("::")[0])))

    def holds(self, rows: pa.Table) -> np.ndarray:
        """Which of these rows, of parts or releases, must not be: (n,) bool."""
        found = np.zeros(len(rows), bool)
        if self.keys:
            hashes = np.array([key_hash for key_hash, _ in self.keys], np.uint64)
            found |= np.isin(rows["hash"].to_numpy(), hashes) | self._in_containers(rows["key"])
        if self.contents:
            contents = pa.array([bytes.fromhex(sha256) for sha256 in self.contents], pa.binary(32))
            of_them = pc.is_in(rows["sha256"], contents)
            if "error_kind" in rows.column_names:  # what was met again, and refused, says so
                refused = pc.fill_null(pc.equal(rows["error_kind"], "erased"), False)
                of_them = pc.and_not(of_them, refused)
            found |= of_them.to_numpy()
        return found

    def _in_containers(self, keys: pa.ChunkedArray) -> np.ndarray:
        """Which of these are keys of members of containers that were erased."""
        found = np.zeros(len(keys), bool)
        member = np.flatnonzero(pc.match_substring(keys, "::").to_numpy())
        inside = pc.list_element(pc.split_pattern(keys.take(pa.array(member)), "::", max_splits=1), 0)
        gone = [key for key in pc.unique(inside).to_pylist() if self.has_key(key)]
        found[member] = pc.is_in(inside, pa.array(gone, inside.type)).to_numpy()
        return found

    def leave_out(self, listing: Listing) -> Listing:
        """The listing without what was erased, which is counted as ignored."""
        if not (self.keys or self.entries):
            return listing
        entries, keys = listing.entries, keys_of(listing.entries)
        out = _find(keys, self.keys, lambda at: hash_of(keys[at].as_py()))
        out |= _find(entries["path"], self.entries, lambda at: entry_hash(**entries.slice(at, 1).to_pylist()[0]))
        if not out.any():
            return listing
        ignored = dict(listing.ignored)
        for source in entries["source"].filter(pa.array(out)).to_pylist():
            ignored[source] = ignored.get(source, 0) + 1
        return Listing(entries.filter(pa.array(~out)).combine_chunks(), ignored)


def _find(names: pa.Array, erased: Iterable[tuple[int, int]], hash_at: Callable[[int], int]) -> np.ndarray:
    """Which places were erased: (n,) bool. Only those whose name is as long as one that was are looked at."""
    hashes, lengths = {one for one, _ in erased}, sorted({length for _, length in erased})
    fits = pc.is_in(pc.binary_length(names), pa.array(lengths, pa.int32()))
    found = np.zeros(len(names), bool)
    for at in np.flatnonzero(fits.to_numpy(zero_copy_only=False)).tolist():
        found[at] = hash_at(at) in hashes
    return found


def entry_hash(source: str, path: str, version: str, **_: object) -> int:
    """The hash of a listed file."""
    return hash_of(canonical_json([source, path, version]).decode())


def read_erased(store: Store) -> Erased:
    """All that was ever erased from ROOT. Raises SifBatchError where that cannot be read: it must not come back."""
    found = Erased()
    for name in store.sizes(FOLDER):
        try:
            found |= Erased.model_validate_json(store.read(f"{FOLDER}/{name}"))
        except ValueError as error:
            raise SifBatchError(
                f"{store.path(FOLDER)}/{name} is damaged ({type(error).__name__})", remedy="restore it from a backup"
            ) from error
    return found


def add_erased(store: Store, erased: Erased) -> None:
    """Record what is erased from now on, unless it was before."""
    before = read_erased(store)
    if before | erased != before:
        store.create(f"{FOLDER}/{digest(erased.canonical(), 32)}.json", erased.canonical())

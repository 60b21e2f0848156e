"""Reconciles the listing with the catalog: which rows stand, and which stale ones stand in for them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.failures import TRANSIENT
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.entry_digests import ENTRY, Entries, batches
from sif_batch.sources.containers import are_containers, container_kind
from sif_batch.sources.listing import keys_of
from sif_batch.storage.table_file import TableFile

MAX_ATTEMPTS = 3
MOST_ATTEMPTS = 127  # an int8 holds no more
KEYS = 2**20  # at a time


def find_duplicates(entries: pa.Table) -> np.ndarray:
    """Which entries have the key of an earlier one: twins once escaped and in Unicode NFC. (n,) bool."""
    twin = np.zeros(len(entries), bool)
    if _are_rising(keys_of(batch) for batch in batches(entries.select(["source", "path"]), KEYS)):
        return twin  # as in listings whose names are ASCII
    keys = keys_of(entries)
    if pc.count_distinct(keys).as_py() == len(keys):
        return twin
    codes = keys.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    twin[:] = True
    twin[first] = False
    return twin


def _are_rising(pieces: Iterator[pa.Array]) -> bool:
    """Whether each key of some pieces is larger than the one before."""
    last = None
    for keys in pieces:
        first = keys[0].as_py()
        if (last is not None and first.encode() <= last) or not pc.all(pc.less(keys[:-1], keys[1:])).as_py():
            return False
        last = keys[-1].as_py().encode()
    return True


@dataclass(frozen=True)
class Standing:
    """What is known of a listing's images.

    row: (n,) numbers of the catalog rows that stand, one an image; entry: (n,) the entry that each is of, in order;
    good: (n,) it holds an embedding; retry: (n,) its failure is transient and not yet tried often enough.
    first: (entries,) the first ordinal that no part covers, -1 for a whole entry; duplicate: (entries,) twin of an
    earlier entry. superseded: members passed over for a later one of the same name.
    """

    row: np.ndarray
    entry: np.ndarray
    good: np.ndarray
    retry: np.ndarray
    first: np.ndarray
    duplicate: np.ndarray
    superseded: int


def standing_rows(entries: pa.Table, catalog: Catalog, max_attempts: int = MAX_ATTEMPTS) -> Standing:
    """The row that stands for each image: embedded before failed, then highest attempt, then smallest part name.

    Of two members with one name in a container, the later one, good or not.
    """
    duplicate, rows = find_duplicates(entries), catalog.rows
    of_entry = _entries_of(rows, entries)
    row = np.flatnonzero(of_entry >= 0)
    entry = of_entry[row]
    bad, transient, is_twin = _outcomes(rows)
    attempts, parts = rows["attempt"].to_numpy(), rows["part"].to_numpy()
    first, ends, superseded = _coverage(entries, catalog.spans)

    whole = are_containers(entries["path"])
    own = whole[entry]  # a container's own row stands only in the part that ends it
    if own.any():
        own &= rows["member"].is_null().to_numpy()[row]
    fits = np.where(own, ends[entry] == parts[row], is_twin[row] == duplicate[entry])
    entry, row, own = entry[fits], row[fits], own[fits]
    # Files that have one row are settled; a member's name, and which of several rows it is, are looked into.
    rivals = whole[entry] | (np.bincount(entry, minlength=len(entries)) > 1)[entry]
    rival = np.flatnonzero(rivals)
    best, passed = _best(catalog, entry[rival], row[rival], whole[entry[rival]] & ~own[rival], bad)
    superseded += passed
    best = np.concatenate([np.flatnonzero(~rivals), rival[best]])
    best = best[np.argsort(entry[best], kind="stable")]
    entry, row = entry[best], row[best]
    first[entry] = np.where(whole[entry], first[entry], -1)
    retry = transient[row] & (attempts[row] < max_attempts)
    return Standing(row, entry, ~bad[row], retry, first, duplicate, superseded)


def _entries_of(rows: TableFile, entries: pa.Table) -> np.ndarray:
    """The entry that each row is of, -1 for none: (rows,) int32."""
    if not len(rows):
        return np.empty(0, np.int32)
    listed = Entries(entries)
    digests = (batch["entry"] for batch in rows.batches(["entry"]))
    return listed.find(chunk for column in digests for chunk in column.chunks)


def _outcomes(rows: TableFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows failed, which of them for now, and which are of twins: (rows,) bool each."""
    found = [np.empty((0, 3), bool)]
    for batch in rows.batches(["error_kind"]):
        kinds = batch["error_kind"]
        one = np.zeros((len(kinds), 3), bool)
        if kinds.null_count < len(kinds):
            one[:, 0] = kinds.is_valid().to_numpy()
            one[:, 1] = pc.is_in(kinds, pa.array(list(TRANSIENT))).to_numpy()
            one[:, 2] = pc.fill_null(pc.equal(kinds, "duplicate_key"), False).to_numpy()
        found.append(one)
    bad, transient, is_twin = np.concatenate(found).T
    return bad, transient, is_twin


def _best(
    catalog: Catalog, entry: np.ndarray, row: np.ndarray, member: np.ndarray, bad: np.ndarray
) -> tuple[np.ndarray, int]:
    """Of several rows of an entry, or of a member's name in it, the place of the one that stands, in order of entry;
    and how many members are passed over for a later one of their name."""
    rows = catalog.rows
    attempt, part, number = (rows[name].to_numpy()[row] for name in ("attempt", "part", "row"))
    begins = np.zeros(len(catalog.parts), np.int64)
    begins[catalog.spans["part"].to_numpy()] = catalog.spans["first"].to_numpy()
    begin = begins[part]
    name = np.full(len(row), -1, np.int64)  # members with one key in an entry share it; a file has but one
    if member.any():
        keys = rows["key"].take(pa.array(row[member])).combine_chunks()
        name[member] = keys.dictionary_encode().indices.to_numpy()
    order = np.lexsort((number, part, -attempt, bad[row], -begin, name, entry))
    entry, name, begin = entry[order], name[order], begin[order]
    changes = (np.diff(entry, prepend=-1) != 0) | (np.diff(name, prepend=-2) != 0)
    again = np.flatnonzero(~changes)
    return order[changes], int((begin[again] != begin[again - 1]).sum())


def _coverage(entries: pa.Table, spans: pa.Table) -> tuple[np.ndarray, np.ndarray, int]:
    """For each entry: the first ordinal that no part covers, and the part that ends it (-1: none); and how many
    members their parts left out for a later one of the same name."""
    first, ends = np.zeros(len(entries), np.int64), np.full(len(entries), -1, np.int64)
    if not len(spans):
        return first, ends, 0
    numbered = entries.select(ENTRY).append_column("entry", pa.array(np.arange(len(entries))))
    held = numbered.filter(pa.array(are_containers(entries["path"])))
    found = spans.join(held, ENTRY, join_type="inner")
    order = [("entry", "ascending"), ("first", "ascending"), ("attempt", "descending"), ("part", "ascending")]
    ending: dict[int, int] = {}
    superseded: dict[tuple[int, int], int] = {}
    for span in found.take(pc.sort_indices(found, order)).to_pylist():
        entry = span["entry"]
        superseded.setdefault((entry, span["first"]), span["superseded"])
        if first[entry] >= 0 and span["first"] <= first[entry]:
            first[entry] = -1 if span["end"] else max(first[entry], span["last"] + 1)
        if span["end"] and span["attempt"] >= ending.get(entry, 0):
            ending[entry], ends[entry] = span["attempt"], span["part"]
    return first, ends, sum(superseded.values())


def stale_rows(entries: pa.Table, standing: Standing, catalog: Catalog, older: Iterable[pa.Table]) -> np.ndarray:
    """For images whose present version fails only for now: the good row of the version listed last before.

    A container that fails as a whole keeps its old members, but for those that stand in its new version.
    older: earlier listings' entries, newest first. Returns (m,) int64 numbers of catalog rows.
    """
    rows = catalog.rows
    transient = pc.is_in(rows["error_kind"], pa.array(list(TRANSIENT))).to_numpy()
    pending = np.flatnonzero(transient[standing.row] & ~standing.duplicate[standing.entry])
    stale: list[np.ndarray] = []
    for listing in older:
        if not len(pending):
            break
        wanted = entries.select(["source", "path"]).take(pa.array(np.unique(standing.entry[pending])))
        numbered = listing.select(ENTRY).append_column("number", pa.array(np.arange(len(listing))))
        before = numbered.join(wanted, ["source", "path"], join_type="inner").sort_by("number")
        then = standing_rows(before.select(ENTRY), catalog)
        held, found = _replaced(rows, standing, pending, then.row[then.good])
        stale.append(found)
        pending = np.setdiff1d(pending, held)
    return np.concatenate([*stale, np.empty(0, np.int64)])


def _replaced(
    rows: pa.Table, standing: Standing, pending: np.ndarray, old: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the pending standing rows these old rows stand in for, and the old rows that do."""
    key, path = (rows[name].take(pa.array(old)) for name in ("key", "path"))
    now = rows.take(pa.array(standing.row[pending]))
    same = pc.is_in(key, now["key"].combine_chunks()).to_numpy(zero_copy_only=False)
    # The whole of a container fails: all its old members but those that its new version has.
    failing = now.filter(pc.and_(now["member"].is_null(), pc.invert(pc.is_in(now["key"], key.combine_chunks()))))
    names = [name for name in set(failing["path"].to_pylist()) if container_kind(name) is not None]
    good = rows["key"].take(pa.array(standing.row[standing.good])).combine_chunks()
    of_failing = pc.is_in(path, pa.array(names, pa.string())).to_numpy(zero_copy_only=False)
    kept = of_failing & ~pc.is_in(key, good).to_numpy(zero_copy_only=False)
    held = pc.or_(
        pc.is_in(now["key"], key.combine_chunks()),
        pc.and_(now["member"].is_null(), pc.is_in(now["path"], path.filter(pa.array(kept)).combine_chunks())),
    )
    return pending[held.to_numpy(zero_copy_only=False)], old[same | kept]

"""What follows from listing and catalog: the rows that stand, the work to do, and the rows that live."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.catalog import Catalog
from sif_batch.config import Source
from sif_batch.failures import TRANSIENT
from sif_batch.shards import OPEN, SPAN_SCHEMA
from sif_batch.sources.containers import are_containers, container_kind
from sif_batch.sources.files import uri_prefix
from sif_batch.sources.listing import are_rising, keys_of

MAX_ATTEMPTS = 3
MOST_ATTEMPTS = 127  # an int8 holds no more
ENTRY = ["source", "path", "version"]


def find_duplicates(keys: pa.Array) -> np.ndarray:
    """Which entries have the key of an earlier one: twins under Unicode NFC. (n,) bool."""
    twin = np.zeros(len(keys), bool)
    rising = len(keys) < 2 or pc.all(pc.less(keys[:-1], keys[1:])).as_py()  # as listings mostly are: needs no table
    if rising or pc.count_distinct(keys).as_py() == len(keys):
        return twin
    codes = keys.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    twin[:] = True
    twin[first] = False
    return twin


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
    duplicate = find_duplicates(keys_of(entries))
    rows = catalog.rows
    numbered = entries.select(ENTRY).append_column("entry", pa.array(np.arange(len(entries))))
    candidates = rows.select(ENTRY).append_column("row", pa.array(np.arange(len(rows))))
    pairs = candidates.join(numbered.slice(0, len(entries) if len(rows) else 0), ENTRY, join_type="inner")
    entry, row = pairs["entry"].to_numpy(), pairs["row"].to_numpy()

    kinds = rows["error_kind"]
    bad = kinds.is_valid().to_numpy()
    attempts, parts = rows["attempt"].to_numpy(), rows["part"].to_numpy()
    is_twin = pc.fill_null(pc.equal(kinds, "duplicate_key"), False).to_numpy()
    first, ends, superseded = _coverage(numbered, catalog.spans)
    begins = np.zeros(len(catalog.parts), np.int64)
    begins[catalog.spans["part"].to_numpy()] = catalog.spans["first"].to_numpy()
    # A container's own row stands only in the part that ends it.
    whole = in_containers(entries, entry)
    own = whole & rows["member"].is_null().to_numpy()[row]
    fits = np.where(own, ends[entry] == parts[row], is_twin[row] == duplicate[entry])
    entry, row, member = entry[fits], row[fits], whole[fits] & ~own[fits]

    name = np.zeros(len(row), np.int64)  # members with one key in an entry share it; a file has but one
    name[member] = rows["key"].take(pa.array(row[member])).combine_chunks().dictionary_encode().indices.to_numpy()
    name[whole[fits] & ~member] = -1
    begin = begins[parts[row]]
    order = np.lexsort((rows["row"].to_numpy()[row], parts[row], -attempts[row], bad[row], -begin, name, entry))
    entry, row, name, begin = entry[order], row[order], name[order], begin[order]
    changes = (np.diff(entry, prepend=-1) != 0) | (np.diff(name, prepend=-2) != 0)
    again = np.flatnonzero(~changes)
    superseded += int((begin[again] != begin[again - 1]).sum())
    best = np.flatnonzero(changes)
    entry, row = entry[best], row[best]
    first[entry] = np.where(in_containers(entries, entry), first[entry], -1)
    transient = pc.is_in(kinds, pa.array(list(TRANSIENT))).to_numpy()
    retry = transient[row] & (attempts[row] < max_attempts)
    return Standing(row, entry, ~bad[row], retry, first, duplicate, superseded)


def _coverage(entries: pa.Table, spans: pa.Table) -> tuple[np.ndarray, np.ndarray, int]:
    """For each entry: the first ordinal that no part covers, and the part that ends it (-1: none); and how many
    members their parts left out for a later one of the same name. entries: with their number in `entry`."""
    first, ends = np.zeros(len(entries), np.int64), np.full(len(entries), -1, np.int64)
    found = spans.join(entries, ENTRY, join_type="inner")
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


def spans_to_do(entries: pa.Table, standing: Standing, catalog: Catalog, again: np.ndarray | None = None) -> pa.Table:
    """SPAN_SCHEMA: the listing minus the rows that stand.

    again: (n,) bool, the standing rows to do once more; None: those that are to be tried again. A member is tried again
    with the span that it came in.
    """
    again = standing.retry if again is None else again
    attempts = catalog.rows["attempt"].to_numpy()
    new = np.flatnonzero(standing.first >= 0)
    in_container = in_containers(entries, standing.entry)
    files = np.flatnonzero(again & ~in_container)
    entry = np.concatenate([new, standing.entry[files]])
    attempt = np.concatenate([np.zeros(len(new), np.int64), attempts[standing.row[files]]]) + 1
    first = np.concatenate([standing.first[new], np.zeros(len(files), np.int64)])
    is_open = in_containers(entries, entry)
    tables = [_spans(entries, standing, entry, first, np.where(is_open, OPEN, 0), ~is_open, attempt)]

    members = np.flatnonzero(again & in_container)
    if not len(members) and not len(files) and _in_order(entries):
        return tables[0]  # new ones alone stand as they are listed
    if len(members):
        part = catalog.rows["part"].to_numpy()[standing.row[members]]
        _, distinct = np.unique(part, return_index=True)
        place = pc.index_in(pa.array(part[distinct]), catalog.spans["part"].combine_chunks())
        spans = catalog.spans.take(place)
        last = np.where(spans["end"].to_numpy(), OPEN, spans["last"].to_numpy())
        made = (standing.entry[members][distinct], spans["first"].to_numpy(), last)
        tables.append(_spans(entries, standing, *made, np.zeros(len(last), bool), spans["attempt"].to_numpy() + 1))
    todo = pa.concat_tables(tables)
    return todo.take(pc.sort_indices(todo, [("source", "ascending"), ("path", "ascending"), ("first", "ascending")]))


def _in_order(entries: pa.Table) -> bool:
    """Whether entries stand in order of source, then path, as listings do."""
    if pc.count_distinct(entries["source"]).as_py() > 1:
        return False  # listings are, but to tell so takes as long as sorting
    return are_rising(entries["path"])


def _spans(
    entries: pa.Table,
    standing: Standing,
    entry: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    end: np.ndarray,
    attempt: np.ndarray,
) -> pa.Table:
    whole = len(entry) == len(entries) and np.array_equal(entry, np.arange(len(entries)))
    picked = entries if whole else entries.take(pa.array(entry, pa.int64()))
    columns = [picked[name] for name in ("source", "path", "size", "version")]
    tries = np.minimum(attempt, MOST_ATTEMPTS).astype(np.int8)
    return pa.table([*columns, first, last, end, tries, standing.duplicate[entry]], schema=SPAN_SCHEMA)


def in_containers(entries: pa.Table, entry: np.ndarray) -> np.ndarray:
    """Which of these entries are containers: (n,) bool."""
    return are_containers(entries["path"])[entry]


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
        before = listing.select(ENTRY).join(wanted, ["source", "path"], join_type="inner")
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


def live_rows(catalog: Catalog, live: np.ndarray, sources: Sequence[Source]) -> pa.Table:
    """The catalog rows that a release is made of, with their uri, in order of (hash, key).

    live: (n,) numbers of catalog rows, in any order.
    """
    rows = catalog.rows.take(pa.array(live))
    prefixes = {source.name: uri_prefix(source) for source in sources}
    names = rows["source"].unique().to_pylist()
    place = pc.index_in(rows["source"], pa.array(names, pa.string()))
    prefix = pa.array([prefixes[name] for name in names], pa.string()).take(place)
    opened = pc.binary_join_element_wise(prefix, rows["path"], "")
    rows = rows.append_column("uri", _member_uris(opened, rows["path"], rows["member"]))
    return rows.take(pc.sort_indices(rows, [("hash", "ascending"), ("key", "ascending")])).combine_chunks()


def _member_uris(uri: pa.ChunkedArray, path: pa.ChunkedArray, member: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where each image can be opened: tar://member::uri for one in a tar, uri#row=number for one in Parquet."""
    if member.null_count == len(member):
        return uri
    in_table = pc.match_substring(path, ".parquet", ignore_case=True)
    return pc.case_when(
        pc.make_struct(member.is_null(), in_table),
        uri,
        pc.binary_join_element_wise(uri, member, "#row="),
        pc.binary_join_element_wise("tar://", member, "::", uri, ""),
    )


def failures_by_kind(catalog: Catalog, rows: np.ndarray) -> dict[str, int]:
    """How many of these catalog rows failed, by kind, most frequent first."""
    counts = catalog.rows["error_kind"].take(pa.array(rows)).drop_null().value_counts().to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counts, key=lambda c: (-c["counts"], c["values"]))}

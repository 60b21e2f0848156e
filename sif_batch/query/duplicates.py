"""Duplicates: images of a release that have the same bytes, or nearly the same vector.

Every row asks for its nearest as a query does, by codes and then by the rows kept, a part of the rows at a time; pairs
at least as similar as a threshold, and rows of one sha256, are joined to groups.
"""

import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.digests import canonical_json, digest
from sif_batch.errors import SifBatchError
from sif_batch.index.rerank_rows import vectors_of_rows
from sif_batch.index.similarity import SIMILARITY, SQUARED_DISTANCE
from sif_batch.query.index import Index, opened
from sif_batch.query.segments import OperatingPoint
from sif_batch.storage.store import Store

PART_ROWS, BLOCK = 10_000, 512
NEAREST, MORE = 32, 1024  # rows that a row is compared with; more where all of those are as near as the threshold
SLACK = 1e-3  # of a rough squared distance
PAIRS = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("similarity", pa.float32())])  # rows, a < b
GROUPED = pa.schema(
    [
        ("group", pa.int64()),
        ("kind", pa.string()),
        ("key", pa.large_string()),
        ("uri", pa.large_string()),
        ("similarity", pa.float32()),
        ("sha256", pa.binary(32)),
    ]
)


def check_threshold(index: Index, threshold: float) -> None:
    """Raise SifBatchError where no duplicates of this release can be told by it."""
    if not 0 < threshold <= 1:
        raise SifBatchError(
            f"the threshold is {threshold:g}, expected a similarity above 0 and up to 1", remedy="0.95 is a beginning"
        )
    if not index.segments.keeps_rows:
        raise SifBatchError(
            "this release keeps codes alone, no rows to compare", remedy="build it with more --max-bytes-per-row"
        )


def part_count(index: Index) -> int:
    return -(-len(index) // PART_ROWS)


def pairs_name(index: Index, threshold: float, number: int) -> str:
    """The file of one part's pairs, named by all that decides it."""
    made_by = [index.release, threshold, PART_ROWS, NEAREST, MORE]
    return f"pairs-{digest(canonical_json(made_by))[:12]}-{number:06d}.parquet"


def find_part(report: Callable[[Any], None], place: str, work: str, threshold: float, number: int) -> int:
    """Write the pairs of one part of a release's rows into the folder `work`, unless they stand. Runs in the child.
    Returns how many rows asked."""
    index, store = opened(place), Store(work)
    name = pairs_name(index, threshold, number)
    if store.exists(name):
        return 0
    firsts = _firsts(place)
    asking = firsts[(firsts >= number * PART_ROWS) & (firsts < (number + 1) * PART_ROWS)]
    found = []
    for start in range(0, len(asking), BLOCK):
        found.append(find_pairs(index, asking[start : start + BLOCK], threshold))
        report(start)
    table = pa.concat_tables([PAIRS.empty_table(), *found]).sort_by([("a", "ascending"), ("b", "ascending")])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.create(name, sink.getvalue())
    return len(asking)


@functools.lru_cache(maxsize=1)
def _firsts(place: str) -> np.ndarray:
    return np.unique(first_copies(opened(place)))


def first_copies(index: Index) -> np.ndarray:
    """For each row the first row of the same bytes, itself if there is none before: (n,) int64."""
    codes = pc.dictionary_encode(index.column("sha256").combine_chunks()).indices.to_numpy()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def find_pairs(index: Index, rows: np.ndarray, threshold: float) -> pa.Table:
    """The pairs of some rows, (n,) int64, with any others that are at least so similar: PAIRS, a pair once or twice."""
    y = index.vectors_of(rows).astype(np.float64)
    limit = SQUARED_DISTANCE[index.spec.metric](threshold)
    asking, others = _near(index, y, limit + SLACK)
    kept = rows[asking] != others
    asking, others = asking[kept], others[kept]
    apart = _exact(index, index.ranking.kept_view(y), asking, others)
    near = apart <= limit
    a, b = rows[asking[near]], others[near]
    similarity = SIMILARITY[index.spec.metric](apart[near]).astype(np.float32)
    return pa.table([np.minimum(a, b), np.maximum(a, b), similarity], schema=PAIRS)


def _near(index: Index, y: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Roughly: which query is near to which row, (m,) each. y: compared vectors."""
    segments, queries = index.segments, index.ranking.kept_view(y)
    if index.spec.family == "flat" or index.point is None:
        others, apart = segments.nearest(queries, MORE)
        asking, place = np.nonzero(apart <= limit)
        return asking, others[asking, place]
    reduced = index.ranking.reduced(y)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    left = np.arange(len(y))
    for most in (NEAREST, MORE):
        most = min(most, len(index))
        point = OperatingPoint(max(index.point.cells, most if segments.is_graph else 0), most)
        _, found = segments.candidates(reduced[left], point)
        near = np.less_equal(segments.rough_distances(queries[left], found), limit)
        full = near.all(axis=1) & (most < MORE) & (most < len(index))
        query, place = np.nonzero(near & ~full[:, None])
        pairs.append((left[query], found[query, place]))
        left = left[full]
        if not len(left):
            break
    asking, others = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return asking, others


def _exact(index: Index, queries: np.ndarray, asking: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of a query and a row, (m,) float64."""
    found = np.empty(len(asking))
    for start in range(0, len(asking), BLOCK):
        at = slice(start, start + BLOCK)
        x = vectors_of_rows(index.segments.take(others[at]), index.segments.unit).astype(np.float64)
        q = queries[asking[at]].astype(np.float64)
        found[at] = 2 - 2 * np.einsum("ij,ij->i", x, q) if index.segments.unit else ((x - q) ** 2).sum(axis=1)
    return np.maximum(found, 0)


def read_pairs(index: Index, work: Store, threshold: float) -> Iterator[pa.Table]:
    """The pairs of all parts, in order."""
    for number in range(part_count(index)):
        yield pq.read_table(pa.BufferReader(work.read(pairs_name(index, threshold, number))))


def group(index: Index, work: Store, threshold: float) -> pa.Table:
    """All groups of two images or more, the largest first: GROUPED.

    kind: `first` is the image with the most pixels, `exact` those of its bytes, `near` the others; similarity: to the
    first. A group may be a chain, whose ends are less similar than the threshold.
    """
    first = first_copies(index)
    parent = first.tolist()
    for table in read_pairs(index, work, threshold):
        for a, b in zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True):
            _join(parent, a, b)
    root = np.array([_find(parent, row) for row in range(len(parent))], np.int64)
    _, inverse, sizes = np.unique(root, return_inverse=True, return_counts=True)
    members = np.flatnonzero(sizes[inverse] > 1)
    if not len(members):
        return GROUPED.empty_table()
    return _table(index, members, inverse[members], sizes[inverse[members]], first[members])


def _table(index: Index, rows: np.ndarray, group: np.ndarray, size: np.ndarray, copy_of: np.ndarray) -> pa.Table:
    """rows: (m,) of the groups, group: their numbers, size: of their groups, copy_of: the first of their bytes."""
    known = index.roster.take(rows, [n for n in ("key", "uri", "sha256", "width", "height") if n in index.columns])
    pixels = np.zeros(len(rows))
    if {"width", "height"} <= set(known.column_names):
        pixels = pc.fill_null(pc.multiply(known["width"].cast("int64"), known["height"].cast("int64")), 0).to_numpy()
    order = np.lexsort((rows, -pixels, group, -size))
    rows, group, copy_of = rows[order], group[order], copy_of[order]
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    number = np.cumsum(np.diff(group, prepend=-1) != 0) - 1
    leader = begins[number]
    queries = index.ranking.kept_view(index.vectors_of(rows[begins]).astype(np.float64))
    similarity = SIMILARITY[index.spec.metric](_exact(index, queries, number, rows)).astype(np.float32)
    kind = np.where(copy_of == copy_of[leader], "exact", "near")
    kind[begins] = "first"
    known = known.take(pa.array(order))
    columns = [number, kind.astype(object), known["key"], known["uri"], similarity, known["sha256"]]
    return pa.table(columns, schema=GROUPED)


def _find(parent: list[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = row = parent[parent[row]]
    return row


def _join(parent: list[int], a: int, b: int) -> None:
    """Union of two rows' groups; the smaller row stands for both."""
    a, b = _find(parent, a), _find(parent, b)
    parent[max(a, b)] = min(a, b)

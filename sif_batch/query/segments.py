"""Segments of a release: codes in memory, kept rows mapped, searched as one."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from sif_batch.index.codebooks import encoder_of
from sif_batch.index.rerank_rows import decode_rows, exact_squared_distances, squared_distances
from sif_batch.machine.arithmetic import import_faiss, project
from sif_batch.machine.devices import usable_cores

BLOCK = 8192  # rows compared at a time
SPARE = 32  # rows beyond k that a rough comparison keeps, so that rounding and ties decide nothing
TOGETHER = 4  # queries from which on all cores share the work
ROUGHLY = 4e-5  # error of a rough squared distance, to those of query and row from the origin, with room
MANY = 64  # queries from which on decoding rows once for all of them is cheaper than comparing them as they are kept
RERANKED_AT_ONCE = 2**22  # numbers of candidates' rows in memory, for each thread


@dataclass(frozen=True)
class OperatingPoint:
    """How hard to look: cells probed in each segment (hnsw: candidates that the walk keeps), and candidates re-ranked
    from the rows kept."""

    cells: int
    rerank: int


@dataclass(frozen=True)
class Segment:
    start: int
    size: int
    rows: np.ndarray | None  # (n, w) as kept, mapped
    index: Any  # faiss index, None: exact

    def cell_sizes(self) -> np.ndarray:
        """How many rows each cell holds: (cells,) int64."""
        lists = self.index.invlists
        return np.array([lists.list_size(cell) for cell in range(self.index.nlist)], np.int64)


@contextlib.contextmanager
def threads(queries: int) -> Iterator[None]:
    """All cores for many queries, one for a few. OpenMP keeps this number for each calling thread."""
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(usable_cores() if queries >= TOGETHER else 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Segments:
    """Several segments as one index. unit: whether kept rows are of unit length."""

    def __init__(self, segments: Sequence[Segment], unit: bool, kept_dimension: int):
        self.all, self.unit, self.kept_dimension = list(segments), unit, kept_dimension
        self.starts = np.array([segment.start for segment in segments], np.int64)
        self.size = sum(segment.size for segment in segments)
        self.filled = [segment for segment in segments if segment.size]

    @property
    def keeps_rows(self) -> bool:
        return all(segment.rows is not None for segment in self.filled)

    @functools.cached_property
    def alone_on_one(self) -> bool:
        """Whether faiss searches for one query on one core unasked: to ask takes a tenth of a search."""
        faiss = import_faiss()
        return not any(isinstance(segment.index, faiss.IndexIVFRaBitQFastScan) for segment in self.filled)

    @property
    def is_graph(self) -> bool:
        faiss = import_faiss()
        return any(isinstance(segment.index, faiss.IndexHNSW) for segment in self.filled)

    def candidates(
        self, reduced: np.ndarray, point: OperatingPoint, probes: Sequence[Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `rerank` rows whose codes are nearest: distances (q, r) float32 and rows (q, r) int64, nearest first, -1
        behind the last. reduced: (q, reduced) float32; probes: faiss's own parameters for each segment that is filled.
        """
        distances, rows = [], []
        with contextlib.nullcontext() if len(reduced) == 1 and self.alone_on_one else threads(len(reduced)):
            for number, segment in enumerate(self.filled):
                wanted = min(point.rerank, segment.size)
                how = probes[number] if probes else self._parameters(segment, point, wanted)
                index = encoder_of(segment.index) if probes else segment.index
                found, ids = index.search(reduced, wanted, params=how)
                if ids.size and ids.view(np.uint64).max() >= segment.size:  # a negative one too
                    good = (ids >= 0) & (ids < segment.size)
                    found, ids = np.where(good, found, np.inf), np.where(good, ids, -1 - segment.start)
                distances.append(found)
                rows.append(ids + segment.start)
        if not rows:
            return np.empty((len(reduced), 0), np.float32), np.empty((len(reduced), 0), np.int64)
        if len(rows) == 1:
            return distances[0], rows[0]
        near, row = np.hstack(distances), np.hstack(rows)
        order = np.argsort(near, axis=1, kind="stable")[:, : point.rerank]
        return np.take_along_axis(near, order, 1), np.take_along_axis(row, order, 1)

    def _parameters(self, segment: Segment, point: OperatingPoint, wanted: int) -> Any:
        faiss = import_faiss()
        if isinstance(segment.index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(efSearch=max(point.cells, wanted))
        return faiss.SearchParametersIVF(nprobe=point.cells)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Kept rows, (n, w), by release row."""
        if len(self.all) == 1:
            assert self.all[0].rows is not None
            return self.all[0].rows.take(rows, axis=0, mode="clip")  # three times as fast as an index
        if not len(rows):
            assert self.all[0].rows is not None
            return self.all[0].rows[:0]
        kept = None
        number = np.searchsorted(self.starts, rows, side="right") - 1
        for segment_number in np.unique(number).tolist():
            segment, mine = self.all[segment_number], number == segment_number
            assert segment.rows is not None
            found = segment.rows[rows[mine] - segment.start]
            if kept is None:
                kept = np.empty((len(rows), found.shape[1]), found.dtype)
            kept[mine] = found
        assert kept is not None
        return kept

    def rough_distances(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Squared distances of queries (q, d) to candidates (q, r), -1 for none: (q, r) float32, infinite for those."""
        at_once = max(1, RERANKED_AT_ONCE // max(1, rows.shape[1] * self.kept_dimension))
        starts = range(0, len(queries), at_once)

        def measure(start: int) -> np.ndarray:
            at = rows[start : start + at_once]
            kept = self.take(np.maximum(at, 0).ravel()).reshape(*at.shape, -1)
            apart = squared_distances(kept, queries[start : start + at_once], self.unit)
            return np.where((at >= 0) & np.isfinite(apart), apart, np.inf)

        if len(queries) < TOGETHER:
            return np.concatenate([measure(start) for start in starts])
        with ThreadPoolExecutor(usable_cores()) as pool:
            return np.concatenate(list(pool.map(measure, starts)))

    def exact_distances(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Squared distances of one query (d,) to some rows: (n,) float64, each one's bits independent of the others."""
        return exact_squared_distances(self.take(rows), query, self.unit)

    def probe(
        self,
        reduced: np.ndarray,
        queries: np.ndarray,
        k: int,
        point: OperatingPoint,
        probes: Sequence[Any] | None = None,
    ) -> "Ranked":
        """The k nearest by code, then by kept row: rows and squared distances of each query, equal ones by row."""
        near, rows = self.candidates(reduced, point, probes)
        if not self.keeps_rows:
            return [_in_order(r[r >= 0], n[r >= 0].astype(np.float64), k) for r, n in zip(rows, near, strict=True)]
        if len(queries) < TOGETHER:
            return [self._nearest(query, row[row >= 0], k) for query, row in zip(queries, rows, strict=True)]
        return self.refine(queries, rows, self.rough_distances(queries, rows), k)

    def _nearest(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest to one query of candidates: `refine` with the kept rows read once, and exactly for those alone
        that may be among the k."""
        kept = self.take(rows)
        if len(rows) > k:
            rough = squared_distances(kept[None], query[None], self.unit)[0]
            limit = float(np.partition(rough, k - 1)[k - 1])
            best = np.flatnonzero(rough <= limit + ROUGHLY * (limit + float(query @ query)))
            if len(best) >= k:  # else some are damaged: all are looked at
                rows, kept = rows[best], kept[best]
        return _in_order(rows, exact_squared_distances(kept, query, self.unit), k)

    def refine(self, queries: np.ndarray, rows: np.ndarray, rough: np.ndarray, k: int) -> "Ranked":
        """The k nearest of candidates, by exact distance to the best of them."""
        rows, rough = _best(rows, rough, k + SPARE)
        candidates = ((query, row[np.isfinite(apart)]) for query, row, apart in zip(queries, rows, rough, strict=True))
        return [_in_order(row, self.exact_distances(query, row), k) for query, row in candidates]

    def scan(self, queries: np.ndarray, k: int, all_exact: bool, among: np.ndarray | None = None) -> "Ranked":
        """Compare queries (q, d) float32 with every kept row: roughly first, or all exactly where most are wanted.

        among: (m,) int64, rising, the rows to compare with instead of all.
        """
        rows, apart = self.nearest(queries, k if all_exact else k + SPARE, all_exact, among)
        if all_exact:
            return [_in_order(r, a, k) for r, a in zip(rows, apart, strict=True)]
        return self.refine(queries, rows, apart, k)

    def nearest(
        self, queries: np.ndarray, most: int, all_exact: bool = False, among: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `most` nearest of every kept row, in no order: rows (q, r) int64 and squared distances (q, r), rough
        ones float32, exact ones float64."""
        rows = np.empty((len(queries), 0), np.int64)
        best = np.empty((len(queries), 0), np.float64 if all_exact else np.float32)
        for at, block in self._blocks(among):
            if block.dtype == np.float16 and len(queries) < MANY and not all_exact:
                at, apart = self._compare_as_kept(at, block, queries, most)
            else:
                at, apart = self._compare_decoded(at, block, queries, all_exact)
            rows, best = _best(np.hstack([rows, at]), np.hstack([best, apart]), most)
        return rows, best

    def _compare_decoded(
        self, at: np.ndarray, block: np.ndarray, queries: np.ndarray, exactly: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows `at`, (m,), of which `block` is kept, and their squared distances: (q, m) each."""
        numbers, factor = decode_rows(block, self.unit)
        x = numbers * factor[:, None]
        products = project(x, queries.T.astype(np.float64)).T if exactly else queries @ x.T
        own = np.einsum("ij,ij->i", queries, queries)[:, None]
        apart = 2 - 2 * products if self.unit else own + np.einsum("ij,ij->i", x, x) - 2 * products
        return np.broadcast_to(at, apart.shape), np.where(np.isfinite(apart), apart, np.inf)

    def _compare_as_kept(
        self, at: np.ndarray, block: np.ndarray, queries: np.ndarray, kept: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of float16 rows, without decoding them first, and their squared distances: (q, kept) each, -1 and
        infinite where there are fewer. at, block: see `_compare_decoded`."""
        faiss, codes = import_faiss(), np.ascontiguousarray(block).view(np.uint8)
        coder = faiss.ScalarQuantizer(self.kept_dimension, faiss.ScalarQuantizer.QT_fp16)
        metric, worst = (faiss.METRIC_INNER_PRODUCT, -np.inf) if self.unit else (faiss.METRIC_L2, np.inf)
        found = np.full((len(queries), kept), worst, np.float32)
        rows = np.full((len(queries), kept), -1, np.int64)

        def compare(number: int) -> None:
            scanner = coder.select_InvertedListScanner(metric, None, False, None, False)
            scanner.set_query(faiss.swig_ptr(queries[number]))
            scanner.set_list(0, 0.0)
            best = faiss.swig_ptr(found[number]), faiss.swig_ptr(rows[number])
            scanner.scan_codes(len(at), faiss.swig_ptr(codes), faiss.swig_ptr(at), *best, kept)

        if len(queries) < TOGETHER:
            for number in range(len(queries)):
                compare(number)
        else:
            with ThreadPoolExecutor(usable_cores()) as pool:
                list(pool.map(compare, range(len(queries))))
        return rows, 2 - 2 * found if self.unit else found

    def _blocks(self, among: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows, all or some, and what is kept of them, a block at a time."""
        for segment in self.filled:
            assert segment.rows is not None
            if among is None:
                for start in range(0, segment.size, BLOCK):
                    kept = segment.rows[start : start + BLOCK]
                    yield np.arange(segment.start + start, segment.start + start + len(kept)), kept
                continue
            mine = among[np.searchsorted(among, segment.start) : np.searchsorted(among, segment.start + segment.size)]
            for start in range(0, len(mine), BLOCK):
                at = mine[start : start + BLOCK]
                yield at, segment.rows.take(at - segment.start, axis=0, mode="clip")

    def codes_scanned(self, reduced: np.ndarray, point: OperatingPoint) -> float:
        """The mean number of codes that a query compares with at an operating point."""
        faiss = import_faiss()
        total = 0
        for segment in self.filled:
            if isinstance(segment.index, faiss.IndexHNSW):
                faiss.cvar.hnsw_stats.reset()
                wanted = min(point.rerank, segment.size)
                segment.index.search(reduced, wanted, params=self._parameters(segment, point, wanted))
                total += int(faiss.cvar.hnsw_stats.ndis)
                continue
            _, probed = segment.index.quantizer.search(reduced, point.cells)
            total += int(segment.cell_sizes()[probed[probed >= 0]].sum())
        return total / max(1, len(reduced))


Ranked = list[tuple[np.ndarray, np.ndarray]]


def _best(rows: np.ndarray, apart: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The `kept` least distances of each query, in no order, with their rows: (q, n) each to (q, kept)."""
    if rows.shape[1] <= kept:
        return rows, apart
    top = np.argpartition(apart, kept - 1, axis=1)[:, :kept]
    return np.take_along_axis(rows, top, 1), np.take_along_axis(apart, top, 1)


def _in_order(rows: np.ndarray, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest, equal ones by row; a damaged row is none of them."""
    order = np.lexsort((rows, distances))[:k]
    rows, distances = rows[order], distances[order]
    sound = np.isfinite(distances)
    return (rows, distances) if sound.all() else (rows[sound], distances[sound])

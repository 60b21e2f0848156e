"""A selection of rows, searched as if it were the whole index: what a filter lets through.

A few rows are all compared with. Of many, codes are probed: as many of the selected ones as the operating point scans
of an index, in however many cells they lie, since those nearest to the query may hold none. More of them are re-ranked:
where all lie far from the query, codes tell them apart less well.
"""

import functools
import math
from typing import Any

import numpy as np

from sif_batch.machine.arithmetic import import_faiss
from sif_batch.query.segments import OperatingPoint, Ranked, Segment, Segments, threads

FEW = 2**15  # so many kept rows are sooner compared with than codes are probed
RERANKED = 8  # times as many as of an index, see docs/decisions.md
FACTOR = 4  # by which a walk that found too few is repeated farther
FARTHEST = 1 / 4  # of all rows, that a walk looks at


class Selection:
    """Some rows of a release. rows: (m,) int64, rising."""

    def __init__(self, segments: Segments, rows: np.ndarray):
        self.rows, self._segments = rows, segments
        self._inside = np.zeros(segments.size, bool)
        self._inside[rows] = True

    def __len__(self) -> int:
        return len(self.rows)

    def search(self, reduced: np.ndarray, queries: np.ndarray, k: int, point: OperatingPoint | None) -> Ranked:
        """The k nearest selected rows of each query, and squared distances, as `Segments.probe` gives them.

        point: how hard to look where codes are probed, None: compare with every row.
        """
        segments = self._segments
        if point is None or (segments.keeps_rows and len(self) <= FEW):
            return segments.scan(queries, k, all_exact=k >= len(self), among=self.rows)
        if segments.is_graph and segments.keeps_rows:
            rows = self._walk(reduced, point)
            if rows is None:
                return segments.scan(queries, k, all_exact=k >= len(self), among=self.rows)
            return segments.refine(queries, rows, segments.rough_distances(queries, rows), k)
        if segments.keeps_rows:
            point = OperatingPoint(point.cells, min(len(self), RERANKED * point.rerank))
        probes = [self._probe(segment, point, reduced) for segment in segments.filled]
        return segments.probe(reduced, queries, k, point, probes)

    def _walk(self, reduced: np.ndarray, point: OperatingPoint) -> np.ndarray | None:
        """Of a graph: the selected ones of the nearest rows, (q, r), -1 for the others. None: too few are near."""
        size, wanted = self._segments.size, min(point.rerank, len(self))
        looked_at = math.ceil(2 * wanted * size / len(self))
        while looked_at <= FARTHEST * size:
            _, rows = self._segments.candidates(reduced, OperatingPoint(max(point.cells, looked_at), looked_at))
            rows = np.where(self._inside[rows] & (rows >= 0), rows, -1)
            if (rows >= 0).sum(axis=1).min() >= wanted:
                return rows
            looked_at *= FACTOR
        return None

    def _probe(self, segment: Segment, point: OperatingPoint, reduced: np.ndarray) -> Any:
        """How faiss is to search a segment: the selected rows alone, in as many cells as they take."""
        faiss = import_faiss()
        chosen = _bitmap(self._inside[segment.start : segment.start + segment.size])
        if self._segments.is_graph:
            return faiss.SearchParameters(sel=chosen)
        inside, all_rows = self._by_cell[segment.start]
        with threads(len(reduced)):
            _, cells = segment.index.quantizer.search(reduced, segment.index.nlist)
        scanned = all_rows[cells[:, : point.cells]].sum(axis=1)
        wanted = np.minimum(np.maximum(scanned, point.rerank), inside.sum())
        reached = np.cumsum(inside[cells], axis=1)
        probed = 1 + (reached < wanted[:, None]).sum(axis=1).max()
        return faiss.SearchParametersIVF(nprobe=max(point.cells, int(probed)), sel=chosen)

    @functools.cached_property
    def _by_cell(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """How many selected rows, and how many rows, each cell of a segment holds, (cells,), by the segment's first."""
        return {segment.start: self._count(segment) for segment in self._segments.filled}

    def _count(self, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
        faiss, lists = import_faiss(), segment.index.invlists
        inside = self._inside[segment.start : segment.start + segment.size]
        sizes = segment.cell_sizes()
        counts = np.zeros(len(sizes), np.int64)
        for cell in np.flatnonzero(sizes).tolist():
            counts[cell] = np.count_nonzero(inside[faiss.rev_swig_ptr(lists.get_ids(cell), int(sizes[cell]))])
        return counts, sizes


def _bitmap(inside: np.ndarray) -> Any:
    """inside: (n,) bool as faiss takes it."""
    return import_faiss().IDSelectorBitmap(np.packbits(inside, bitorder="little"))

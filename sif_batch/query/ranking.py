"""Ranking: vectors as they are compared, to their nearest rows, at an operating point."""

import math
from typing import Any

import numpy as np

from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer_spec import QuantizerSpec
from sif_batch.index.similarity import SIMILARITY, Transform
from sif_batch.machine.arithmetic import project_few
from sif_batch.query.filtered_search import Selection
from sif_batch.query.segments import OperatingPoint, Ranked, Segments

SCORES_AT_ONCE = 2**24  # ranked rows in memory: queries x k
PER_HIT = 4  # codes scanned and rows re-ranked for each hit asked for, where that is more than the operating point


class Ranking:
    """The rows of a release, to be ranked by their similarity to compared vectors, (n, d) float64.

    point: the operating point of the release; None where its codes were not measured.
    """

    def __init__(self, segments: Segments, transform: Transform, spec: QuantizerSpec, point: OperatingPoint | None):
        self.segments, self.transform, self.spec, self.point = segments, transform, spec, point
        self._size = sum(segment.size for segment in segments.all)
        self._reducer = None
        if spec.reduced and not spec.whitening:
            matrix = transform.coder
            self._reducer = matrix.astype(np.float32), (transform.mean @ matrix).astype(np.float32)

    def ranked(
        self,
        y: np.ndarray,
        k: int,
        without: np.ndarray | None,
        point: OperatingPoint | None = None,
        selection: Selection | None = None,
    ) -> Ranked:
        """For each of y, (n, d) float64, the rows and similarities of its k nearest, best first, equal ones by row.

        without: (n,) or (n, w) rows to leave out for each, -1 for none. Raises SifBatchError for k < 1.
        """
        if k < 1:
            raise SifBatchError(f"k is {k}, expected at least 1")
        findable = self._size if selection is None else len(selection)
        if not findable:
            return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(y)
        left_out = np.empty((len(y), 0), np.int64) if without is None else without.reshape(len(y), without[:1].size)
        wanted = min(k + left_out.shape[1], findable)  # more, for the rows to leave out
        exhaustive, point = self._effort(wanted, point or self.point)
        found: Ranked = []
        at_once = max(1, min(256, SCORES_AT_ONCE // wanted))
        for start in range(0, len(y), at_once):
            block = y[start : start + at_once]
            queries = self.kept_view(block)
            if selection is not None:
                ranked = selection.search(self.reduced(block), queries, wanted, None if exhaustive else point)
            elif exhaustive:
                ranked = self.segments.scan(queries, wanted, PER_HIT * wanted >= self._size)
            else:
                ranked = self.segments.probe(self.reduced(block), queries, wanted, point)
            for i, (rows, apart) in enumerate(ranked, start):
                kept: Any = slice(k)
                if left_out.shape[1]:
                    kept = np.flatnonzero((rows[:, None] != left_out[i]).all(axis=1))[:k]
                found.append((rows[kept], SIMILARITY[self.spec.metric](apart[kept]).astype(np.float32)))
        return found

    def reduced(self, y: np.ndarray) -> np.ndarray:
        """Compared vectors as codes are asked: (n, reduced) float32."""
        if self._reducer is None:
            return np.ascontiguousarray(y[:, self.transform.coded], np.float32)
        matrix, offset = self._reducer
        return y.astype(np.float32) @ matrix - offset

    def kept_view(self, y: np.ndarray) -> np.ndarray:
        """Compared vectors as kept rows are asked: (n, kept_dimension) float32."""
        cut = self.spec.row_dimension
        return self.transform.reduce(y, cut, project_few) if cut else y.astype(np.float32)

    def codes_scanned(self, y: np.ndarray, point: OperatingPoint) -> float:
        """The mean number of codes that a query, of y, compares with at an operating point."""
        return self.segments.codes_scanned(self.reduced(y), point)

    def _effort(self, k: int, point: OperatingPoint | None) -> tuple[bool, OperatingPoint]:
        """Whether to compare with every row, and the operating point that k needs at least."""
        if self.spec.family == "flat" or (point is None and self.segments.keeps_rows):
            return True, OperatingPoint(0, 0)
        rows, all_cells = self._size, self.spec.cells or self._size
        point = point or OperatingPoint(all_cells, rows)
        cells = min(all_cells, max(point.cells, math.ceil(PER_HIT * k * all_cells / rows)))
        rerank = min(rows, max(point.rerank, PER_HIT * k))
        return rerank == rows and cells == all_cells and self.segments.keeps_rows, OperatingPoint(cells, rerank)

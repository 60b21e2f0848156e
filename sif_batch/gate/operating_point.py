"""The operating point: the cheapest, in codes scanned, that surely finds what was asked for; and its curve."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from sif_batch.index.quantizer import Quantizer
from sif_batch.index.recall import NEIGHBOURS, Truth, lower_and_upper, near_enough
from sif_batch.query.index import Index
from sif_batch.query.ranking import PER_HIT
from sif_batch.query.segments import OperatingPoint

SCANNED_AT_LEAST = 4096  # codes: to scan fewer saves no time that anyone can measure
RERANKED = (50, 70, 100, 140, 200, 280, 400, 560, 800)
LITTLE = 0.001  # recall: to re-rank deeper for less is to no purpose
RERANK_COST = 40  # codes whose scanning takes as long as re-ranking a row
TIMED, TIMED_OF_CURVE = 50, 20  # queries, of the point in use and of any other


@dataclass(frozen=True)
class Measured:
    """A point of the curve. recall: at k; lower: its lower confidence bound; cost: in codes."""

    point: OperatingPoint
    codes_scanned: float
    recall: float
    lower: float

    @property
    def cost(self) -> float:
        return self.codes_scanned + RERANK_COST * self.point.rerank

    def describe(self) -> dict[str, Any]:
        return {
            "cells": self.point.cells,
            "rerank": self.point.rerank,
            "codes_scanned": round(self.codes_scanned, 1),
            "recall": round(self.recall, 4),
            "lower": round(self.lower, 4),
        }


def choose_point(curve: list[Measured], target: float) -> OperatingPoint | None:
    """The cheapest whose lower bound meets the target; else the best there is; None: exact."""
    meets = [measured for measured in curve if measured.lower >= target]
    if meets:
        return min(meets, key=lambda m: (m.cost, m.point.cells)).point
    return max(curve, key=lambda m: (m.recall, -m.cost)).point if curve else None


def best_points(curve: list[Measured]) -> list[Measured]:
    """Those that no cheaper one beats, by rising cost."""
    kept: list[Measured] = []
    for measured in sorted(curve, key=lambda m: (m.cost, -m.recall)):
        if not kept or measured.recall > kept[-1].recall:
            kept.append(measured)
    return kept


def measure_curve(index: Index, quantizer: Quantizer, truth: Truth, k: int, target: float) -> list[Measured]:
    """Recall@k over cells, doubling, and re-ranked rows, until one doubling beyond the target or nothing is gained;
    then once more between the last that missed it and the first that met it."""
    if quantizer.spec.family == "flat" or not len(index):
        return []
    reranks = sorted({min(len(index), max(r, PER_HIT * (k + 1))) for r in RERANKED})
    if not index.segments.keeps_rows:
        reranks = reranks[:1]
    curve: list[Measured] = []
    best, last, first_met = -1.0, 0, 0
    for cells in _levels(index, reranks[0]):
        level = _measure_level(index, quantizer, truth, k, cells, reranks, 1.0 if first_met else target)
        curve += level
        reached = max((measured.recall for measured in level), default=0.0)
        if first_met or reached <= best:
            break
        if any(measured.lower >= target for measured in level):
            first_met = cells
        else:
            last = cells
        best = reached
    between = round(math.sqrt(last * first_met))
    if last < between < first_met:
        curve += _measure_level(index, quantizer, truth, k, between, reranks, target)
    return curve


def _levels(index: Index, fewest_kept: int) -> list[int]:
    """Cells to try, or, of a graph, candidates that the walk keeps."""
    if index.segments.is_graph:
        return [fewest_kept * 2**i for i in range(6)]
    cells = index.spec.cells
    fewest = min(cells, math.ceil(SCANNED_AT_LEAST * cells / max(1, len(index))))
    return sorted({min(fewest * 2**i, cells) for i in range(cells.bit_length() + 1)})


def _measure_level(
    index: Index, quantizer: Quantizer, truth: Truth, k: int, cells: int, reranks: list[int], target: float
) -> list[Measured]:
    """Depths of re-ranking for one number of cells, from one search, until the target is met or little is gained."""
    reduced, queries = index.ranking.reduced(quantizer.asked), index.ranking.kept_view(quantizer.asked)
    if index.segments.is_graph:  # the walk keeps no fewer than are re-ranked
        reranks = [rerank for rerank in reranks if rerank <= cells]
    near, rows = index.segments.candidates(reduced, OperatingPoint(cells, reranks[-1] + 1))
    others = np.argsort(rows == truth.own[:, None], axis=1, kind="stable")[:, : reranks[-1]]  # itself comes last
    rows, near = np.take_along_axis(rows, others, 1), np.take_along_axis(near, others, 1)
    asked = [query for query in range(len(rows)) if len(truth.rows[query])]
    if not asked:
        return []
    rows, near, queries = rows[asked], near[asked], queries[asked]
    good = np.stack([np.isin(row, near_enough(truth, query, k)) for row, query in zip(rows, asked, strict=True)])
    wanted = np.array([min(k, len(truth.rows[query])) for query in asked])
    measured: list[Measured] = []
    apart = near[:, :0]
    for rerank in reranks:
        more = slice(apart.shape[1], rerank)
        if index.segments.keeps_rows:
            apart = np.hstack([apart, index.segments.rough_distances(queries, rows[:, more])])
        else:
            apart = near[:, :rerank]
        best = np.argsort(apart, axis=1, kind="stable")[:, :k]
        hits = np.take_along_axis(good[:, :rerank], best, 1).sum(axis=1)
        shares = np.minimum(hits, wanted) / wanted
        point = OperatingPoint(cells, rerank)
        scanned = measured[0].codes_scanned if measured else index.segments.codes_scanned(reduced, point)
        measured.append(Measured(point, scanned, float(shares.mean()), lower_and_upper(shares)[0]))
        gained = measured[-1].recall - (measured[-2].recall if len(measured) > 1 else 0)
        if measured[-1].lower >= target or gained < LITTLE:
            break
    return measured


def time_point(index: Index, quantizer: Quantizer, point: OperatingPoint | None, k: int, queries: int = TIMED) -> float:
    """Milliseconds of a query asked alone, the median of some."""
    asked = quantizer.queries[:queries].astype(np.float32)
    elapsed = []
    for query in asked:
        started = time.perf_counter()
        index.ranked(query[None], min(k, NEIGHBOURS), None, point)
        elapsed.append(1000 * (time.perf_counter() - started))
    return float(np.median(elapsed)) if elapsed else 0.0

"""The gate: nothing is published that was not measured on held-out queries against exact neighbours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sif_batch.codes import query_distances
from sif_batch.config import GateSettings
from sif_batch.parts import read_embeddings
from sif_batch.quantizer import NEIGHBOURS, Quantizer, normalise
from sif_batch.query import Index, OperatingPoint
from sif_batch.release import Placed
from sif_batch.storage import Store

K = 10
TARGET_RECALL = 0.95  # what the operating point is chosen for; the gate itself asks for less
RERANK = 200
SCANNED_AT_LEAST = 4096
BLOCK = 65_536
TIE = 1e-6  # relative: distances this near count as equal


@dataclass(frozen=True)
class Truth:
    """The exact nearest live rows of each held-out query, nearest first, the query itself left out.

    rows: one (m,) int64 array of release rows a query, all as near as the K-th among them; distances: the same,
    squared distances of unit vectors; own: (q,) the query's own row in the release, -1 when it is not in it.
    """

    rows: list[np.ndarray]
    distances: list[np.ndarray]
    own: np.ndarray


def exact_neighbours(
    store: Store, quantizer: Quantizer, parts: Sequence[str], placed: Sequence[Placed], own: np.ndarray
) -> Truth:
    """Merge the neighbours that each part keeps, and look again into a part whose list may have been too short.

    parts: the names of the parts that `placed` is about; own: see Truth.
    """
    count = len(quantizer.queries)
    rows: list[list[np.ndarray]] = [[] for _ in range(count)]
    distances: list[list[np.ndarray]] = [[] for _ in range(count)]
    last = np.full((count, len(placed)), np.inf, np.float32)  # where a part's list breaks off
    for number, part in enumerate(placed):
        order = np.argsort(part.near[:, 1], kind="stable")
        bounds = np.searchsorted(part.near[order, 1], np.arange(count + 1))
        for query in range(count):
            at = order[bounds[query] : bounds[query + 1]]
            if len(at) < len(part.released):
                last[query, number] = part.near_distance[at].max(initial=0)
            live = part.released[part.near[at, 0]]
            rows[query].append(live[live >= 0])
            distances[query].append(part.near_distance[at][live >= 0])
    merged = [_merge(r, d, o) for r, d, o in zip(rows, distances, own, strict=True)]
    short = np.array([max(d[NEIGHBOURS - 1], nearly(d, K)) if len(d) >= NEIGHBOURS else np.inf for _, d in merged])
    for number in np.flatnonzero((last < short[:, None]).any(axis=0)).tolist():
        again = np.flatnonzero(last[:, number] < short)
        released = placed[number].released
        _, vectors = read_embeddings(store, quantizer.spec.encoder, parts[number])
        exact = query_distances(quantizer.queries[again], normalise(vectors))
        for place, query in enumerate(again.tolist()):
            rows[query][number] = released[released >= 0]
            distances[query][number] = exact[released >= 0, place]
            merged[query] = _merge(rows[query], distances[query], own[query])
    return Truth([r for r, _ in merged], [d for _, d in merged], own)


def _merge(rows: list[np.ndarray], distances: list[np.ndarray], own: int) -> tuple[np.ndarray, np.ndarray]:
    row, distance = np.concatenate(rows), np.concatenate(distances)
    order = np.lexsort((row, distance))
    order = order[row[order] != own]
    ties = np.searchsorted(distance[order], nearly(distance[order], K), side="right")
    order = order[: max(2 * NEIGHBOURS, ties)]  # of many copies of one image each is as right as the others
    return row[order], distance[order]


def nearly(distances: np.ndarray, k: int) -> float:
    """How far a row may be to count as near as the k-th. distances: rising, (n,) float32."""
    return float(distances[min(k, len(distances)) - 1]) * (1 + TIE) + TIE if len(distances) else 0.0


def recall(truth: Truth, found: Sequence[np.ndarray], k: int = K) -> float | None:
    """The mean share of the k nearest that were found, counted by distance: an equally near row is as good.

    None where there is no query with a neighbour.
    """
    shares = []
    for rows, distances, got in zip(truth.rows, truth.distances, found, strict=True):
        wanted = min(k, len(rows))
        if wanted:
            near_enough = rows[distances <= nearly(distances, k)]
            shares.append(min(wanted, int(np.isin(got[:k], near_enough).sum())) / wanted)
    return float(np.mean(shares)) if shares else None


def choose_point(index: Index, quantizer: Quantizer, truth: Truth) -> OperatingPoint | None:
    """The fewest cells, doubling, whose recall meets the target; all cells if none does. None: exact.

    It begins where a query scans `SCANNED_AT_LEAST` codes: to scan fewer saves no time that anyone can measure.
    """
    cells = quantizer.spec.cells
    if not cells:
        return None
    rerank = min(len(index), RERANK)
    fewest = min(cells, math.ceil(SCANNED_AT_LEAST * cells / max(1, len(index))))
    tried = sorted({min(fewest * 2**i, cells) for i in range(cells.bit_length() + 1)})
    for probed in tried:
        point = OperatingPoint(probed, rerank)
        reached = recall(truth, ask(index, quantizer, truth, point))
        if reached is not None and reached >= TARGET_RECALL:
            return point
    return OperatingPoint(cells, rerank)


def ask(index: Index, quantizer: Quantizer, truth: Truth, point: OperatingPoint | None) -> list[np.ndarray]:
    """The K rows that the release gives for each held-out query, best first."""
    return [rows for rows, _ in index.ranked(quantizer.queries.astype(np.float32), K, truth.own, point)]


def judge(settings: GateSettings, manifest: dict[str, Any]) -> list[str]:
    """Why a sealed candidate may not be published; empty when it may."""
    reasons = []
    listed, failed = manifest["listed"], manifest["failed"]
    if failed > settings.max_failures * listed:
        reasons.append(
            f"{failed} of {listed} images failed ({failed / listed:.1%}), --max-failures is {settings.max_failures:g}"
        )
    measured = manifest["recall"]["at_10"]
    if measured is not None and measured < settings.min_recall:
        reasons.append(f"recall@10 is {measured:g}, at least {settings.min_recall:g} is asked for")
    if not manifest["finite"]:
        reasons.append("some vectors are not finite")
    return reasons


def all_finite(index: Index) -> bool:
    """Whether every kept row is finite; rows of integers are."""
    return all(
        bool(np.isfinite(rows[start : start + BLOCK]).all())
        for rows in index.kept_rows()
        if rows.dtype.kind == "f"
        for start in range(0, len(rows), BLOCK)
    )

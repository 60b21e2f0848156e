"""Recall: the share of a query's nearest that were found, counted by distance, and how sure that figure is."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 100  # the truth is kept to this depth
TIE = 1e-6  # relative: distances this near count as equal
RESAMPLED = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Truth:
    """The exact nearest live rows of each held-out query, nearest first, the query itself left out.

    rows: one (m,) int64 array of release rows a query, all as near as the NEIGHBOURS-th among them; distances: the
    same, squared distances of compared vectors; own: (q,) the query's own row in the release, -1 when it is not in it.
    """

    rows: list[np.ndarray]
    distances: list[np.ndarray]
    own: np.ndarray


def nearly(distances: np.ndarray, k: int) -> float:
    """How far a row may be to count as near as the k-th. distances: rising, (n,) float32."""
    return float(distances[min(k, len(distances)) - 1]) * (1 + TIE) + TIE if len(distances) else 0.0


def near_enough(truth: Truth, query: int, k: int) -> np.ndarray:
    """The rows that are right answers among the k nearest of a query."""
    distances = truth.distances[query]
    return truth.rows[query][distances <= nearly(distances, k)]


def shares(truth: Truth, found: Sequence[np.ndarray], k: int) -> np.ndarray:
    """For each query that has neighbours, the share of the k nearest that were found: an equally near row is as good.

    found: rows by query, best first; the first k count.
    """
    values = []
    for query, got in enumerate(found):
        wanted = min(k, len(truth.rows[query]))
        if wanted:
            values.append(min(wanted, int(np.isin(got[:k], near_enough(truth, query, k)).sum())) / wanted)
    return np.array(values)


def recall(truth: Truth, found: Sequence[np.ndarray], k: int = 10) -> float | None:
    """The mean share; None where there is no query with a neighbour."""
    values = shares(truth, found, k)
    return float(values.mean()) if len(values) else None


def lower_and_upper(values: np.ndarray) -> tuple[float, float]:
    """The bounds of the mean of (n,) values that a bootstrap over them is 95 % sure of (percentiles; Efron 1979).

    Always the same for the same values.
    """
    low, high = np.quantile(
        _resamples(len(values)) @ values / len(values), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    )
    return float(low), float(high)


@functools.lru_cache(maxsize=2)
def _resamples(n: int) -> np.ndarray:
    """How often each of n values is drawn in each resample: (RESAMPLED, n) float64."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLED).astype(np.float64)

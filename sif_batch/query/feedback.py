"""Asking again: what a query becomes by several images, by hits marked right or wrong, by its own first hits.

All vectors are as they are compared (`Transform.apply`). Every result is a weighted mean whose weights have the sum 1,
at unit length where vectors are compared so.
"""

import numpy as np

from sif_batch.index.similarity import normalise

RIGHT = 4.0  # weight of the mean of what was marked right, where the query has 1
WRONG = 0.5  # how far to go away from the mean of what was marked wrong, in distances to it
ALPHA = 1.0  # the power of a hit's similarity that it is averaged in with


def merge(vectors: np.ndarray, unit: bool, weights: np.ndarray | None = None) -> np.ndarray:
    """Several vectors, (n, d), as one query: (d,) float64. weights: (n,), by default the same for each."""
    weights = np.ones(len(vectors)) if weights is None else weights.astype(np.float64)
    mean = weights @ vectors.astype(np.float64) / weights.sum()
    return normalise(mean[None])[0] if unit else mean


def learn(
    query: np.ndarray | None,
    right: np.ndarray,
    wrong: np.ndarray,
    unit: bool,
    toward: float = RIGHT,
    away: float = WRONG,
) -> np.ndarray:
    """A query after its hits were marked: towards the right ones and away from the wrong ones. (d,) float64.

    query: (d,), None where the marks alone ask; right: (r, d); wrong: (w, d). Rocchio: Relevance feedback in
    information retrieval (1971), with weights that keep the sum 1, so that it goes with Euclidean distance too.
    """
    near = [] if query is None else [query]
    weights = [1.0] * len(near)
    if len(right):
        near.append(right.astype(np.float64).mean(axis=0))
        weights.append(toward)
    centre = merge(np.stack(near), unit, np.array(weights))
    if not len(wrong):
        return centre
    moved = centre + away * (centre - wrong.astype(np.float64).mean(axis=0))
    return normalise(moved[None])[0] if unit else moved


def expand(
    query: np.ndarray, hits: np.ndarray, similarities: np.ndarray, unit: bool, alpha: float = ALPHA
) -> np.ndarray:
    """A query with its first hits averaged in, each by its similarity to the power of alpha: (d,) float64.

    query: (d,); hits: (m, d); similarities: (m,). Radenovic, Tolias, Chum: Fine-tuning CNN image retrieval with no
    human annotation (2018), section 3.3; alpha 0 is the plain mean.
    """
    weights = np.concatenate([[1.0], np.maximum(similarities, 0) ** alpha])
    return merge(np.concatenate([query[None], hits]), unit, weights)

"""Rankings to judge: those of a release, and those of exact search among any vectors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sif_batch.index.similarity import Transform
from sif_batch.query.index import Index

BLOCK = 16  # queries at a time: each is compared with every row


@dataclass(frozen=True)
class Space:
    """Vectors to search exactly: a row is as near to a query as rows @ query - bias is large.

    rows: (n, d) float32; bias: (n,) float32; asked: (n, d) float32, the rows as queries.
    """

    rows: np.ndarray
    bias: np.ndarray
    asked: np.ndarray


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)


def cosine(vectors: np.ndarray) -> Space:
    x = _unit(vectors.astype(np.float32))
    return Space(x, np.zeros(len(x), np.float32), x)


def pearson(vectors: np.ndarray) -> Space:
    """The cosine of vectors each less its own mean."""
    x = vectors.astype(np.float32)
    return cosine(x - x.mean(axis=1, keepdims=True))


def euclidean(vectors: np.ndarray, queries: np.ndarray | None = None) -> Space:
    """By distance: |q - x|^2 / 2 = |q|^2 / 2 - (x @ q - |x|^2 / 2). All less their mean, so that float32 is enough.

    queries: (n, d), what each row asks with where that is not itself.
    """
    x = vectors.astype(np.float64)
    mean = x.mean(axis=0)
    x = x - mean
    asked = x if queries is None else queries.astype(np.float64) - mean
    return Space(x.astype(np.float32), ((x * x).sum(axis=1) / 2).astype(np.float32), asked.astype(np.float32))


def compared(vectors: np.ndarray, transform: Transform) -> Space:
    """By the similarity that a release is configured for."""
    y = transform.apply(vectors)
    return cosine(y) if transform.unit else euclidean(y)


METRICS: dict[str, Callable[[np.ndarray], Space]] = {"cosine": cosine, "euclidean": euclidean, "pearson": pearson}


def rank_exactly(space: Space, queries: np.ndarray) -> Iterator[np.ndarray]:
    """For each query row all other rows, (n - 1,) int64, nearest first, equal ones by row."""
    for start in range(0, len(queries), BLOCK):
        rows = queries[start : start + BLOCK]
        nearness = space.asked[rows] @ space.rows.T - space.bias
        order = np.argsort(-nearness, axis=1, kind="stable")
        for ranking, query in zip(order, rows, strict=True):
            yield ranking[ranking != query]


def rank_by_release(index: Index, queries: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """For each query row the k rows that the release answers with at its operating point, the query left out."""
    for start in range(0, len(queries), BLOCK):
        rows = queries[start : start + BLOCK]
        yield from (found for found, _ in index.neighbours_of(rows, k))

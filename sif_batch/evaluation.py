"""How good rankings are, judged by labels: precision, recall and F1 at k, mAP, R-precision, MRR.

Definitions as in Manning, Raghavan, Schuetze: Introduction to Information Retrieval (2008), chapter 8. Relevant to
a query are the other images of its label; each figure is the mean over queries that have at least one.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sif_batch.config import SifBatchError
from sif_batch.query import Index

CUTS = (1, 5, 10)
MAX_QUERIES = 10_000
BLOCK = 16  # queries at a time: each is compared with every row


def labels_of(index: Index, name: str) -> np.ndarray:
    """The label of each row, (n,) object: `folder` is the folder's last component, others a column as it is."""
    values = index.column(name).to_pylist()
    if name == "folder":
        values = [value.rpartition("/")[2] for value in values]
    labels = np.array(values, object)
    if len(set(values)) < 2:
        raise SifBatchError(f"all images have the same {name}: there is nothing to judge by")
    return labels


def choose_queries(labels: np.ndarray, at_most: int = MAX_QUERIES) -> np.ndarray:
    """Rows to ask with: those whose label has another row; a prefix in order of hash, so a uniform sample."""
    _, inverse, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1)[:at_most]


def judge_rankings(
    rankings: Iterable[np.ndarray], short: Iterable[np.ndarray], queries: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """The figures of some rankings.

    rankings: for each query its rows, best first, over the whole collection (rows that are missing count as not
    found); short: the same as a user gets them for k = 10; queries: (q,) rows, labels: (n,).
    """
    sums = dict.fromkeys(("map", "r_precision", "mrr"), 0.0)
    at = {cut: np.zeros(3) for cut in CUTS}
    count = 0
    sizes = dict(zip(*np.unique(labels.astype(str), return_counts=True), strict=True))
    for query, ranking, first in zip(queries, rankings, short, strict=True):
        relevant = int(sizes[str(labels[query])]) - 1
        hits = labels[ranking] == labels[query]
        found = np.cumsum(hits)
        ranks = np.flatnonzero(hits) + 1
        sums["map"] += float((found[hits] / ranks).sum()) / relevant
        sums["r_precision"] += float(hits[:relevant].sum()) / relevant
        sums["mrr"] += 1 / float(ranks[0]) if len(ranks) else 0.0
        for cut in CUTS:
            good = float((labels[first[:cut]] == labels[query]).sum())
            precision, recall = good / cut, good / relevant
            at[cut] += (precision, recall, 2 * precision * recall / (precision + recall) if good else 0)
        count += 1
    if not count:
        raise SifBatchError("no image shares its label with another: there is nothing to judge by")
    table = {cut: values / count for cut, values in at.items()}
    figures: dict[str, Any] = {
        name: {str(cut): round(float(values[i]), 6) for cut, values in table.items()}
        for i, name in enumerate(("precision", "recall", "f1"))
    }
    return figures | {name: round(value / count, 6) for name, value in sums.items()}


def evaluate_release(index: Index, labels: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """The figures of a release at its operating point; a query is itself left out."""

    def ask(k: int) -> Iterator[np.ndarray]:
        for start in range(0, len(queries), BLOCK):
            rows = queries[start : start + BLOCK]
            yield from (found for found, _ in index.ranked(index.vectors_of(rows), k, rows))

    return judge_rankings(ask(len(index)), ask(max(CUTS)), queries, labels)


def evaluate_exact(vectors: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """The figures of exact float32 cosine search. vectors: (n, d) as the encoder gave them."""
    x = vectors.astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)

    def rankings() -> Iterator[np.ndarray]:
        for start in range(0, len(queries), BLOCK):
            rows = queries[start : start + BLOCK]
            similarities = x[rows] @ x.T
            similarities[np.arange(len(rows)), rows] = -np.inf
            yield from np.argsort(-similarities, axis=1, kind="stable")[:, :-1]

    found, same = itertools.tee(rankings())
    return judge_rankings(found, same, queries, labels)

"""The truth: exact nearest live rows of the held-out queries, merged from what each part keeps of them."""

import itertools

import numpy as np

from sif_batch.index.quantize_part import query_distances
from sif_batch.index.quantizer import Quantizer
from sif_batch.index.recall import NEIGHBOURS, TIE, Truth, nearly
from sif_batch.ledger.parts import read_embeddings
from sif_batch.release.assembly import Assembled
from sif_batch.release.placement import Placement
from sif_batch.storage.store import Store


def exact_neighbours(
    store: Store, quantizer: Quantizer, placement: Placement, assembled: Assembled, own: np.ndarray
) -> Truth:
    """Merge the neighbours that each part keeps, and look again into a part whose list may have been too short.

    own: see Truth.
    """
    count = len(quantizer.queries)
    order = np.lexsort((assembled.row, assembled.distance, assembled.query))
    bounds = np.searchsorted(assembled.query[order], np.arange(count + 1))
    places = [order[start:end] for start, end in itertools.pairwise(bounds.tolist())]
    found = [(assembled.row[at], assembled.distance[at], assembled.part[at]) for at in places]
    merged = [_nearest(row, distance, o) for (row, distance, _), o in zip(found, own, strict=True)]
    # How near the last neighbour is at most: a list that breaks off before it may lack one.
    reach = np.array([nearly(d, NEIGHBOURS) if len(d) >= NEIGHBOURS else np.inf for _, d in merged], np.float32)
    short = assembled.last < reach if len(placement.used) else np.empty((0, count), bool)
    again: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(count)]
    for place in np.flatnonzero(short.any(axis=1)).tolist():
        number = placement.used[place]
        numbers, vectors = read_embeddings(store, quantizer.spec.encoder, placement.parts[number])
        y, released = quantizer.transform.apply(vectors), placement.released(number, numbers)
        y, released = y[released >= 0], released[released >= 0]
        for query in np.flatnonzero(short[place]).tolist():
            exact = query_distances(quantizer, query, y)
            near = exact <= min(float(reach[query]), _edge(exact))
            again[query].append((released[near], exact[near]))
    for query in np.flatnonzero(short.any(axis=0)).tolist():
        row, distance, part = found[query]
        kept = ~np.isin(part, np.array(placement.used)[short[:, query]])
        rows, distances = zip((row[kept], distance[kept]), *again[query], strict=True)
        merged[query] = _nearest(np.concatenate(rows), np.concatenate(distances), own[query])
    return Truth([r for r, _ in merged], [d for _, d in merged], own)


def _edge(distances: np.ndarray) -> float:
    """How far the rows of one part that matter lie at most."""
    if len(distances) <= 2 * NEIGHBOURS:
        return np.inf
    return float(np.partition(distances, 2 * NEIGHBOURS - 1)[2 * NEIGHBOURS - 1]) * (1 + TIE) + TIE


def _nearest(row: np.ndarray, distance: np.ndarray, own: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows as near as the NEIGHBOURS-th, nearest first, without the query's own."""
    order = np.lexsort((row, distance))
    order = order[row[order] != own]
    ties = np.searchsorted(distance[order], nearly(distance[order], NEIGHBOURS), side="right")
    return row[order[:ties]], distance[order[:ties]]

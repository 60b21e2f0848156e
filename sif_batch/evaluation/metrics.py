"""How good rankings are, judged by labels or pairs: precision, recall and F1 at k, mAP, R-precision, MRR.

Definitions as in Manning, Raghavan, Schuetze: Introduction to Information Retrieval (2008), chapter 8. Each figure is
the mean over queries to which at least one image is relevant; its interval is the percentile bootstrap's over queries
(Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sif_batch.errors import SifBatchError
from sif_batch.evaluation.rankings import METRICS, Space, rank_by_release, rank_exactly
from sif_batch.evaluation.relevance import Relevance
from sif_batch.query.index import Index

CUTS = (1, 5, 10)
NEAREST = 10  # whose share that stays is counted
MAX_QUERIES = 10_000
MOST_COMPARED = 500_000_000  # queries x rows, where nobody asks for a number of queries
RESAMPLED, CONFIDENCE, SEED, AT_ONCE = 1000, 0.95, 0, 50
SPARE = 20

Figures = dict[str, Any]
PerQuery = dict[str, np.ndarray]  # (q,) float64 of map, r_precision, mrr, precision@k, recall@k, f1@k, curve@recall
LEVELS = tuple(f"{level / 10:.1f}" for level in range(11))  # recall where precision is interpolated


@dataclass(frozen=True)
class Trial:
    """Rows to ask with, (q,) int64, and the rows that can be found, (n,) bool."""

    queries: np.ndarray
    inside: np.ndarray

    def restrict(self, ranking: np.ndarray) -> np.ndarray:
        return ranking if self.inside.all() else ranking[self.inside[ranking]]


def plan_trials(relevance: Relevance, at_most: int, folds: int = 1, only_first: bool = False) -> list[Trial]:
    """Leave-one-out (1), or folds: each in turn asks among the rest. only_first: the first fold alone, a holdout.

    A label's images go to the folds in turn, in order of the hash of their keys, labels beginning at different ones.
    """
    n = len(relevance.label)
    if folds == 1:
        trials = [Trial(relevance.queries(), np.ones(n, bool))]
    else:
        fold = _folds(relevance, folds)
        trials = [_fold_trial(relevance, fold == number) for number in range(1 if only_first else folds)]
    asked = sum(len(trial.queries) for trial in trials)
    if not asked:
        raise SifBatchError(
            "no image that asks shares its label with one that can be found", remedy="ask with a smaller share"
        )
    share = min(1.0, at_most / asked)
    return [Trial(t.queries[: max(1, int(len(t.queries) * share))], t.inside) for t in trials]


def _folds(relevance: Relevance, folds: int) -> np.ndarray:
    n = len(relevance.label)
    if relevance.partners is not None:
        return np.arange(n) % folds
    order = np.argsort(relevance.label, kind="stable")
    label = relevance.label[order]
    place = np.arange(n) - np.searchsorted(label, label)
    fold = np.empty(n, np.int64)
    fold[order] = (place + label) % folds
    return fold


def _fold_trial(relevance: Relevance, asking: np.ndarray) -> Trial:
    queries = relevance.queries(~asking)
    return Trial(queries[asking[queries]], ~asking)


def affordable(rows: int) -> int:
    """How many queries to ask, where nobody says: each is compared with every row, some times over."""
    return max(100, min(MAX_QUERIES, MOST_COMPARED // max(1, rows)))


def judge(
    rankings: Iterable[tuple[np.ndarray, np.ndarray]], trial: Trial, relevance: Relevance, cuts: Sequence[int] = CUTS
) -> PerQuery:
    """The figures of each query of a trial.

    rankings: for each query its rows, best first, over all that can be found (rows that are missing count as not
    found), and the same as a user gets them for a small k, which the figures at k are of.
    """
    counts = relevance.counts(trial.inside)
    found: PerQuery = {name: np.zeros(len(trial.queries)) for name in _names(cuts)}
    for i, (query, (ranking, first)) in enumerate(zip(trial.queries.tolist(), rankings, strict=True)):
        relevant = int(counts[query])
        hits = relevance.hits(query, ranking)
        ranks = np.flatnonzero(hits) + 1
        found["map"][i] = float((np.arange(1, len(ranks) + 1) / ranks).sum()) / relevant
        found["r_precision"][i] = float(hits[:relevant].sum()) / relevant
        found["mrr"][i] = 1 / float(ranks[0]) if len(ranks) else 0.0
        for level, precision in zip(LEVELS, _interpolated(ranks, relevant), strict=True):
            found[f"curve@{level}"][i] = precision
        good = np.cumsum(relevance.hits(query, first[: max(cuts)]))
        for cut in cuts:
            number = float(good[min(cut, len(good)) - 1]) if len(good) else 0.0
            precision, recall = number / cut, number / relevant
            found[f"precision@{cut}"][i], found[f"recall@{cut}"][i] = precision, recall
            found[f"f1@{cut}"][i] = 2 * precision * recall / (precision + recall) if number else 0.0
    return found


def _names(cuts: Sequence[int]) -> list[str]:
    at_cuts = (f"{name}@{cut}" for name in ("precision", "recall", "f1") for cut in cuts)
    return ["map", "r_precision", "mrr", *at_cuts, *(f"curve@{level}" for level in LEVELS)]


def _interpolated(ranks: np.ndarray, relevant: int) -> np.ndarray:
    """The best precision at each level of recall or beyond. ranks: (m,) of what was found, rising, from 1."""
    found = np.arange(1, len(ranks) + 1)
    best = np.append(np.maximum.accumulate((found / ranks)[::-1])[::-1], 0.0)
    needed = -(-np.arange(len(LEVELS)) * relevant // (len(LEVELS) - 1))  # rounded up
    return best[np.minimum(np.maximum(needed - 1, 0), len(ranks))]


def together(judged: Sequence[PerQuery]) -> PerQuery:
    """The figures of several trials, one after the other."""
    return {name: np.concatenate([trial[name] for trial in judged]) for name in judged[0]}


def averages(judged: PerQuery) -> Figures:
    """Means over the queries: map, r_precision, mrr; precision, recall and f1 by k, as text."""
    return _nested({name: round(float(values.mean()), 6) for name, values in judged.items()})


def intervals(judged: PerQuery) -> Figures:
    """95 % bootstrap intervals of `averages`, [low, high] each, from 1,000 resamplings of the queries."""
    values = np.stack(list(judged.values()), axis=1)
    random = np.random.default_rng(SEED)
    count = len(values)
    means = np.concatenate(
        [
            random.multinomial(count, np.full(count, 1 / count), size=AT_ONCE) @ values / count
            for _ in range(RESAMPLED // AT_ONCE)
        ]
    )
    tail = 100 * (1 - CONFIDENCE) / 2
    bounds = np.percentile(means, [tail, 100 - tail], axis=0)
    return _nested({name: [round(float(b), 6) for b in bounds[:, i]] for i, name in enumerate(judged)})


def _nested(flat: dict[str, Any]) -> Figures:
    found: Figures = {}
    for name, value in flat.items():
        figure, _, cut = name.partition("@")
        if cut:
            found.setdefault(figure, {})[cut] = value
        else:
            found[figure] = value
    return found


@dataclass(frozen=True)
class Judged:
    """The figures of all queries, trial after trial, and the first rows that each was answered with."""

    figures: PerQuery
    first: list[np.ndarray]

    @property
    def report(self) -> Figures:
        return averages(self.figures) | {"intervals": intervals(self.figures)}


def judge_release(index: Index, trials: Sequence[Trial], relevance: Relevance, cuts: Sequence[int] = CUTS) -> Judged:
    """A release at its operating point: the cuts by what it answers for so few rows, the rest by its full ranking."""
    most = max(*cuts, NEAREST)

    def rankings(trial: Trial) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        share = float(trial.inside.mean())
        asked = most if share == 1 else min(len(index), int(most / share) + SPARE)
        return zip(
            rank_by_release(index, trial.queries, len(index)),
            rank_by_release(index, trial.queries, asked),
            strict=True,
        )

    return _judge_trials(rankings, trials, relevance, cuts)


def judge_space(space: Space, trials: Sequence[Trial], relevance: Relevance, cuts: Sequence[int] = CUTS) -> Judged:
    """Exact search among these vectors."""

    def rankings(trial: Trial) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((found, found) for found in rank_exactly(space, trial.queries))

    return _judge_trials(rankings, trials, relevance, cuts)


def _judge_trials(
    rankings: Callable[[Trial], Iterator[tuple[np.ndarray, np.ndarray]]],
    trials: Sequence[Trial],
    relevance: Relevance,
    cuts: Sequence[int],
) -> Judged:
    most = max(*cuts, NEAREST)
    first: list[np.ndarray] = []

    def restricted(trial: Trial) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for long, short in rankings(trial):
            first.append(trial.restrict(short)[:most].copy())
            yield trial.restrict(long), first[-1]

    return Judged(together([judge(restricted(trial), trial, relevance, cuts) for trial in trials]), first)


def evaluate_exact(vectors: np.ndarray, relevance: Relevance, metric: str = "cosine") -> Figures:
    """The figures of leave-one-out exact search in float32. vectors: (n, d) as the encoder gave them."""
    trials = plan_trials(relevance, MAX_QUERIES)
    return averages(judge_space(METRICS[metric](vectors), trials, relevance).figures)


def kept(truth: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The mean share of the true nearest rows that another search finds among as many."""
    shares = [np.isin(a[:NEAREST], b[:NEAREST]).mean() for a, b in zip(truth, found, strict=True) if len(a)]
    return round(float(np.mean(shares)), 6) if shares else 1.0

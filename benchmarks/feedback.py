"""What marks and query expansion bring, simulated with labels on a holdout.

    python -m benchmarks.feedback ROOT [--labels folder] [--grid] [--json]

A quarter of the images ask, the rest are the collection. After each answer a person who knows the labels marks the
first hits that bear no mark yet as right or wrong, and asks again. `map` judges the whole answer, as a person sees it:
wrong ones are gone, right ones stay where they rank. `map_unseen` leaves out all that is ever marked for the query, so
that it says how well the query finds what nobody has looked at; there all methods are judged on the same images,
those that the first answer's marks leave (--grid), or each on its own.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sif_batch.evaluation.metrics import Trial, plan_trials
from sif_batch.evaluation.relevance import Relevance, read_relevance
from sif_batch.query import feedback
from sif_batch.query.index import Index

ROUNDS, MARKS, PARTS = 3, 5, 4
BACKGROUND = 500  # rows that stand for all others where a linear model is trained

Learn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # query, right, wrong to what rows are ranked by


@dataclass(frozen=True)
class Collection:
    """rows: (n, d) float64 as they are compared at unit length; inside: (n,) bool, those that can be found."""

    rows: np.ndarray
    relevance: Relevance
    trial: Trial

    @staticmethod
    def of(index: Index, labels: str) -> "Collection":
        relevance = read_relevance(index, labels)
        (trial,) = plan_trials(relevance, len(index), PARTS, only_first=True)
        return Collection(index.vectors_of(np.arange(len(index))).astype(np.float64), relevance, trial)

    def ranking(self, query: np.ndarray) -> np.ndarray:
        """All rows that can be found, nearest first."""
        inside = np.flatnonzero(self.trial.inside)
        return inside[np.argsort(-(self.rows[inside] @ query), kind="stable")]

    def precision(self, row: int, ranking: np.ndarray, left_out: np.ndarray) -> float | None:
        """Average precision without some rows. None: nothing else is relevant."""
        ranking = ranking[~np.isin(ranking, left_out)]
        relevant = self.relevance.hits(row, np.flatnonzero(self.trial.inside))
        count = int(relevant.sum()) - int(self.relevance.hits(row, left_out).sum() if len(left_out) else 0)
        ranks = np.flatnonzero(self.relevance.hits(row, ranking)) + 1
        return float((np.arange(1, len(ranks) + 1) / ranks).sum()) / count if count else None


def rocchio(toward: float, away: float) -> Learn:
    return lambda q, right, wrong: feedback.learn(q, right, wrong, True, toward, away)


def logistic(collection: Collection, strength: float, background_weight: float) -> Learn:
    """A logistic regression of the query and the right ones against the wrong ones and some other rows."""
    from sklearn.linear_model import LogisticRegression

    others = collection.rows[np.flatnonzero(collection.trial.inside)[:BACKGROUND]]

    def learn(q: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        x = np.concatenate([q[None], right, wrong, others])
        y = np.repeat([1, 0], [1 + len(right), len(wrong) + len(others)])
        weights = np.repeat([1.0, 1.0, background_weight], [1 + len(right), len(wrong), len(others)])
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=200).fit(x, y, weights)
        return np.asarray(model.coef_[0])

    return learn


def discriminant(collection: Collection, shrinkage: float, away: float) -> Learn:
    """Linear discriminant: the right ones' mean less everything's, by the shrunken covariance of all."""
    inside = collection.rows[collection.trial.inside]
    mean, covariance = inside.mean(axis=0), np.cov(inside.T)
    size = np.trace(covariance) / len(covariance)
    inverse = np.linalg.inv(covariance + shrinkage * size * np.eye(len(covariance)))

    def learn(q: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        return np.asarray(inverse @ (feedback.learn(q, right, wrong, True, feedback.RIGHT, away) - mean))

    return learn


def simulate(collection: Collection, learn: Learn, rounds: int = ROUNDS, marks: int = MARKS) -> dict[str, list[float]]:
    """mAP before and after each round: of the whole answer, and of what is never marked."""
    whole: list[list[float]] = []
    unseen: list[list[float]] = []
    for row in collection.trial.queries.tolist():
        rankings, marked = _asked_again(collection, row, learn, rounds, marks)
        good = collection.relevance.hits(row, marked)
        seen = [marked[: marks * number] for number in range(rounds + 1)]
        wrong = [some[~good[: len(some)]] for some in seen]
        whole.append([_precision_of(collection, row, r, w) for r, w in zip(rankings, wrong, strict=True)])
        left = [collection.precision(row, ranking, marked) for ranking in rankings]
        if left[0] is not None:
            unseen.append([value for value in left if value is not None])
    return {"map": _means(whole), "map_unseen": _means(unseen)}


def _precision_of(collection: Collection, row: int, ranking: np.ndarray, wrong: np.ndarray) -> float:
    found = collection.precision(row, ranking, wrong)
    assert found is not None
    return found


def _asked_again(
    collection: Collection, row: int, learn: Learn, rounds: int, marks: int
) -> tuple[list[np.ndarray], np.ndarray]:
    query = collection.rows[row]
    rankings, marked = [collection.ranking(query)], np.empty(0, np.int64)
    for _ in range(rounds):
        fresh = rankings[-1][~np.isin(rankings[-1], marked)][:marks]
        marked = np.concatenate([marked, fresh])
        good = collection.relevance.hits(row, marked)
        rankings.append(collection.ranking(learn(query, collection.rows[marked[good]], collection.rows[marked[~good]])))
    return rankings, marked


def first_marks(collection: Collection, learn: Learn, marks: int) -> float:
    """mAP of what the first answer's marks leave, after one round: the same images for every method."""
    found = []
    for row in collection.trial.queries.tolist():
        (_, ranking), marked = _asked_again(collection, row, learn, 1, marks)
        value = collection.precision(row, ranking, marked)
        found += [] if value is None else [value]
    return round(float(np.mean(found)), 4)


def expansion(collection: Collection, hits: int, alpha: float) -> float:
    """mAP after the first hits are averaged in, nobody having marked any."""
    found = []
    for row in collection.trial.queries.tolist():
        query = collection.rows[row]
        near = collection.rows[collection.ranking(query)[:hits]]
        again = feedback.expand(query, near, near @ query, True, alpha)
        found.append(_precision_of(collection, row, collection.ranking(again), np.empty(0, np.int64)))
    return round(float(np.mean(found)), 4)


def _means(values: list[list[float]]) -> list[float]:
    return [round(float(value), 4) for value in np.mean(values, axis=0)]


def grid(collection: Collection) -> Iterator[tuple[str, list[float]]]:
    """Every method and setting: mAP of unmarked images after 5, 10 and 20 first hits were marked."""
    methods: dict[str, Learn] = {"not asked again": lambda q, right, wrong: q}
    methods |= {
        f"rocchio, right {toward:g}, wrong {away:g}": rocchio(toward, away)
        for toward in (0.5, 1, 2, 4, 8)
        for away in (0, 0.25, 0.5, 1, 2)
    }
    methods |= {f"logistic, C {c:g}, others {w:g}": logistic(collection, c, w) for c in (0.1, 1, 10) for w in (0.1, 1)}
    methods |= {
        f"discriminant, shrinkage {s:g}, wrong {a:g}": discriminant(collection, s, a)
        for s in (1, 5, 20)
        for a in (0, 0.5)
    }
    for name, learn in methods.items():
        yield name, [first_marks(collection, learn, marks) for marks in (5, 10, 20)]


def report_of(place: str, labels: str, with_grid: bool) -> dict[str, Any]:
    collection = Collection.of(Index.open(place), labels)
    found: dict[str, Any] = {"queries": len(collection.trial.queries), "rows": int(collection.trial.inside.sum())}
    found["rounds"] = simulate(collection, rocchio(feedback.RIGHT, feedback.WRONG))
    found["expansion"] = {
        f"{hits} hits, alpha {alpha:g}": expansion(collection, hits, alpha)
        for hits in (0, 1, 2, 3, 5, 10)
        for alpha in (0, 1, 3)
        if hits or not alpha
    }
    if with_grid:
        found["grid"] = dict(grid(collection))
    return found


def show(report: dict[str, Any]) -> None:
    print(f"{report['queries']} queries, {report['rows']} rows, {MARKS} marks a round")
    for name in ("map", "map_unseen"):
        print(f"{name:>12}  " + "  ".join(f"{value:.4f}" for value in report["rounds"][name]))
    for name, value in report["expansion"].items():
        print(f"  {value:.4f}  {name}")
    for name, values in report.get("grid", {}).items():
        print("  " + "  ".join(f"{value:.4f}" for value in values) + f"  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", metavar="ROOT|RELEASE")
    parser.add_argument("--labels", default="folder")
    parser.add_argument("--grid", action="store_true", help="every method and setting")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report = report_of(given.place, given.labels, given.grid)
    sys.stdout.write(json.dumps(report) + "\n") if given.json else show(report)


if __name__ == "__main__":
    main()

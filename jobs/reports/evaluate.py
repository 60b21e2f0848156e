"""Judge a release: by labels or pairs, stage by stage, label by label, metric by metric, and by the clock."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.config import RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.evaluation.metrics import (
    CUTS,
    Judged,
    Trial,
    affordable,
    averages,
    intervals,
    judge_release,
    judge_space,
    kept,
    plan_trials,
)
from sif_batch.evaluation.rankings import METRICS, Space, compared, euclidean
from sif_batch.evaluation.relevance import Relevance, read_relevance
from sif_batch.index.codebooks import encoder_of
from sif_batch.index.quantizer import load_quantizer
from sif_batch.index.training_sample import read_rows
from sif_batch.jobs.reports.timing import time_images, time_queries
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.live import live_rows
from sif_batch.query.index import Index
from sif_batch.storage.root import read_record
from sif_batch.storage.store import Store

K = 10


@dataclass(frozen=True)
class Evaluation:
    """What `--json` prints, and what pictures are made of."""

    report: dict[str, Any]
    index: Index
    relevance: Relevance
    trials: list[Trial]
    judged: Judged

    @property
    def queries(self) -> np.ndarray:
        return np.concatenate([trial.queries for trial in self.trials])


def evaluate(
    place: str,
    labels: str,
    cuts: Sequence[int] = CUTS,
    holdout: float | None = None,
    folds: int | None = None,
    max_queries: int | None = None,
) -> Evaluation:
    """Judge a release; for a ROOT beside exact search with the vectors of its parts. Raises SifBatchError."""
    index = Index.open(place)
    _check_cuts(cuts, index)
    relevance = read_relevance(index, labels)
    parts = folds or (round(1 / holdout) if holdout else 1)
    trials = plan_trials(relevance, max_queries or affordable(len(index)), parts, only_first=holdout is not None)
    queries = sum(len(trial.queries) for trial in trials)
    judged = judge_release(index, trials, relevance, cuts)
    report: dict[str, Any] = {
        "release": index.release,
        "labels": labels,
        "split": _split(holdout, folds, parts),
        "n_queries": queries,
        "rows": len(index),
        "matched": relevance.summary(),
        **judged.report,
        "per_label": _per_label(relevance, trials, judged),
        "exact": None,
        "metrics": None,
        "losses": None,
    }
    if folds:
        report["by_fold"] = _by_fold(trials, judged)
    store = Store(place)
    record = read_record(store)
    if record is not None:
        report |= _beside_exact(_Root(store, record, index), relevance, trials, judged, cuts)
    else:
        report["timing"] = {"images": time_images(index), "queries": None}
    return Evaluation(report, index, relevance, trials, judged)


def _check_cuts(cuts: Sequence[int], index: Index) -> None:
    most = max(cuts)
    if most >= len(index) and tuple(cuts) != CUTS:
        raise SifBatchError(
            f"k is {most}, but a query leaves {len(index) - 1} rows to find", remedy=f"-k {max(1, len(index) - 1)}"
        )


def _split(holdout: float | None, folds: int | None, parts: int) -> dict[str, Any]:
    if holdout:
        return {"kind": "holdout", "share": round(1 / parts, 6)}
    return {"kind": "k-fold", "folds": folds} if folds else {"kind": "leave-one-out"}


def _by_fold(trials: Sequence[Trial], judged: Judged) -> dict[str, Any]:
    """mAP of each fold, their mean and standard deviation."""
    ends = np.cumsum([len(trial.queries) for trial in trials])[:-1]
    means = [float(part.mean()) for part in np.split(judged.figures["map"], ends) if len(part)]
    return {
        "map": [round(mean, 6) for mean in means],
        "mean": round(float(np.mean(means)), 6),
        "std": round(float(np.std(means, ddof=min(1, len(means) - 1))), 6),
    }


def _per_label(relevance: Relevance, trials: Sequence[Trial], judged: Judged) -> list[dict[str, Any]] | None:
    """Each label's own figures, worst first, and the label that its images are most taken for. None: pairs."""
    if relevance.partners is not None:
        return None
    queries = np.concatenate([trial.queries for trial in trials])
    label = relevance.label[queries]
    found = []
    for number in np.unique(label).tolist():
        at = np.flatnonzero(label == number)
        others = np.concatenate([relevance.label[judged.first[i][:K]] for i in at])
        others = others[(others != number) & (others >= 0)]
        taken_for = int(np.bincount(others).argmax()) if len(others) else None
        found.append(
            {
                "label": relevance.names[number],
                "images": int((relevance.label == number).sum()),
                "queries": len(at),
                "map": round(float(judged.figures["map"][at].mean()), 6),
                "r_precision": round(float(judged.figures["r_precision"][at].mean()), 6),
                "mrr": round(float(judged.figures["mrr"][at].mean()), 6),
                "most_taken_for": None if taken_for is None else relevance.names[taken_for],
            }
        )
    return sorted(found, key=lambda row: (row["map"], row["label"]))


@dataclass(frozen=True)
class _Root:
    """A ROOT whose current release is open: its rows, in the release's order, among the parts."""

    store: Store
    record: RootRecord
    index: Index

    @property
    def encoder(self) -> str:
        return str(self.index.manifest["quantizer"]["encoder"])

    def live(self) -> tuple[Catalog, pa.Table]:
        """The catalog, and the release's rows in it, in order."""
        catalog = load_catalog(self.store, self.encoder, keep=False)
        rows = catalog.rows
        numbered = rows.select(["key", "sha256"]).append_column("number", pa.array(np.arange(len(rows))))
        good = numbered.filter(rows["error_kind"].is_null())
        good = good.set_column(0, "key", good["key"].cast(pa.large_string()))
        named = pa.table({"key": self.index.column("key"), "sha256": self.index.column("sha256")})
        named = named.append_column("place", pa.array(np.arange(len(named))))
        joined = named.join(good, ["key", "sha256"], join_type="inner").sort_by("place")
        _, first = np.unique(joined["place"].to_numpy(), return_index=True)
        if len(first) != len(self.index):
            raise SifBatchError(
                "the parts of some images of this release are gone", remedy="evaluate the release folder alone"
            )
        return catalog, live_rows(catalog, joined["number"].to_numpy()[first], self.record.sources)


def _beside_exact(
    root: _Root, relevance: Relevance, trials: Sequence[Trial], judged: Judged, cuts: Sequence[int]
) -> dict[str, Any]:
    """Exact search by each metric, where the release loses, and how its time grows."""
    catalog, live = root.live()
    vectors = read_rows(root.store, root.encoder, catalog.parts, live, np.arange(len(live)))
    by_metric = {name: judge_space(space(vectors), trials, relevance, cuts) for name, space in METRICS.items()}
    transform = root.index.transform
    exact = by_metric[transform.metric]
    if transform.power or transform.whitening:
        exact = judge_space(compared(vectors, transform), trials, relevance, cuts)
    stages = {"exact": exact} | {
        name: judge_space(space, trials, relevance, cuts) for name, space in _stages(root, vectors)
    }
    return {
        "exact": exact.report,
        "metrics": {name: averages(found.figures) for name, found in by_metric.items()},
        "losses": losses(stages | {"release": judged}),
        "timing": {
            "images": time_images(root.index),
            "queries": time_queries(root.store, root.index, catalog, live, vectors),
        },
    }


def _stages(root: _Root, vectors: np.ndarray) -> Iterator[tuple[str, Space]]:
    """What a query compares with before re-ranking: the vectors cut to fewer dimensions, then their codes."""
    quantizer = load_quantizer(root.store, root.index.manifest["quantizer"]["id"])
    if quantizer.index is None:
        return
    cut, coder = quantizer.reduce(quantizer.transform.apply(vectors)), encoder_of(quantizer.index)
    yield "cut", euclidean(cut)
    yield "codes", euclidean(coder.sa_decode(coder.sa_encode(cut)), cut)


def losses(stages: dict[str, Judged]) -> list[dict[str, Any]]:
    """From a perfect ranking to the release: the mAP after each stage, what the stage lost, and its interval.

    kept: the share of the exact ten nearest that are still found.
    """
    found: list[dict[str, Any]] = []
    before: Judged | None = None
    for name, judged in stages.items():
        ap = judged.figures["map"]
        lost = (before.figures["map"] if before else np.ones(len(ap))) - ap
        found.append(
            {
                "stage": name,
                "map": round(float(ap.mean()), 6),
                "lost": round(float(lost.mean()), 6),
                "interval": intervals({"lost": lost})["lost"],
                "kept_at_10": kept(stages["exact"].first, judged.first),
            }
        )
        before = judged
    return found


def worst_pictures(evaluation: Evaluation, labels: int = 5, across: int = 8) -> list[dict[str, Any]]:
    """For the worst labels the query that fared worst, and its first hits: rows, and whether each is relevant."""
    worst = (evaluation.report["per_label"] or [])[:labels]
    queries, figures = evaluation.queries, evaluation.judged.figures
    of = np.array([evaluation.relevance.names[n] for n in evaluation.relevance.label[queries]] if worst else [])
    found = []
    for row in worst or [None]:
        at = np.flatnonzero(of == row["label"]) if row else np.argsort(figures["map"], kind="stable")[:labels]
        for i in at[np.argsort(figures["map"][at], kind="stable")][: 1 if row else labels]:
            query, first = int(queries[i]), evaluation.judged.first[i][:across]
            hits = evaluation.relevance.hits(query, first)
            found.append(
                {
                    "label": row["label"] if row else None,
                    "map": round(float(figures["map"][i]), 4),
                    "query": query,
                    "hits": [(int(r), bool(h)) for r, h in zip(first, hits, strict=True)],
                }
            )
    return found

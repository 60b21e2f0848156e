"""Whether to train another quantizer, why, and what it cost: `--retrain auto|never|now`."""

import time
from typing import Any

from sif_batch.errors import SifBatchError
from sif_batch.gate.checks import judge_recall
from sif_batch.gate.drift import why_drifted, why_outgrown, why_unfit
from sif_batch.index.quantizer import QuantizerRecord, read_record
from sif_batch.index.train_quantizer import train_quantizer
from sif_batch.jobs.nightly.candidate import (
    Candidate,
    Collection,
    prepare_candidate,
    prepare_to_quantize,
    quantize_parts,
)

Trained = tuple[QuantizerRecord, dict[str, Any]]


def choose_quantizer(collection: Collection) -> tuple[QuantizerRecord, dict[str, Any] | None]:
    """The quantizer of the current release while it fits, else one trained now, with why and what it cost.

    Raises SifBatchError where one must be trained and `never` forbids it.
    """
    current = _current(collection)
    if current is None:
        return _train(collection, "no release has one yet")
    record, mode, rows = collection.record, collection.settings.retrain, len(collection.live)
    if mode == "now":
        return _train(collection, "--retrain now")
    if mode == "auto" and (why := why_outgrown(current, record.index, rows)):
        return _train(collection, why)
    if why := why_unfit(current, record.index, record.encoder):
        if mode == "never":
            raise SifBatchError(
                f"--retrain never, and the quantizer of the current release cannot serve this: {why}",
                remedy="--retrain auto trains one; or take back what was asked for",
            )
        return _train(collection, why)
    return current, None


def train_again(
    collection: Collection, quantizer: QuantizerRecord, candidate: Candidate
) -> tuple[Candidate, dict[str, Any]] | None:
    """A candidate of another quantizer, where this one's shows that the collection has drifted from what it was trained
    on, or has too low a recall; None: it does not, or the same one would come of it, or --retrain forbids it."""
    drift = candidate.manifest.get("drift")
    why = why_drifted(drift)
    published = collection.current is not None and candidate.release == collection.current[0]
    if why is None and drift is not None and not published:
        why = next(iter(judge_recall(candidate.manifest["recall"])), None)
    if why is None:
        return None
    if collection.settings.retrain == "never":
        collection.reporter.say(f"--retrain never, though {why}")
        return None
    trained, training = _train(collection, why)
    return None if trained.id == quantizer.id else (prepare_candidate(collection, trained), training)


def _current(collection: Collection) -> QuantizerRecord | None:
    if collection.current is None:
        return None
    name = collection.current[1]["quantizer"]["id"]
    return read_record(collection.store, name) if collection.store.exists(f"quantizers/{name}") else None


def _train(collection: Collection, why: str) -> Trained:
    """Train on the live rows of now, and make all parts' codes."""
    store, record, settings, used = collection.store, collection.record, collection.settings, collection.used
    collection.reporter.say(f"training the quantizer: {why}")
    prepare_to_quantize(settings, len(used))
    family = collection.current[1]["quantizer"]["family"] if collection.current else None
    began = time.perf_counter()
    quantizer = train_quantizer(store, record.encoder, record.index, collection.parts, collection.live, family)
    train_s = time.perf_counter() - began
    collection.reporter.say(quantizer.spec.explain())
    quantize_parts(store, quantizer.id, used, settings, collection.reporter)
    quantize_s = time.perf_counter() - began - train_s
    for step, spent in (("train", train_s), ("quantize", quantize_s)):
        collection.seconds[step] = collection.seconds.get(step, 0.0) + spent
    cost = {"train": round(train_s, 3), "quantize": round(quantize_s, 3)}
    return quantizer, {"why": why, "quantizer": quantizer.id, "seconds": cost}

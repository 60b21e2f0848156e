"""Drift: how the quantizer in use serves the rows that came after it, and when another is to be trained.

What is measured follows from the release's rows and its quantizer alone, whatever the nights between them were.
"""

from typing import Any

import numpy as np

from sif_batch.config import IndexSettings
from sif_batch.index.quantizer import Quantizer, QuantizerRecord, imbalance_of
from sif_batch.index.quantizer_spec import RETRAIN_AT, choose_family, choose_spec
from sif_batch.release.assembly import Assembled

MAX_RATIO = 1.05  # of the error of new rows to that of rows like the trained ones
FEWEST_NEW = 0.05  # share of new rows below which another quantizer would not be made for them
MAX_IMBALANCE = 2.0  # times that of the training rows: a query scans so many times the codes
SURE = 1.645  # standard errors: 95 %, one-sided


def measure_drift(quantizer: Quantizer, assembled: Assembled, hashes: np.ndarray) -> dict[str, Any] | None:
    """Quantization error of new rows against that of rows held out of the training; None where nothing is lost (flat).

    New rows are looked for where training rows were taken from, among the smallest hashes: a row there with a vector
    that training did not see. So they are a uniform sample of all new ones. hashes: (n,) of the release's rows.
    """
    service = quantizer.record.service
    if service is None:
        return None
    band = min(len(assembled.errors), int(np.searchsorted(hashes, np.uint64(quantizer.record.seen_to), "right")))
    new = ~np.isin(assembled.likeness[:band], quantizer.seen)
    found = assembled.errors[:band][new].astype(np.float64)
    drift: dict[str, Any] = {
        "trained_for_rows": quantizer.record.trained_for_rows,
        "sampled": band,
        "new": len(found),
        "error": {"trained": service.error, "new": None},
        "ratio": None,
        "at_least": None,
        "imbalance": {"trained": service.imbalance, "now": imbalance_of(assembled.in_cells)},
    }
    if len(found) > 1 and service.error > 0:
        ratio = float(found.mean()) / service.error
        spread = float(found.var()) / len(found) + (ratio * service.deviation) ** 2 / service.queries
        drift["error"]["new"] = round(float(found.mean()), 6)
        drift["ratio"] = round(ratio, 4)
        drift["at_least"] = round(ratio - SURE * spread**0.5 / service.error, 4)
    return drift


def why_drifted(drift: dict[str, Any] | None) -> str | None:
    """Why the drift that a release measured calls for another quantizer; None: it does not."""
    if drift is None:
        return None
    share = drift["new"] / max(1, drift["sampled"])
    if drift["at_least"] is not None and drift["at_least"] > MAX_RATIO and share >= FEWEST_NEW:
        return (
            f"new images, {share:.0%} of all, lose {drift['ratio']:.2f} times what the quantizer was made to lose "
            f"(at least {drift['at_least']:.2f}, the limit is {MAX_RATIO:g})"
        )
    trained, now = drift["imbalance"]["trained"], drift["imbalance"]["now"]
    if trained and now and now > MAX_IMBALANCE * trained:
        return f"its cells are {now / trained:.1f} times as uneven as at its training, the limit is {MAX_IMBALANCE:g}"
    return None


def why_outgrown(record: QuantizerRecord, settings: IndexSettings, rows: int) -> str | None:
    """Why a collection of this size needs another quantizer; None: it does not."""
    family = choose_family(settings, rows, record.spec.dimension, record.spec.family)
    if settings.family == "auto" and family != record.spec.family:
        return f"{family} is the kind for {rows:,} images, it is {record.spec.family}"
    if rows >= RETRAIN_AT * record.trained_for_rows:
        return f"it was trained for {record.trained_for_rows:,} images, there are {rows:,}"
    return None


def why_unfit(record: QuantizerRecord, settings: IndexSettings, encoder: str) -> str | None:
    """Why the quantizer cannot serve what is asked for, whatever the size; None: it can."""
    spec = record.spec
    if encoder != spec.encoder:
        return "the encoder is another"
    if settings.family not in ("auto", spec.family):
        return f"--family {settings.family} is asked for, it is {spec.family}"
    wanted = choose_spec(settings, spec.family, encoder, spec.dimension, record.trained_for_rows)
    if wanted.model_copy(update={"pieces": spec.pieces}) != spec:  # how they are dealt was not asked for
        return "another kind of index is asked for"
    return None

"""The gate: nothing is published that was not measured on held-out queries against exact neighbours."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import GateSettings
from sif_batch.index.quantizer import Quantizer
from sif_batch.index.recall import TIE, Truth, lower_and_upper, shares
from sif_batch.index.training_sample import HELD_OUT_FROM
from sif_batch.query.index import Index
from sif_batch.query.segments import OperatingPoint
from sif_batch.release.assembly import Assembled
from sif_batch.sources.names import hash_of

CUTS = (1, 10, 100)
FRESH = 32  # new rows that are asked with too
BLOCK = 65_536
MAX_CONSTANT = 0.05
MAX_ALIKE = 0.9
FEWEST_ALIKE = 10  # images


def ask(
    index: Index, quantizer: Quantizer, truth: Truth, point: OperatingPoint | None, k: int = 10
) -> list[np.ndarray]:
    """The k rows that the release gives for each held-out query, best first."""
    return [rows for rows, _ in index.ranked(quantizer.queries.astype(np.float32), k, truth.own, point)]


def measure_recall(
    index: Index, quantizer: Quantizer, truth: Truth, point: OperatingPoint | None, k: int, target: float
) -> dict[str, Any]:
    """Recall at 1, 10, 100 and k as a user gets it, with the bounds that a bootstrap over the queries gives.

    dimension_cut: what is lost, in the training sample, by putting rows in order at the dimensions that they are kept
    at (by their codes' where none are kept), before anything is rounded.
    """
    figures: dict[str, Any] = {"k": k, "target": target, "queries": 0, "interval": {}}
    deep = {cut: ask(index, quantizer, truth, point, cut) for cut in sorted({*CUTS[1:], k})}
    for cut in sorted({*CUTS, k}):
        values = shares(truth, deep[max(cut, min(deep))] if cut not in deep else deep[cut], cut)
        figures["queries"] = len(values)
        figures[f"at_{cut}"] = round(float(values.mean()), 4) if len(values) else None
        if len(values):
            figures["interval"][f"at_{cut}"] = [round(bound, 4) for bound in lower_and_upper(values)]
    prospect, spec = quantizer.record.prospect, quantizer.spec
    seen = prospect.kept if spec.row_dimension else prospect.reduced if spec.rows == "none" else 1.0
    figures["dimension_cut"] = None if seen is None else round(1 - seen, 4)
    return figures


def fresh_rows(quantizer: Quantizer, hashes: np.ndarray, keys: pa.ChunkedArray) -> np.ndarray:
    """Rows of the held-out band that came after training, FRESH at most: above the lowest of the frozen queries, and
    none of them. hashes, keys: of the release's rows."""
    if not quantizer.query_keys:
        return np.empty(0, np.int64)
    lowest = max(min(hash_of(key) for key in quantizer.query_keys), HELD_OUT_FROM)
    first = int(np.searchsorted(hashes, np.uint64(lowest)))
    frozen = pc.is_in(keys.slice(first), pa.array(quantizer.query_keys, keys.type))
    return first + np.flatnonzero(~frozen.to_numpy())[:FRESH]


def measure_fresh(index: Index, rows: np.ndarray, k: int, point: OperatingPoint | None) -> dict[str, Any] | None:
    """Recall@k of new rows against all kept rows. None where there are none, or no rows are kept."""
    if not len(rows) or not index.segments.keeps_rows or index.spec.family == "flat":
        return None
    exact = index.segments.scan(index.ranking.kept_view(index.vectors_of(rows).astype(np.float64)), k + 1, False)
    values = []
    for row, (near, apart), (found, _) in zip(rows, exact, index.neighbours_of(rows, k, point), strict=True):
        apart = apart[near != row][:k]
        if len(apart):
            query = index.ranking.kept_view(index.vectors_of(np.array([row])).astype(np.float64))[0]
            got = index.segments.exact_distances(query, found)
            values.append(min(1.0, float((got <= apart[-1] * (1 + TIE) + TIE).sum()) / len(apart)))
    if not values:
        return None
    low, high = lower_and_upper(np.array(values))
    return {
        f"at_{k}": round(float(np.mean(values)), 4),
        "interval": [round(low, 4), round(high, 4)],
        "queries": len(values),
    }


def check_sanity(assembled: Assembled, sha256: pa.ChunkedArray) -> dict[str, Any]:
    """What the vectors look like: how many are constant (all numbers equal, zero among them); of a sample the least,
    median and greatest length, and how many different images, at most, share one vector.

    sha256: of the images, in order of release rows.
    """
    lengths = np.abs(assembled.lengths)
    quantiles = np.quantile(lengths, [0, 0.5, 1]) if len(lengths) else np.zeros(3)
    alike = images = 0
    if len(lengths):
        likeness = assembled.likeness
        images = int(pc.count_distinct(sha256.slice(0, len(likeness))).as_py())
        values, counts = np.unique(likeness, return_counts=True)
        same = np.flatnonzero(likeness == values[counts.argmax()])
        alike = int(pc.count_distinct(sha256.take(pa.array(same))).as_py())
    return {
        "lengths": [float(f"{value:.4g}") for value in quantiles],
        "constant": assembled.constant,
        "alike": alike,
        "of_images": images,
    }


def judge(
    settings: GateSettings, manifest: dict[str, Any], parent_rows: int | None = None, query_ms: float | None = None
) -> list[str]:
    """Why a sealed candidate may not be published; empty when it may. parent_rows: of the last release."""
    reasons = []
    listed, rows = manifest["listed"], manifest["rows"]
    failed = manifest["failed"] - manifest.get("failed_by_kind", {}).get("erased", 0)
    if failed > settings.max_failures * listed:
        reasons.append(
            f"{failed} of {listed} images failed ({failed / listed:.1%}), --max-failures is {settings.max_failures:g}"
        )
    reasons += judge_recall(manifest["recall"])
    if not manifest["finite"]:
        reasons.append("some vectors are not finite")
    sanity = manifest["sanity"]
    if sanity["constant"] > max(1, MAX_CONSTANT * rows):
        reasons.append(f"{sanity['constant']} of {rows} vectors hold one number over and over: check the encoder")
    if sanity["alike"] >= FEWEST_ALIKE and sanity["alike"] > MAX_ALIKE * sanity["of_images"]:
        reasons.append(
            f"{sanity['alike']} of {sanity['of_images']} different images have the same vector: check the encoder"
        )
    if parent_rows and rows < (1 - settings.max_shrink) * parent_rows:
        reasons.append(
            f"{rows} images, the last release has {parent_rows} ({1 - rows / parent_rows:.1%} fewer), --max-shrink is "
            f"{settings.max_shrink:g}"
        )
    limit = manifest["settings"].get("max_query_ms")
    if limit and query_ms and query_ms > limit:
        reasons.append(_too_slow(manifest, query_ms, limit))
    return reasons


def judge_recall(recall: dict[str, Any]) -> list[str]:
    """Recall is too low where its upper bound is: a few queries prove nothing."""
    name, target = f"at_{recall['k']}", recall["target"]
    asked = f"--recall {target:g} is asked for"
    reasons = []
    if recall[name] is not None and recall["interval"][name][1] < target:
        low, high = recall["interval"][name]
        reasons.append(f"recall@{recall['k']} is {recall[name]:g} ({low:g} to {high:g}), {asked}")
    fresh = recall.get("fresh")
    if fresh and fresh["interval"][1] < target:
        reasons.append(f"recall@{recall['k']} of {fresh['queries']} new images is {fresh[name]:g}, {asked}")
    return reasons


def _too_slow(manifest: dict[str, Any], query_ms: float, limit: float) -> str:
    wanted = manifest["codes_scanned"] * limit / query_ms
    had = [point["recall"] for point in manifest.get("curve", []) if point["codes_scanned"] <= wanted]
    offer = f", about recall {max(had):g} can be had in that" if had else ""
    if manifest["settings"].get("family") == "flat":
        offer = ", --family auto takes a quicker kind"
    return f"a query takes {query_ms:.2f} ms, --max-query-ms is {limit:g}{offer}"


def all_finite(index: Index) -> bool:
    """Whether every kept row is finite; rows of integers are, but for their factor."""
    return all(_finite(rows[at : at + BLOCK]) for rows in index.kept_rows() for at in range(0, len(rows), BLOCK))


def _finite(rows: np.ndarray) -> bool:
    if rows.dtype.kind == "f":
        return bool(np.isfinite(rows).all())
    return bool(np.isfinite(np.ascontiguousarray(rows[:, -4:]).view(np.float32)).all())

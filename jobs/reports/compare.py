"""Two releases side by side: rows, recall, sizes, and the neighbours that changed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.errors import SifBatchError
from sif_batch.evaluation.rankings import rank_by_release
from sif_batch.evaluation.release_diff import compare_releases
from sif_batch.jobs.reports.html import check_extra, picture_of, render
from sif_batch.jobs.result_files import write_file
from sif_batch.query.index import Index
from sif_batch.release.history import find_sealed, read_history
from sif_batch.release.manifest import MANIFEST, check_release
from sif_batch.storage.store import Store

K = 10
ASKED = 200  # images of both releases whose neighbours are compared
EXAMPLES = 5
SHOWN, ACROSS = 8, 8  # of the page: images whose neighbours changed most, and neighbours of each


@dataclass(frozen=True)
class Comparison:
    """report: what `--json` prints; changed: images and their neighbours' rows in both, most changed first."""

    report: dict[str, Any]
    a: Index
    b: Index
    changed: list[tuple[float, int, np.ndarray, int, np.ndarray]]  # kept, row in a, its hits, row in b, its hits


def is_there(store: Store, release: str) -> bool:
    return store.exists(f"releases/{release}/{MANIFEST}")


def open_release(store: Store, release: str) -> Index:
    """A release of ROOT by its id. Raises SifBatchError."""
    folder = f"releases/{release}"
    return Index(store, folder, check_release(store, folder))


def compare_neighbours(a: Index, b: Index, asked: int = ASKED) -> Comparison:
    """What differs between an older release and a newer one, neighbours too."""
    row_in_b, same = _matched(a, b)
    common = np.flatnonzero(same)[:asked]  # in order of hash: a uniform sample
    changed = _neighbours(a, b, common, row_in_b) if keeps_rows(a) and keeps_rows(b) else []
    kept = [row[0] for row in changed]
    report = {"old": a.release, "new": b.release, **asdict(compare_releases(a, b))}
    report["sizes"] = [_describe(index) for index in (a, b)]
    report["in_both"] = int(same.sum())
    report["neighbours"] = {
        "asked": len(kept),
        "kept_at_10": round(float(np.mean(kept)), 6) if kept else None,
        "unchanged": round(float(np.mean(np.array(kept) == 1)), 6) if kept else None,
        "changed_most": [
            {"key": a.column("key")[row].as_py(), "kept": round(share, 6)} for share, row, *_ in changed[:EXAMPLES]
        ],
    }
    report["mean_cosine"] = _mean_cosine(a, b)
    return Comparison(report, a, b, changed)


def keeps_rows(index: Index) -> bool:
    """Whether it can be asked with its own rows; a release may keep codes alone."""
    return index.segments.keeps_rows


def _describe(index: Index) -> dict[str, Any]:
    manifest = index.manifest
    return {
        "rows": len(index),
        "recall_at_10": manifest.get("recall", {}).get("at_10"),
        "failed": manifest.get("failed"),
        "bytes": sum(file["size"] for file in manifest.get("files", {}).values()),
        "encoder": manifest["quantizer"]["encoder"],
        "quantizer": manifest["quantizer"]["id"],
    }


def _matched(a: Index, b: Index) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a the row of b with its key, -1 for none, and whether its bytes are the same. (n,) each."""
    place = pc.index_in(a.column("key"), b.column("key").combine_chunks())
    row = pc.fill_null(place, -1).to_numpy().astype(np.int64)
    digests = b.column("sha256").take(pa.array(np.maximum(row, 0))) if len(b) else a.column("sha256")
    equal = pc.fill_null(pc.equal(a.column("sha256").combine_chunks(), digests.combine_chunks()), False)
    return row, (row >= 0) & equal.to_numpy(zero_copy_only=False)


def _neighbours(
    a: Index, b: Index, rows: np.ndarray, row_in_b: np.ndarray
) -> list[tuple[float, int, np.ndarray, int, np.ndarray]]:
    keys_a, keys_b = a.column("key"), b.column("key")
    found = []
    hits_a, hits_b = rank_by_release(a, rows, K), rank_by_release(b, row_in_b[rows], K)
    for row, in_a, in_b in zip(rows.tolist(), hits_a, hits_b, strict=True):
        before, after = (set(keys.take(pa.array(hits)).to_pylist()) for keys, hits in ((keys_a, in_a), (keys_b, in_b)))
        share = len(before & after) / max(1, len(before), len(after)) if before or after else 1.0
        found.append((share, row, in_a, int(row_in_b[row]), in_b))
    return sorted(found, key=lambda one: (one[0], one[1]))


def _mean_cosine(a: Index, b: Index) -> float | None:
    """The cosine of the mean vectors of a sample of each: how far the collection moved. None: encoders differ."""
    same = a.manifest["quantizer"]["encoder"] == b.manifest["quantizer"]["encoder"]
    if not (same and a.spec.metric == b.spec.metric and keeps_rows(a) and keeps_rows(b)):
        return None
    x, y = (index.vectors_of(np.arange(min(len(index), 1000))).mean(axis=0) for index in (a, b))
    return round(float(x @ y / max(1e-30, np.linalg.norm(x) * np.linalg.norm(y))), 6)


def strips(comparison: Comparison, most: int = SHOWN) -> list[dict[str, Any]]:
    """For the page: the images whose neighbours changed most, before and after; green hits are new, red ones gone."""
    a, b = comparison.a, comparison.b
    found = []
    for share, row, in_a, in_b_row, in_b in comparison.changed[:most]:
        if share == 1:
            break
        before, after = (_keys(index, hits) for index, hits in ((a, in_a), (b, in_b)))
        found.append(
            {
                "key": a.column("key")[row].as_py(),
                "kept": share,
                "before": {"query": picture_of(a, row), "hits": _hits(a, in_a, before, set(after), "bad")},
                "after": {"query": picture_of(b, in_b_row), "hits": _hits(b, in_b, after, set(before), "good")},
            }
        )
    return found


def _keys(index: Index, rows: np.ndarray) -> list[str]:
    return list(index.column("key").take(pa.array(rows)).to_pylist())


def _hits(index: Index, rows: np.ndarray, keys: Sequence[str], other: set[str], kind: str) -> list[dict[str, Any]]:
    named = list(zip(rows.tolist(), keys, strict=True))[:ACROSS]
    return [picture_of(index, row, "" if key in other else kind) for row, key in named]


def write_comparison(comparison: Comparison, out: str) -> None:
    """The comparison as one page. Raises SifBatchError."""
    write_file(out, render("compare.html", report=comparison.report, strips=strips(comparison)))


def compare(old: str, new: str | None, out: str | None = None) -> dict[str, Any]:
    """The differences from one release to another. old, new: a ROOT, a release or ROOT@RELEASE; of one ROOT alone its
    last two releases. out: a page to write, which shows whose neighbours changed."""
    if out:
        check_extra()
    if new is None:
        history = read_history(Store(old))
        before = [entry["release"] for entry in history if history and entry["release"] != history[-1]["release"]]
        if not before:
            raise SifBatchError(f"{old} has no two releases", remedy="give two: sif-batch compare A B")
        old, new = f"{old}@{before[-1]}", old
    comparison = compare_neighbours(open_named(old), open_named(new))
    if out:
        write_comparison(comparison, out)
    return comparison.report


def open_named(place: str) -> Index:
    """A ROOT's current release, a release, or ROOT@ID and ROOT@n."""
    root, at, wanted = place.rpartition("@")
    if at and not Store(place).exists():
        return Index.open(f"{root}/releases/{find_sealed(Store(root), wanted)}")
    return Index.open(place)

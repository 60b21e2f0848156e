"""What a ROOT holds that nothing needs any more. Planned purely from what stands."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.entry_digests import ENTRY
from sif_batch.ledger.reconcile import Standing


@dataclass(frozen=True)
class Needs:
    """What must stay. parts: by encoder."""

    releases: set[str] = field(default_factory=set)
    quantizers: set[str] = field(default_factory=set)
    encoders: set[str] = field(default_factory=set)
    listings: set[str] = field(default_factory=set)
    plans: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    parts: dict[str, set[str]] = field(default_factory=dict)


def kept_releases(
    history: Sequence[dict[str, Any]], sealed: Sequence[str], candidates: Sequence[str], keep: int, before: datetime
) -> set[str]:
    """The releases to keep: the newest `keep` that were current, those that were since `before`, and `candidates`."""
    current: list[str] = []
    for entry in reversed(history):
        if entry["release"] not in current:
            current.append(entry["release"])
    recent = {entry["release"] for entry in history if parse_time(entry["time"]) >= before}
    # What was replaced after `before` was current since then, however long ago it was published.
    for older, newer in itertools.pairwise(history):
        if parse_time(newer["time"]) >= before:
            recent.add(older["release"])
    return set(sealed) & {*current[: max(1, keep)], *recent, *candidates}


def needed_rows(catalog: Catalog, standing: Standing, stale: np.ndarray, released: pa.Table) -> np.ndarray:
    """The numbers of the catalog rows that stand, are stale, or made a row of a kept release.

    released: key, sha256 of the kept releases' rows.
    """
    mine = catalog.rows.select(["key", "sha256"]).append_column("row", pa.array(np.arange(len(catalog.rows))))
    mine = mine.set_column(0, "key", mine["key"].cast(pa.large_string()))
    of_releases = mine.join(released.group_by(["key", "sha256"]).aggregate([]), ["key", "sha256"], join_type="inner")
    return np.unique(np.concatenate([standing.row, stale, of_releases["row"].to_numpy()]))


def needed_parts(catalog: Catalog, rows: np.ndarray, entries: pa.Table) -> set[str]:
    """The parts that hold these rows, and those that say how far a listed container has come."""
    parts = {catalog.parts[number] for number in np.unique(catalog.rows["part"].to_numpy()[rows]).tolist()}
    listed = entries.select(ENTRY)
    spans = catalog.spans.join(listed, ENTRY, join_type="left semi")
    return parts | {catalog.parts[number] for number in pc.unique(spans["part"]).to_pylist()}


def parse_time(text: str) -> datetime:
    """A time as history, listings and runs write it."""
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y%m%dT%H%M%SZ"):
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return datetime.max.replace(tzinfo=UTC)  # of another hand: young

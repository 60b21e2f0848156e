"""Compaction: which small or mostly dead parts are to be copied into few. Planned purely from what stands."""

from dataclasses import dataclass

import numpy as np

from sif_batch.ledger.catalog import Catalog


@dataclass(frozen=True)
class Merge:
    """Parts to copy into one. kept: by part, which of its rows are needed, (n,) bool."""

    kept: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        return sum(int(rows.sum()) for rows in self.kept.values())


def plan_merges(catalog: Catalog, whole: Catalog, needed: np.ndarray, full: int) -> list[Merge]:
    """The merges that are worth it, of parts made by the same arithmetic, up to `full` rows each.

    A part is copied if it holds no more than half of `full` needed rows, or more that are dead than needed. Parts of
    containers stay as they are, and so does a part without any needed row, which is garbage already.

    whole: with all rows of the parts; needed: (n,) numbers of `catalog` rows.
    """
    total = np.bincount(whole.rows["part"].to_numpy(), minlength=len(whole.parts))
    part, row = (catalog.rows[name].to_numpy()[needed] for name in ("part", "row"))
    count = np.bincount(part, minlength=len(catalog.parts))
    of_containers = set(catalog.spans["part"].to_pylist())
    worth = np.flatnonzero((count > 0) & ((2 * count <= full) | (2 * count < total)))
    chosen = [number for number in worth.tolist() if number not in of_containers]
    order = np.argsort(part, kind="stable")
    starts = np.searchsorted(part[order], np.arange(len(catalog.parts) + 1))

    def kept(number: int) -> np.ndarray:
        rows = np.zeros(total[number], bool)
        rows[row[order[starts[number] : starts[number + 1]]]] = True
        return rows

    merges = []
    for group in _groups(chosen, count, [catalog.fingerprints[number] for number in chosen], full):
        if len(group) > 1 or 2 * count[group[0]] < total[group[0]]:
            merges.append(Merge({catalog.parts[number]: kept(number) for number in group}))
    return merges


def _groups(chosen: list[int], count: np.ndarray, made_by: list[str], full: int) -> list[list[int]]:
    """The chosen parts, in order, in groups of one fingerprint and `full` rows at most, but one part at least."""
    groups: list[list[int]] = []
    open_group: dict[str, list[int]] = {}
    for number, fingerprint in zip(chosen, made_by, strict=True):
        group = open_group.get(fingerprint)
        if group is None or count[[*group, number]].sum() > full:
            group = open_group[fingerprint] = []
            groups.append(group)
        group.append(number)
    return groups

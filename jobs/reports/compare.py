"""Compare: what differs between two releases."""

from typing import Any

from sif_batch.errors import SifBatchError
from sif_batch.jobs.reports.html import check_extra
from sif_batch.jobs.reports.neighbours import compare_neighbours, write_comparison
from sif_batch.query.index import Index
from sif_batch.release.history import find_sealed, read_history
from sif_batch.storage.store import Store


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
    comparison = compare_neighbours(open_release(old), open_release(new))
    if out:
        write_comparison(comparison, out)
    return comparison.report


def open_release(place: str) -> Index:
    """A ROOT's current release, a release, or ROOT@ID and ROOT@n."""
    root, at, wanted = place.rpartition("@")
    if at and not Store(place).exists():
        return Index.open(f"{root}/releases/{find_sealed(Store(root), wanted)}")
    return Index.open(place)

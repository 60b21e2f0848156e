"""Releases: which there are, and which is current."""

from typing import Any

from sif_batch.config import GateSettings
from sif_batch.errors import SifBatchError
from sif_batch.gate.checks import judge
from sif_batch.release.history import check_undamaged, find_sealed, publish, read_history, read_top, sealed_releases
from sif_batch.release.manifest import MANIFEST, read_manifest
from sif_batch.storage.lease import holding
from sif_batch.storage.root import open_root
from sif_batch.storage.store import Store


def releases(root: str) -> list[dict[str, Any]]:
    """Every entry of history, oldest first; `current` is the newest."""
    store, _ = open_root(root)
    history = read_history(store)
    return [describe(store, entry) | {"current": entry is history[-1]} for entry in history]


def describe(store: Store, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of history with what its release holds; rows is 0 and recall None where that is gone."""
    folder = f"releases/{entry['release']}"
    gone = not store.exists(f"{folder}/{MANIFEST}")
    manifest: dict[str, Any] = {} if gone else read_manifest(store, folder)
    return {
        "n": entry["n"],
        "id": entry["release"],
        "time": entry["time"],
        "by": entry["by"],
        "action": entry["action"],
        "held": entry["held"],
        "note": entry.get("note"),
        "rows": manifest.get("rows", 0),
        "recall_at_10": manifest.get("recall", {}).get("at_10"),
        "bytes": sum(file["size"] for file in manifest.get("files", {}).values()),
        "gone": gone,
    }


def rollback(root: str, wanted: str | None = None) -> dict[str, Any]:
    """Make an older release current again, and hold publishing. wanted: its id or number; None: the one before.

    Returns the new entry of history. Raises SifBatchError; the current release is then as it was.
    """
    store, _ = open_root(root)
    with holding(store, "rollback") as lease:
        top = _top(store)
        release = find_sealed(store, wanted) if wanted else _one_before(store, top)
        if release not in {entry["release"] for entry in read_history(store)}:
            raise SifBatchError(f"{release} was never published", remedy="sif-batch publish makes it current")
        check_undamaged(store, release)
        lease.check()
        return publish(store, release, top, "passed before", "rollback", held=True)


def _one_before(store: Store, top: dict[str, Any]) -> str:
    standing = set(sealed_releases(store))
    older = [entry["release"] for entry in read_history(store) if entry["release"] != top["release"]]
    for release in reversed(older):
        if release in standing:
            return str(release)
    raise SifBatchError(
        f"{store.url} has no release before the current one, {top['release'][:12]}", remedy="sif-batch releases"
    )


def publish_by_hand(root: str, wanted: str | None = None) -> dict[str, Any]:
    """Make a release current and end a hold. wanted: its id or number; None: the newest run's candidate, else the
    current release itself.

    Returns the new entry of history. Raises SifBatchError.
    """
    from sif_batch.jobs.run_record import newest_candidate

    store, _ = open_root(root)
    with holding(store, "publish") as lease:
        top = read_top(store)
        release = find_sealed(store, wanted) if wanted else newest_candidate(store, top)
        if release is None:
            release = _top(store)["release"]
        if top and release == top["release"] and not top["held"]:
            raise SifBatchError(f"release {release[:12]} is current, and nothing is held", remedy="sif-batch releases")
        check_undamaged(store, release)
        lease.check()
        passed = not judge(GateSettings(), read_manifest(store, f"releases/{release}"))
        return publish(store, release, top, "passed" if passed else "skipped")


def _top(store: Store) -> dict[str, Any]:
    top = read_top(store)
    if top is None:
        raise SifBatchError(f"{store.url}: no release is published yet", remedy=f"sif-batch run {store.url}")
    return top

"""Compaction: many small or mostly dead parts are copied into few; gc then removes the old ones by its own rules."""

from typing import Any

import numpy as np

from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.upkeep.gc import find_used
from sif_batch.ledger.catalog_cache import load_catalog, load_whole
from sif_batch.ledger.compaction import Merge, plan_merges
from sif_batch.ledger.parts import copy_rows, part_path
from sif_batch.ledger.plan import DEFAULT_LIMITS
from sif_batch.release.history import sealed_releases
from sif_batch.storage.lease import check_free, holding
from sif_batch.storage.root import open_root
from sif_batch.storage.store import Store


def compact(root: str, yes: bool, reporter: Reporter, full: int = DEFAULT_LIMITS.shard_images) -> dict[str, Any]:
    """Find, and with `yes` make, the merges of ROOT's parts: {merged, into, rows, dead, compacted}.

    full: rows of a part. No release changes: rows are copied as they are, with all that a release, an image that is
    served stale, or the next night needs. Raises SifBatchError.
    """
    store, _ = open_root(root)
    if not yes:
        check_free(store)
        return _report(find_merges(store, full)) | {"compacted": False}
    with holding(store, "compact", reporter.say) as lease:
        merges = find_merges(store, full)
        for encoder, planned in merges.items():
            for merge in planned:
                lease.check()
                data = {part: store.read(part_path(encoder, part)) for part in merge.kept}
                name, made = copy_rows(data, merge.kept)
                store.create(part_path(encoder, name), made)
            load_whole(store, encoder)  # its cache anew
        return _report(merges) | {"compacted": True}


def find_merges(store: Store, full: int) -> dict[str, list[Merge]]:
    """What is to be merged, by encoder."""
    merges = {}
    for encoder in store.sizes("parts"):
        catalog = load_catalog(store, encoder, keep=False)
        used = find_used(store, encoder, catalog, sealed_releases(store))
        merges[encoder] = plan_merges(catalog, load_whole(store, encoder, keep=False), used.rows, full)
    return merges


def _report(merges: dict[str, list[Merge]]) -> dict[str, Any]:
    planned = [merge for of_encoder in merges.values() for merge in of_encoder]
    kept = [rows for merge in planned for rows in merge.kept.values()]
    return {
        "merged": len(kept),
        "into": len(planned),
        "rows": sum(merge.rows for merge in planned),
        "dead": int(sum(np.size(rows) - rows.sum() for rows in kept)),
    }

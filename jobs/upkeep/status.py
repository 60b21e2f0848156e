"""The state of ROOT: what it holds, what stands and failed, what was published. Writes nothing, needs no Beam."""

from typing import Any

from sif_batch.jobs.run_record import last_run
from sif_batch.ledger.live import failures_by_kind, read_collection
from sif_batch.ledger.plan import open_plans
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.release.history import read_top
from sif_batch.storage.root import open_root


def status(root: str) -> dict[str, Any]:
    """What ROOT holds: its record, the newest listing's ledger, the current release and the last run."""
    store, record = open_root(root)
    entries, catalog = read_collection(store, record)
    standing = standing_rows(entries, catalog)
    failed = standing.row[~standing.good]
    return {
        "root": store.url,
        "sources": [source.model_dump(mode="json") for source in record.sources],
        "encoder": record.encoder,
        "listed": len(standing.row) + int((standing.first == 0).sum()),
        "good": int(standing.good.sum()),
        "failed": len(failed),
        "failed_by_kind": failures_by_kind(catalog, failed),
        "to_do": len(spans_to_do(entries, standing, catalog)),
        "open_plans": len(open_plans(store, record.encoder)),
        "release": read_top(store),
        "last_run": last_run(store),
    }

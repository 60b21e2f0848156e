"""What ROOT holds: status, failures. They write nothing and need no Beam."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.run_record import last_run
from jobs.settings import open_root
from sif_batch.config import RootRecord
from sif_batch.ledger.catalog import Catalog, load_catalog
from sif_batch.ledger.plan import open_plans
from sif_batch.ledger.reconcile import failures_by_kind, spans_to_do, standing_rows
from sif_batch.release.history import read_top
from sif_batch.sources.listing import LISTING_SCHEMA, Listing, listing_names
from sif_batch.storage.store import Store


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


def failures(root: str, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The images of the newest listing that failed, of some kinds or all: key, kind, attempt, error."""
    store, record = open_root(root)
    entries, catalog = read_collection(store, record)
    standing = standing_rows(entries, catalog)
    failed = standing.row[~standing.good]
    rows = catalog.rows.select(["key", "error_kind", "attempt", "error"]).take(pa.array(failed))
    if kinds:
        rows = rows.filter(pc.is_in(rows["error_kind"], pa.array(kinds)))
    return rows.rename_columns(["key", "kind", "attempt", "error"]).to_pylist()  # type: ignore[no-any-return]


def read_collection(store: Store, record: RootRecord) -> tuple[pa.Table, Catalog]:
    """The newest listing's entries, and the catalog of ROOT's encoder."""
    names = listing_names(store)
    entries = Listing.load(store, names[0]).entries if names else LISTING_SCHEMA.empty_table()
    return entries, load_catalog(store, record.encoder, keep=False)

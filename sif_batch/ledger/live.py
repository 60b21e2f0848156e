"""Live rows: those that a release is made of; and what of the newest listing failed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import RootRecord, Source
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.sources.containers import are_containers
from sif_batch.sources.files import uri_prefix
from sif_batch.sources.listing import LISTING_SCHEMA, Listing, listing_names
from sif_batch.storage.store import Store
from sif_batch.storage.table_file import TableFile


def live_rows(catalog: Catalog, live: np.ndarray, sources: Sequence[Source]) -> pa.Table:
    """The catalog rows that a release is made of, with their uri, in order of (hash, key).

    live: (n,) numbers of catalog rows, in any order.
    """
    rows = catalog.rows.take(pa.array(_in_order_of_hash(catalog.rows, live)))
    prefixes = {source.name: uri_prefix(source) for source in sources}
    names = rows["source"].unique().to_pylist()
    place = pc.index_in(rows["source"], pa.array(names, pa.string()))
    prefix = pa.array([prefixes[name] for name in names], pa.string()).take(place)
    opened = pc.binary_join_element_wise(prefix, rows["path"], "")
    return rows.append_column("uri", _member_uris(opened, rows["path"], rows["member"])).combine_chunks()


def _in_order_of_hash(rows: TableFile, numbers: np.ndarray) -> np.ndarray:
    """These numbers of rows in order of (hash, key). Keys are looked at where hashes are equal: next to never."""
    hashes = rows["hash"].take(pa.array(numbers)).to_numpy()
    order = np.argsort(hashes)
    numbers, hashes = numbers[order], hashes[order]
    if (hashes[1:] == hashes[:-1]).any():
        keys = pa.table([hashes, rows["key"].take(pa.array(numbers))], ["hash", "key"])
        numbers = numbers[pc.sort_indices(keys, [("hash", "ascending"), ("key", "ascending")]).to_numpy()]
    return numbers


def _member_uris(uri: pa.ChunkedArray, path: pa.ChunkedArray, member: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where each image can be opened: tar://member::uri for one in a tar, uri#row=number for one in Parquet."""
    if member.null_count == len(member):
        return uri
    in_table = pa.array(are_containers(path, "parquet"))
    return pc.case_when(
        pc.make_struct(member.is_null(), in_table),
        uri,
        pc.binary_join_element_wise(uri, member, "#row="),
        pc.binary_join_element_wise("tar://", member, "::", uri, ""),
    )


def failures_by_kind(catalog: Catalog, rows: np.ndarray) -> dict[str, int]:
    """How many of these catalog rows failed, by kind, most frequent first."""
    counts = catalog.rows["error_kind"].take(pa.array(rows)).drop_null().value_counts().to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counts, key=lambda c: (-c["counts"], c["values"]))}


def failed_rows(store: Store, record: RootRecord, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The images of the newest listing that failed, of some kinds or all: key, kind, attempt, error."""
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

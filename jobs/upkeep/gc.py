"""Garbage collection: what no kept release, no unfinished plan and no coming night needs is removed."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import RootRecord
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.run_record import read_runs
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.gc import Needs, kept_releases, needed_parts, needed_rows, parse_time
from sif_batch.ledger.plan import is_open
from sif_batch.ledger.reconcile import stale_rows, standing_rows
from sif_batch.release.history import read_history, sealed_releases
from sif_batch.release.manifest import MANIFEST, read_manifest
from sif_batch.release.rebuild import read_images
from sif_batch.sources.listing import LISTING_SCHEMA, Listing, listing_names
from sif_batch.storage.lease import check_free, holding
from sif_batch.storage.root import open_root
from sif_batch.storage.store import Store, remove, size_of

KEEP_RUNS = 30
LAST = {"releases": MANIFEST, "quantizers": "quantizer.json", "encoders": "encoder.json"}  # whole while it stands
ORDER = ("releases", "runs", "codes", "quantizers", "parts", "encoders", "catalog", "listings", "plans")


def collect_garbage(root: str, keep: int, older_than_days: float, delete: bool, reporter: Reporter) -> dict[str, Any]:
    """Find, and with `delete` remove, what is not needed: {removed: [{file, bytes}], bytes, deleted, kept_releases}.

    keep: the newest releases that stay; older_than_days: nothing younger goes.
    """
    store, _ = open_root(root)
    if not delete:
        check_free(store)
        return _report(store, *find_garbage(store, keep, older_than_days), delete)
    with holding(store, "gc", reporter.say) as lease:
        needs, garbage = find_garbage(store, keep, older_than_days)
        report = _report(store, needs, garbage, delete)
        for name in garbage:
            lease.check()
            remove(store, name, LAST.get(name.partition("/")[0], ""))
        store.sweep()
        return report


def _report(store: Store, needs: Needs, garbage: list[str], deleted: bool) -> dict[str, Any]:
    found = [{"file": name, "bytes": size_of(store, name)} for name in garbage]
    return {
        "garbage": found,
        "bytes": sum(one["bytes"] for one in found),
        "deleted": deleted,
        "kept_releases": sorted(needs.releases),
    }


def find_garbage(store: Store, keep: int, older_than_days: float) -> tuple[Needs, list[str]]:
    """What must stay, and the names of all that need not, in the order in which they are to go."""
    before = datetime.now(UTC) - timedelta(days=older_than_days)
    _, record = open_root(store.url)
    needs = find_needs(store, record, keep, before)
    garbage = [name for name in _all(store) if not _is_needed(name, needs) and _is_old(store, name, before)]
    # A plan goes before the file that says it is done.
    return needs, sorted(garbage, key=lambda name: (ORDER.index(name.partition("/")[0]), name.endswith(".done"), name))


def find_needs(store: Store, record: RootRecord, keep: int, before: datetime) -> Needs:
    """What the kept releases, the unfinished plans and the next night need."""
    runs = list(read_runs(store))
    candidates = [run["result"]["release"] for run in runs[:1] if run["result"].get("release")]
    releases = kept_releases(read_history(store), sealed_releases(store), candidates, keep, before)
    manifests = [read_manifest(store, f"releases/{release}") for release in sorted(releases)]
    encoders = {record.encoder} | {manifest["encoder"] for manifest in manifests}
    listings = set(listing_names(store)[:1])
    parts: dict[str, set[str]] = {}
    for encoder in sorted(encoders):
        catalog = load_catalog(store, encoder, keep=False)
        used = find_used(store, encoder, catalog, sorted(releases))
        listings |= used.listings if encoder == record.encoder else set()
        parts[encoder] = needed_parts(catalog, used.rows, used.entries)
    plans = {name.removesuffix(".parquet") for name in store.sizes("plans") if is_open(store, name)}
    for plan in plans:
        with store.open(f"plans/{plan}.parquet") as file:
            table = pq.ParquetFile(file).read(["part"], use_threads=False)
        encoder = (table.schema.metadata or {}).get(b"encoder", record.encoder.encode()).decode()
        encoders.add(encoder)
        parts.setdefault(encoder, set()).update(table["part"].to_pylist())
    return Needs(
        releases,
        {manifest["quantizer"]["id"] for manifest in manifests},
        encoders,
        listings,
        plans,
        {run["id"] for run in runs[:KEEP_RUNS]},
        parts,
    )


@dataclass(frozen=True)
class Used:
    """What of a catalog is in use. rows: (n,) their numbers; entries: the newest listing's; listings: those older ones
    without which fewer rows would be served stale."""

    rows: np.ndarray
    entries: pa.Table
    listings: set[str]


def find_used(store: Store, encoder: str, catalog: Catalog, releases: Sequence[str]) -> Used:
    """The rows that the next night, or one of these releases if it is built again, needs."""
    names = listing_names(store)
    entries = Listing.load(store, names[0]).entries if names else LISTING_SCHEMA.empty_table()
    standing = standing_rows(entries, catalog)
    stale, supplied = _stale(store, names, entries, standing, catalog)
    mine = [one for one in releases if read_manifest(store, f"releases/{one}")["encoder"] == encoder]
    return Used(needed_rows(catalog, standing, stale, _released(store, mine)), entries, supplied)


def _released(store: Store, releases: Sequence[str]) -> pa.Table:
    """key and sha256 of the rows of these releases."""
    schema = pa.schema([("key", pa.large_string()), ("sha256", pa.binary(32))])
    tables = [read_images(store, release).select(["key", "sha256"]).cast(schema) for release in releases]
    return pa.concat_tables([schema.empty_table(), *tables])


def _stale(
    store: Store, names: list[str], entries: pa.Table, standing: Any, catalog: Catalog
) -> tuple[np.ndarray, set[str]]:
    """The stale rows, and the older listings without which they would be fewer."""

    def older(count: int) -> Iterator[pa.Table]:
        for name in names[1 : 1 + count]:
            yield Listing.load(store, name).entries

    stale = stale_rows(entries, standing, catalog, older(len(names)))
    fewest = 0
    while len(stale) and len(stale_rows(entries, standing, catalog, older(fewest))) < len(stale):
        fewest += 1
    return stale, set(names[1 : 1 + fewest])


def _all(store: Store) -> Iterator[str]:
    for folder in ("releases", "runs", "quantizers", "encoders", "listings", "plans", "catalog"):
        yield from (f"{folder}/{name}" for name in store.sizes(folder))
    for folder in ("parts", "codes"):
        for inner in store.sizes(folder):
            yield from (f"{folder}/{inner}/{name}" for name in store.sizes(f"{folder}/{inner}"))


def _is_needed(name: str, needs: Needs) -> bool:
    folder, _, rest = name.partition("/")
    if folder == "listings":
        return name in needs.listings
    if folder == "plans":
        return rest.partition(".")[0] in needs.plans
    if folder == "catalog":
        return any(rest.startswith(f"{encoder}.") for encoder in needs.encoders)
    if folder == "parts":
        encoder, _, file = rest.partition("/")
        return file.removesuffix(".parquet") in needs.parts.get(encoder, ())
    if folder == "codes":
        quantizer, _, file = rest.partition("/")
        part = file.removesuffix(".parquet")
        return quantizer in needs.quantizers and any(part in parts for parts in needs.parts.values())
    return rest in getattr(needs, folder)


def _is_old(store: Store, name: str, before: datetime) -> bool:
    """Whether it was written before that, as the store or its name tells; a folder: when its last file was."""
    folder, _, rest = name.partition("/")
    if folder in ("listings", "runs"):
        return parse_time(rest.partition("-")[0]) < before
    last = f"{name}/{LAST[folder]}" if folder in LAST else name
    tried = [last, name] if store.local else [last, *store.fs.find(store.path(name))]
    for one in tried:
        with suppress(FileNotFoundError):
            return bool(store.fs.modified(store.path(one) if one.startswith(name) else one) < before)
    return False

"""Where a ROOT names images beside its parts and releases: in runs, listings and plans."""

import html
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.digests import digest
from sif_batch.ledger.tombstones import Erased
from sif_batch.release.manifest import MANIFEST
from sif_batch.sources.listing import Listing, listing_names
from sif_batch.storage.store import Store

PAGES = ("report.html", "map.html", "map.png", "map.parquet")
FORGOTTEN = "[erased]"


def find_pages(store: Store, releases: Iterable[str], names: Iterable[str]) -> list[str]:
    """The pages of runs that may show images of these names: they show one of these releases, or one that is gone, or
    name them."""
    shown = [html.escape(name).encode() for name in names]
    gone = set(releases)
    pages = []
    for run in store.sizes("runs"):
        files = store.sizes(f"runs/{run}")
        of_run = [f"runs/{run}/{page}" for page in PAGES if page in files]
        if not of_run:
            continue
        made_of = _releases_of(store, run)
        stand = all(one not in gone and store.exists(f"releases/{one}/{MANIFEST}") for one in made_of)
        if not made_of or not stand or any(name in store.read(page) for page in of_run for name in shown):
            pages += of_run
    return pages


def _releases_of(store: Store, run: str) -> list[str]:
    """The releases that a run's pages show: its own, and the one that was current before."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads(store.read(f"runs/{run}/run.json"))
        return [one for one in (document["result"]["release"], document["parent"]) if one]
    return []


def find_words(store: Store, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The logs, summaries and records of runs that name one of these images, each with what is to stand there."""
    spelled = [one.encode() for name in names for one in {name, json.dumps(name, ensure_ascii=False)[1:-1]}]
    for run in store.sizes("runs"):
        for file in store.sizes(f"runs/{run}"):
            if file in PAGES:
                continue
            path = f"runs/{run}/{file}"
            data = without = store.read(path)
            for one in spelled:
                without = without.replace(one, FORGOTTEN.encode())
            if without != data:
                yield path, without


def find_listings(store: Store, erased: Erased) -> Iterator[tuple[str, str, bytes]]:
    """The listings that hold what was erased: name, and the name and bytes of the one to take its place."""
    for name in listing_names(store):
        listing = Listing.load(store, name)
        if (left := erased.leave_out(listing)) is not listing:
            data = left.encode()
            yield name, f"{name.rpartition('-')[0]}-{digest(data, 12)}.parquet", data


def find_plans(store: Store, erased: Erased, all_open: bool) -> list[str]:
    """The plans that hold what was erased, and on demand all that no run has finished; each before what says it is."""
    names = store.sizes("plans")
    found = []
    for plan in (name for name in names if name.endswith(".parquet")):
        done = f"{plan.removesuffix('.parquet')}.done"
        if (all_open and done not in names) or _plans(store, plan, erased):
            found += [f"plans/{name}" for name in (plan, done) if name in names]
    return found


def _plans(store: Store, plan: str, erased: Erased) -> bool:
    with store.open(f"plans/{plan}") as file:
        spans: Any = pq.ParquetFile(file).read(["source", "path", "version"], use_threads=False)
    spans = pa.table(spans.columns, names=spans.column_names)
    listing = Listing(spans)
    return erased.leave_out(listing) is not listing

"""Erase: a takedown. What names or shows an image, or was computed from it alone, is written anew without it."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.config import GateSettings, RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.gate.checks import judge
from sif_batch.index.quantizer import QuantizerRecord, read_record
from sif_batch.jobs.nightly.candidate import build, fingerprints_of, quantize_parts
from sif_batch.jobs.nightly.embed_stage import settle
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.upkeep import erase_traces
from sif_batch.jobs.upkeep.erase_plan import Erasure, find_erasure
from sif_batch.ledger.catalog import Catalog, taken_over, without_rows
from sif_batch.ledger.catalog_cache import load_whole
from sif_batch.ledger.content_index import known_path
from sif_batch.ledger.parts import copy_rows, part_path
from sif_batch.ledger.tombstones import FOLDER, add_erased
from sif_batch.pipelines.engines import check_options
from sif_batch.release.history import publish, read_history, read_top
from sif_batch.release.local_copies import forget
from sif_batch.release.manifest import MANIFEST, decided_of, inputs_digest, read_manifest
from sif_batch.release.rebuild import read_images, released_rows, without_queries
from sif_batch.sources.listing import Listing, listing_names
from sif_batch.storage.lease import Lease, check_free, holding
from sif_batch.storage.root import open_root
from sif_batch.storage.store import Store, remove

RECOUNTED = ("listed", "failed", "failed_by_kind", "stale")


def erase(root: str, names: Sequence[str], yes: bool, reporter: Reporter) -> dict[str, Any]:
    """Find, and with `yes` erase, the images of these keys, paths, uris or sha256; `--json` prints what is returned.

    Each step may be done twice: after an interruption the same command finishes. Raises SifBatchError.
    """
    store, record = open_root(root)
    if not yes:
        check_free(store)
        return _report(find_erasure(store, record, names)) | {"erased": False}
    with holding(store, "erase", reporter.say) as lease:
        store, record = open_root(root)
        work = find_erasure(store, record, names)
        report = _report(work)
        add_erased(store, work.erased)
        _copy_parts(store, work)
        replaced = _rebuild(store, record, work, reporter)
        lease.check()
        _publish(store, replaced)
        _forget(store, work)
        _remove(store, lease, work)
        return report | {"erased": True, "replaced": replaced, "release": (read_top(store) or {}).get("release")}


def _report(work: Erasure) -> dict[str, Any]:
    return {
        "images": work.images(),
        "parts": sum(len(work.parts(encoder)) for encoder in work.catalogs),
        "releases": sorted(work.releases),
        "quantizers": sorted(work.queries),
        "trained_on": work.trained_on,
    }


def _copy_parts(store: Store, work: Erasure) -> None:
    """The parts with rows to erase once more, without."""
    for encoder, catalog in work.catalogs.items():
        gone, part = work.gone(catalog) | taken_over(catalog), catalog.rows["part"].to_numpy()
        covering = set(catalog.spans["part"].to_pylist()) - work.containers(catalog)
        for name in work.parts(encoder):
            number = catalog.parts.index(name)
            kept = ~gone[part == number]
            if kept.any() or number in covering:
                copied, data = copy_rows({name: store.read(part_path(encoder, name))}, {name: kept})
                store.create(part_path(encoder, copied), data)


def _rebuild(store: Store, record: RootRecord, work: Erasure, reporter: Reporter) -> dict[str, str | None]:
    """Each release that is concerned once more, without: old id to new, None for one that nothing can be made of."""
    queries = {name: without_queries(store, name, out).id for name, out in work.queries.items()}
    whole = {encoder: load_whole(store, encoder, keep=False) for encoder in work.catalogs}
    after = {encoder: _left(catalog, work, encoder) for encoder, catalog in whole.items()}
    recounted = _recount(store, record, work, after, reporter)
    top = read_top(store)
    dealt_with = {old for entry in read_history(store) for old in entry.get("replaced", {})}
    replaced: dict[str, str | None] = {}
    for release, gone in work.releases.items():
        is_current = bool(top and release == top["release"])
        if release in dealt_with and not is_current:
            continue
        reporter.say(f"release {release[:12]} is assembled again")
        manifest = read_manifest(store, f"releases/{release}")
        encoder, images = manifest["encoder"], read_images(store, release)
        try:
            live = released_rows(images, gone, whole[encoder], after[encoder], manifest)
            quantizer = read_record(store, queries.get(manifest["quantizer"]["id"], manifest["quantizer"]["id"]))
        except (LookupError, SifBatchError) as error:
            if is_current:
                raise SifBatchError(
                    f"the current release cannot be assembled again: {error}",
                    remedy=f"sif-batch run {store.url} makes one without what is erased; then this command once more",
                ) from error
            live = images.slice(0, 0)
        replaced[release] = None
        if len(live):
            decided = decided_of(manifest) | {"rows": len(live)} | recounted(manifest, int(gone.sum()))
            decided["quantizer"] = manifest["quantizer"] | {"id": quantizer.id}
            replaced[release] = _assemble(store, after[encoder], live, quantizer, decided, reporter)
    return replaced


def _left(catalog: Catalog, work: Erasure, encoder: str) -> Catalog:
    """The catalog without what is erased, and without the parts that will go."""
    names = set(work.parts(encoder))
    going = [number for number, name in enumerate(catalog.parts) if name in names]
    gone = work.gone(catalog) | taken_over(catalog) | np.isin(catalog.rows["part"].to_numpy(), going)
    return without_rows(catalog, gone)


def _assemble(
    store: Store,
    catalog: Catalog,
    live: pa.Table,
    quantizer: QuantizerRecord,
    decided: dict[str, Any],
    reporter: Reporter,
) -> str:
    settings = RunSettings(sources=(), root=store.url, beam=tuple(check_options(())))
    used = np.unique(live["part"].to_numpy()).tolist()
    quantize_parts(store, quantizer.id, [catalog.parts[number] for number in used], settings, reporter)
    manifest = decided | {
        "inputs": inputs_digest(live, catalog.fingerprints, decided),
        "fingerprints": fingerprints_of(catalog, live, quantizer),
    }
    return build(store, quantizer, catalog.parts, live, manifest, None, {})[0]


def _recount(
    store: Store, record: RootRecord, work: Erasure, after: dict[str, Catalog], reporter: Reporter
) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """How a release's counts change: as the newest listing's, where it was made of that, else by the rows that go."""
    counts: list[dict[str, Any]] = []
    names = listing_names(store)[:1]
    with contextlib.suppress(SifBatchError, KeyError, IndexError):  # the newest listing is not embedded yet
        listing = Listing.load(store, names[0])
        for entries, catalog in (
            (listing, work.catalogs[record.encoder]),
            (work.erased.leave_out(listing), after[record.encoder]),
        ):
            settings = RunSettings(sources=(), root=store.url)
            found = settle(store, entries, names[0], catalog, set(catalog.parts), settings).counts
            counts.append({name: found[name] for name in RECOUNTED} | {"failed": found["failed_before"]})

    def recounted(manifest: dict[str, Any], gone: int) -> dict[str, Any]:
        if len(counts) == 2 and counts[0] == {name: manifest[name] for name in RECOUNTED}:
            return counts[1]
        return {"listed": manifest["listed"] - gone}

    return recounted


def _publish(store: Store, replaced: dict[str, str | None]) -> None:
    """History says what was erased when, and by what each release was replaced."""
    top = read_top(store)
    said = {name for entry in read_history(store) for name in entry.get("erasures", ())}
    new = [name for name in store.sizes(FOLDER) if name not in said]
    if top is None or not (new or replaced):
        return
    release = str(replaced.get(top["release"]) or top["release"])
    passed = not judge(GateSettings(), read_manifest(store, f"releases/{release}"))
    gate = "passed" if passed else "skipped"
    publish(store, release, top, gate, "erase", top["held"], replaced=replaced, erasures=new)


def _forget(store: Store, work: Erasure) -> None:
    """Runs, listings and plans without what is erased."""
    for page in erase_traces.find_pages(store, work.releases, work.names):
        remove(store, page)
    for name, data in erase_traces.find_words(store, work.names):
        store.replace(name, data)
    for old, new, data in erase_traces.find_listings(store, work.erased):
        store.create(new, data)
        remove(store, old)
    for plan in erase_traces.find_plans(store, work.erased, any(work.parts(encoder) for encoder in work.catalogs)):
        remove(store, plan)


def _remove(store: Store, lease: Lease, work: Erasure) -> None:
    """What was made anew goes: parts last, since by them the same command finds what is left to do."""
    for release in work.releases:
        lease.check()
        remove(store, f"releases/{release}", MANIFEST)
        forget(release)
    for name in work.queries:
        lease.check()
        remove(store, f"quantizers/{name}", "quantizer.json")
        remove(store, f"codes/{name}")
    for encoder in work.catalogs:
        remove(store, known_path(encoder))
        for part in work.parts(encoder):
            lease.check()
            for quantizer in store.sizes("codes"):
                remove(store, f"codes/{quantizer}/{part}.parquet")
            remove(store, part_path(encoder, part))
        load_whole(store, encoder)  # its cache anew
    store.sweep(after_s=0)

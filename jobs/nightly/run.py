"""The nightly job: list, embed what is new, index, gate, publish; and its two halves alone."""

import os
from contextlib import ExitStack, suppress
from typing import Any

import pyarrow as pa

import sif_batch
from sif_batch.config import IndexSettings, RootRecord
from sif_batch.encoders.installed import check_encoder, install_encoder
from sif_batch.errors import SifBatchError
from sif_batch.jobs.nightly.early_end import end_recorded
from sif_batch.jobs.nightly.embed_stage import Embedded, embed_collection, ledger_of
from sif_batch.jobs.nightly.index_stage import Indexed, index_collection
from sif_batch.jobs.nightly.prepare import decide_record, list_collection, newest_listing, read_own, settle_encoder
from sif_batch.jobs.nightly.speed import bottleneck, embedding_figures
from sif_batch.jobs.progress import Reporter, timed
from sif_batch.jobs.reports.night import try_report
from sif_batch.jobs.run_record import EventLog, utc, write_run
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.terminal.summary import summarise
from sif_batch.ledger.tombstones import read_erased
from sif_batch.machine.child import running_children
from sif_batch.machine.memory import peak_bytes
from sif_batch.model_export.choose import Chosen
from sif_batch.pipelines.engines import check_options, in_this_process
from sif_batch.release.history import cache_latest, read_top
from sif_batch.release.manifest import shape_of
from sif_batch.release.metadata import read_metadata
from sif_batch.sources.files import expand_exclusions
from sif_batch.sources.listing import Listing
from sif_batch.storage.lease import Lease, holding
from sif_batch.storage.root import read_record
from sif_batch.storage.store import Store

HALVES = ("embed", "index")


class Night:
    """One run that holds ROOT. seconds: by stage; result: what `--json` prints, as far as it is known."""

    def __init__(self, store: Store, run_id: str, lease: Lease, settings: RunSettings, reporter: Reporter):
        self.store, self.id, self.lease, self.settings, self.reporter = store, run_id, lease, settings, reporter
        self.started = utc()
        self.log = EventLog(store, self.id)
        self.seconds: dict[str, float] = {}
        self.result: dict[str, Any] = {"outcome": "error", "release": None, "root": store.url, "run": self.id}


def run(settings: RunSettings, reporter: Reporter, halves: tuple[str, ...] = HALVES) -> dict[str, Any]:
    """Run the night, or half of it, and return what `--json` prints.

    Raises SifBatchError, BusyError where another process holds ROOT; whatever stands is never harmed.
    """
    settings = settings.model_copy(update={"beam": tuple(check_options(settings.beam))})
    if settings.max_memory is not None and not in_this_process(settings.beam):
        raise SifBatchError(
            "--max-memory bounds the processes of this machine, and the work is a cluster's",
            remedy="give the engine's own limits of memory",
        )
    store = Store(settings.root)
    old = read_own(store, settings)
    with ExitStack() as held:
        run_id = held.enter_context(end_recorded(store, settings))
        store.check_writable()
        if old is not None:
            lease = held.enter_context(holding(store, " ".join(halves), reporter.say))
            old = read_record(store)
        seconds: dict[str, float] = {}
        recorded, chosen = decide_record(store, old, settings, reporter.say)
        record = recorded.model_copy(update={"sources": expand_exclusions(recorded.sources)})
        metadata = read_metadata(record.metadata) if record.metadata and "index" in halves else None
        if "embed" in halves:
            with timed(seconds, "list"):
                listing = read_erased(store).leave_out(list_collection(record, reporter))
            record, chosen = settle_encoder(store, old, record, chosen, listing, settings, reporter)
            recorded = recorded.model_copy(update={"encoder": record.encoder})
        # Nothing was written before this line, but the lease of a ROOT that stood.
        if old is None:
            lease = held.enter_context(holding(store, " ".join(halves), reporter.say))
            if read_record(store) is not None:
                raise SifBatchError(f"another run made {store.url} meanwhile", remedy="run the same command again")
        night = Night(store, run_id, lease, settings, reporter)
        reporter.log = night.log
        night.log.write("began", halves=halves, version=sif_batch.__version__, pid=os.getpid(), root=store.url)
        night.seconds |= seconds
        store.sweep()
        # A kind of index is recorded once it has made a release: one that cannot must not stay for later nights.
        proven = recorded.model_copy(update={"index": old.index if old else IndexSettings()})
        if "embed" in halves:
            install_encoder(store, chosen.spec, chosen.model, chosen.float_model)
            store.replace("root.json", proven.canonical())
            listing_name = listing.save(store)
            if chosen.figures is not None:
                night.result["int8"] = chosen.figures
        else:
            listing_name = newest_listing(store)
            listing = Listing.load(store, listing_name)
        night.log.write("listed", listing=listing_name, entries=len(listing.entries), ignored=listing.ignored)
        check_encoder(store, record.encoder)
        result = _work(night, record, chosen, listing, listing_name, metadata, halves)
        if result["outcome"] in ("published", "unchanged") and recorded != proven:
            lease.check()
            store.replace("root.json", recorded.canonical())
        return result


def _work(
    night: Night,
    record: RootRecord,
    chosen: Chosen,
    listing: Listing,
    listing_name: str,
    metadata: pa.Table | None,
    halves: tuple[str, ...],
) -> dict[str, Any]:
    """Embed, index and write down what came of it, whatever that is."""
    store, result = night.store, night.result
    parent = read_top(store)
    if parent is not None:
        cache_latest(store, parent)
    try:
        with timed(night.seconds, "embed"):
            collect = embed_collection if "embed" in halves else ledger_of
            embedded = collect(store, record, listing, listing_name, night.settings, night.reporter)
        night.log.write("embedded", **embedded.counts)
        result |= embedded.counts | {
            "outcome": "embedded",
            "embedding": embedding_figures(embedded.speed) if embedded.speed else None,
            "bottleneck": bottleneck(embedded.speed, chosen.spec.precision == "int8"),
        }
        if "index" in halves:
            result["outcome"] = "error"
            result |= _index(night, record, embedded, metadata)
    except (SifBatchError, OSError) as error:
        result |= {"outcome": "error", "error": str(error), "remedy": getattr(error, "remedy", "")}
        raise
    finally:
        result["seconds"] = {name: round(value, 3) for name, value in night.seconds.items()}
        workers = sorted((peak_bytes(child.pid) for child in running_children()), reverse=True)
        result |= {"encoder": record.encoder, "memory": {"main": peak_bytes(), "workers": workers}}
        store.sweep()
        _write_down(night, result)
        write_run(store, night.id, night.settings, night.started, listing_name, parent, result)
        if night.settings.report:
            try_report(store, night.id, night.reporter.say)
    return result


def _write_down(night: Night, result: dict[str, Any]) -> None:
    """The end of the log, and the summary."""
    facts = ("outcome", "release", "listed", "embedded", "reused", "failed", "deleted", "in_index", "error", "seconds")
    night.log.write("ended", **{name: result[name] for name in facts if name in result})
    night.log.close()
    night.reporter.log = None
    with suppress(OSError):
        night.store.create(f"runs/{night.id}/summary.txt", summarise(result).encode())


def _index(night: Night, record: RootRecord, embedded: Embedded, metadata: pa.Table | None) -> dict[str, Any]:
    counts = embedded.counts
    if not counts["in_index"]:
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts["failed_by_kind"].items())
        raise SifBatchError(
            f"none of the {counts['listed']} images can be used: {kinds}",
            remedy=f"sif-batch status {night.settings.root} --failures says why for each",
        )
    with timed(night.seconds, "index"):
        indexed = index_collection(night.store, night.lease, record, embedded, night.settings, night.reporter, metadata)
    figures = index_figures(indexed, night.settings)
    rows = indexed.candidate.manifest["rows"]
    night.log.write(indexed.outcome, release=figures["release"], gate=figures["gate"], rows=rows)
    return figures


def index_figures(indexed: Indexed, settings: RunSettings) -> dict[str, Any]:
    """What `--json` says of the index and the gate."""
    manifest, candidate = indexed.candidate.manifest, indexed.candidate
    return {
        "outcome": indexed.outcome,
        "deleted": indexed.deleted,
        "release": candidate.release,
        "drift": manifest["drift"],
        "training": indexed.training,
        "gate": {
            "passed": not indexed.reasons,
            "enabled": settings.gate.enabled,
            "reasons": indexed.reasons,
            "recall_at_10": manifest["recall"]["at_10"],
            "recall": manifest["recall"],
            "sanity": manifest["sanity"],
            "queries": manifest["recall"]["queries"],
            "failed_share": round(manifest["failed"] / manifest["listed"], 6),
        },
        "index": {
            "family": manifest["quantizer"]["family"],
            "quantizer": manifest["quantizer"]["id"],
            "codes_scanned": manifest["codes_scanned"],
            "shape": shape_of(manifest).explain(),
            "curve": candidate.curve_ms,
            "seconds": {name: round(value, 3) for name, value in indexed.seconds.items()},
            "query_ms": candidate.query_ms and round(candidate.query_ms, 3),
        },
    }

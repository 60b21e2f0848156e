"""The nightly job: list, embed what is new, index, gate, publish."""

import os
import platform
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sif_batch
from jobs.embed import Speed, embed_collection
from jobs.index import index_collection
from jobs.progress import Reporter
from jobs.settings import RunSettings, decide_record, read_record, usable_cores
from sif_batch.catalog import load_catalog
from sif_batch.child import Child, ChildDied
from sif_batch.config import IndexSettings, RootRecord, SifBatchError, canonical_json
from sif_batch.devices import choose_devices
from sif_batch.encoders import install_encoder
from sif_batch.encoders.choose import Chosen
from sif_batch.encoders.spec import check_encoder, model_bytes
from sif_batch.kernels import computes_int8, instruction_set
from sif_batch.precision import candidates
from sif_batch.release import cache_latest, read_top
from sif_batch.sources import Listing, list_sources
from sif_batch.standing import spans_to_do, standing_rows
from sif_batch.storage import Store

LOWER_STALL_S = 1800
ADVICE = {  # by what limits embedding
    "read": "faster storage, or more --workers to wait for it",
    "decode": "more cores, or smaller images: photos far above the network's input are decoded for nothing",
    "network": "more cores, or a smaller --encoder",
    "write": "faster storage for ROOT, or a larger --shard-images",
    "waiting": "a larger --shard-images, so that threads wait less often for the last image of a shard",
}


def run(settings: RunSettings, reporter: Reporter) -> dict[str, Any]:
    """Run the whole night and return what `--json` prints. Raises SifBatchError; whatever stands is never harmed."""
    from pipelines.runner import check_options

    settings = settings.model_copy(update={"beam": tuple(check_options(settings.beam))})
    seconds: dict[str, float] = {}
    started = utc()
    store = Store(settings.root)
    old = read_record(store)
    store.check_writable()
    record, chosen = decide_record(store, old, settings, reporter.say)
    with timed(seconds, "list"):
        for source in record.sources:
            reporter.say(f"listing {source.url}")
        listing = list_sources(record.sources, lambda found: reporter.say(f"listing: {found} found"))
    if chosen.to_int8:
        chosen = lower_encoder(store, chosen, record, listing, settings, reporter)
        record = record.model_copy(update={"encoder": chosen.spec.id})
    if old is not None and old.encoder != record.encoder:
        say_cost(store, old, record, listing, settings, reporter)
    choose_devices(settings.device, chosen.spec.precision)  # or the error
    # Nothing was written before this line.
    store.sweep()
    install_encoder(store, chosen.spec, chosen.model, chosen.float_model)
    check_encoder(store, record.encoder)
    # A kind of index is recorded once it has made a release: one that cannot must not stay for later nights.
    recorded = record.model_copy(update={"index": old.index if old else IndexSettings()})
    store.replace("root.json", recorded.canonical())
    listing_name = listing.save(store)
    parent = read_top(store)
    if parent is not None:
        cache_latest(store, parent)
    result: dict[str, Any] = {"outcome": "error", "release": None}
    if chosen.figures is not None:
        result["int8"] = chosen.figures
    try:
        with timed(seconds, "embed"):
            embedded = embed_collection(store, record, listing, listing_name, settings, reporter)
        counts = embedded.counts
        result |= counts
        if not counts["in_index"]:
            kinds = ", ".join(f"{n} {kind}" for kind, n in counts["failed_by_kind"].items())
            raise SifBatchError(
                f"none of the {counts['listed']} images can be used: {kinds}",
                remedy=f"sif-batch status {settings.root} --failures says why for each",
            )
        with timed(seconds, "index"):
            indexed = index_collection(store, record, listing, embedded, settings, reporter)
        if indexed.outcome != "refused" and record != recorded:
            store.replace("root.json", record.canonical())
        manifest = indexed.manifest
        result |= {
            "outcome": indexed.outcome,
            "deleted": indexed.deleted,
            "release": indexed.release,
            "root": store.url,
            "gate": {
                "passed": not indexed.reasons,
                "enabled": settings.gate.enabled,
                "reasons": indexed.reasons,
                "recall_at_10": manifest["recall"]["at_10"],
                "queries": manifest["recall"]["queries"],
                "failed_share": round(manifest["failed"] / manifest["listed"], 6),
            },
            "index": {
                "family": manifest["quantizer"]["family"],
                "quantizer": manifest["quantizer"]["id"],
                "codes_scanned": manifest["codes_scanned"],
                "query_ms": indexed.query_ms and round(indexed.query_ms, 3),
            },
            "embedding": embedding_figures(embedded.speed) if embedded.speed else None,
            "bottleneck": bottleneck(embedded.speed, chosen.spec.precision == "int8"),
        }
    except (SifBatchError, OSError) as error:
        result |= {"error": str(error), "remedy": getattr(error, "remedy", "")}
        raise
    finally:
        result["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        store.sweep()
        write_run(store, settings, started, listing_name, parent, result)
    return result


def lower_encoder(
    store: Store, chosen: Chosen, record: RootRecord, listing: Listing, settings: RunSettings, reporter: Reporter
) -> Chosen:
    """The encoder in int8, measured against itself in float. Writes nothing. Raises SifBatchError."""
    if not computes_int8():
        raise SifBatchError(
            f"--precision int8 needs a CPU with VNNI; this one has {instruction_set()}", remedy="--precision fp32"
        )
    with tempfile.TemporaryDirectory(prefix="sif-batch-") as folder:
        model, out = Path(folder) / "float.onnx", Path(folder) / "model.onnx"
        model.write_bytes(chosen.model or model_bytes(store, chosen.spec))
        child = Child()
        try:
            spec, figures = child.call(
                "sif_batch.precision:lower",
                reporter.say,
                LOWER_STALL_S,
                spec=chosen.spec,
                model=str(model),
                out=str(out),
                entries=candidates(listing.entries),
                sources=record.sources,
                limits=settings.limits,
                settings=settings.int8,
                threads=settings.workers,
            )
        except ChildDied as death:
            raise SifBatchError(
                f"{chosen.spec.name} could not be lowered to int8: {death}", remedy="free memory"
            ) from death
        finally:
            child.close()
        measured = f"keeps {figures['kept']:.3f} of ten nearest neighbours"
        if "map" in figures:
            measured += f", mAP {figures['map_int8']:.4f} for {figures['map']:.4f}"
        reporter.say(f"int8: {measured}, judged by {figures['judged_by']} images")
        return Chosen(spec, out.read_bytes(), float_model=model.read_bytes(), figures=figures)


def say_cost(
    store: Store, old: RootRecord, record: RootRecord, listing: Listing, settings: RunSettings, reporter: Reporter
) -> None:
    """Say what another encoder than ROOT's costs, before it is paid."""
    catalog = load_catalog(store, record.encoder, keep=False)
    todo = len(spans_to_do(listing.entries, standing_rows(listing.entries, catalog, settings.max_attempts), catalog))
    reporter.say(
        f"another encoder, {record.encoder} in place of {old.encoder}: "
        f"{todo} of {len(listing.entries)} images will be embedded again"
    )


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


def embedding_figures(speed: Speed) -> dict[str, Any]:
    """Images per second, and the seconds of the threads by stage; waiting is what is left of their time."""
    spent = {stage: round(seconds, 3) for stage, seconds in speed.thread_s.items()}
    spent["waiting"] = round(max(0.0, speed.threads * speed.working_s - sum(speed.thread_s.values())), 3)
    return {
        "images_per_s": round(speed.images / speed.working_s, 1) if speed.working_s else None,
        "first_image_s": speed.first_image_s and round(speed.first_image_s, 2),
        "working_s": round(speed.working_s, 3),
        "device": speed.device,
        "processes": len(speed.lanes),
        "threads": speed.threads,
        "thread_s": spent,
    }


def bottleneck(speed: Speed | None, int8: bool) -> str | None:
    """Where the threads' time went, most first, and the one change that would help most; None: nothing was embedded."""
    if speed is None:
        return None
    spent = embedding_figures(speed)["thread_s"]
    total = sum(spent.values())
    if not total:
        return None
    shares = sorted(((seconds / total, stage) for stage, seconds in spent.items()), reverse=True)
    limit = shares[0][1]
    advice = ADVICE[limit]
    if limit == "network" and not int8 and computes_int8():
        advice = "--precision int8, at about half the network's time"
    if speed.threads < usable_cores() and limit in ("decode", "network"):
        advice = f"--workers {usable_cores()}, as many as there are cores"
    split = ", ".join(f"{stage} {share:.0%}" for share, stage in shares[1:] if share >= 0.005)
    return f"{limit}: {shares[0][0]:.0%} of core time ({split}); most would help: {advice}"


def write_run(
    store: Store,
    settings: RunSettings,
    started: str,
    listing: str,
    parent: dict[str, Any] | None,
    result: dict[str, Any],
) -> None:
    """runs/<id>/run.json: what this run was asked, where it ran and what came of it. Failing here fails nothing."""
    name = f"{utc()}-{uuid.uuid4().hex[:8]}"
    document = {
        "id": name,
        "started": started,
        "ended": utc(),
        "settings": settings.model_dump(mode="json"),
        "version": sif_batch.__version__,
        "listing": listing,
        "parent": parent["release"] if parent else None,
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cores": usable_cores(),
            "isa": instruction_set(),
            "vnni": computes_int8(),
            "pid": os.getpid(),
        },
        "result": result,
    }
    with suppress(OSError):
        store.create(f"runs/{name}/run.json", canonical_json(document))


def utc() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())

"""The dry run, `run --dry-run`: what a run would do and take, before it does. ROOT is only read."""

import time
from typing import Any

import pyarrow.compute as pc

from sif_batch.encoders.installed import model_bytes
from sif_batch.errors import SifBatchError
from sif_batch.jobs.nightly.capacity import find_problems, fit_task, free_disk, make_task, read_past
from sif_batch.jobs.nightly.forecast import foresee
from sif_batch.jobs.nightly.prepare import decide_record, list_collection, read_own, settle_encoder
from sif_batch.jobs.nightly.timed_sample import count_images, time_sample
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.plan import slice_spans
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.ledger.tombstones import read_erased
from sif_batch.machine.devices import choose_devices, plan_lanes
from sif_batch.machine.memory import available_bytes
from sif_batch.pipelines.engines import check_options, in_this_process
from sif_batch.release.metadata import read_metadata
from sif_batch.sources.files import expand_exclusions
from sif_batch.storage.store import Store


def dry_run(settings: RunSettings, reporter: Reporter) -> dict[str, Any]:
    """List, plan, time a sample, and foretell. Raises SifBatchError for what would stop the run before it embeds."""
    settings = settings.model_copy(update={"beam": tuple(check_options(settings.beam))})
    if not in_this_process(settings.beam):
        raise SifBatchError(
            "--dry-run foretells runs on this machine, not on a cluster", remedy="leave Beam's options out"
        )
    store, began = Store(settings.root), time.perf_counter()
    old = read_own(store, settings)
    recorded, chosen = decide_record(store, old, settings, reporter.say)
    record = recorded.model_copy(update={"sources": expand_exclusions(recorded.sources)})
    if record.metadata:
        read_metadata(record.metadata)
    listing = read_erased(store).leave_out(list_collection(record, reporter))
    record, chosen = settle_encoder(store, old, record, chosen, listing, settings, reporter)
    catalog = load_catalog(store, record.encoder, keep=False)
    standing = standing_rows(listing.entries, catalog, settings.max_attempts)
    todo = spans_to_do(listing.entries, standing, catalog)
    listed_s = time.perf_counter() - began

    sources = {source.name: source for source in record.sources}
    images, counted = count_images(todo, sources, settings.limits)
    shards = int(slice_spans(todo, settings.limits)[-1]) + 1 if len(todo) else 0
    lanes = plan_lanes(choose_devices(settings.device, chosen.spec.precision)[0], settings.workers, shards)
    encoder_bytes = len(chosen.model or model_bytes(store, chosen.spec))
    past = read_past(store, record.encoder, lanes)
    good = int(standing.good.sum())
    task = make_task(store, record, chosen.spec, encoder_bytes, images, good, lanes, settings)
    task, lanes = fit_task(task, past, lanes, settings, reporter.say)
    sample = None
    if len(todo):
        reporter.say("timing a sample")
        sample = time_sample(store, chosen, record, todo, lanes[0], settings)
    forecast = foresee(task, sample, past, listed_s)
    problems = find_problems(store, forecast, settings)
    return {
        "outcome": "foretold" if not problems else "does not fit",
        "root": store.url,
        "listed": len(listing.entries),
        "ignored": sum(listing.ignored.values()),
        "standing": len(standing.row),
        "to_do": {
            "entries": len(todo),
            "bytes": pc.sum(todo["size"]).as_py() or 0,
            "images": images,
            "counted": counted,
            "shards": shards,
            "processes": len(task.lanes),
            "threads": sum(task.lanes),
        },
        "index": {"shape": task.spec.explain(), "rows": task.rows, "trained": bool(task.trained)},
        "sample": sample and sample.describe(),
        "forecast": forecast,
        "available": {"memory": available_bytes(), "disk": (place := free_disk(store)) and place[1]},
        "problems": [{"problem": text, "remedy": remedy} for text, remedy in problems],
    }

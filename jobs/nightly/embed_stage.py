"""The first half of a run: finish what a dead run left, then embed what is new."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import RootRecord
from sif_batch.encoders.installed import read_spec
from sif_batch.errors import SifBatchError
from sif_batch.jobs.nightly.capacity import fit_run
from sif_batch.jobs.nightly.speed import Speed, add_counters
from sif_batch.jobs.progress import Reporter, process_age_s, watching_folder
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.content_index import are_known, write_known
from sif_batch.ledger.entry_digests import ENTRY
from sif_batch.ledger.live import failures_by_kind
from sif_batch.ledger.plan import OPEN, finish_plan, make_plan, open_plans, plan_encoder, plan_shards, save_plan
from sif_batch.ledger.reconcile import Standing, stale_rows, standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.machine.child import ChildDied, shared_child, shared_children
from sif_batch.machine.devices import OwnLanes, choose_devices, plan_lanes
from sif_batch.pipelines.engines import in_this_process
from sif_batch.sources.listing import Listing, listing_names
from sif_batch.storage.store import Store

WARM_UP = "sif_batch.embedding.child_cache:warm_up"


@dataclass
class Embedded:
    """The collection after embedding. live: (n,) numbers of the catalog rows to index; keys: of all images, failed
    ones too; counts: the ledger."""

    catalog: Catalog
    live: np.ndarray
    keys: pa.ChunkedArray
    counts: dict[str, Any]
    speed: "Speed | None"


def embed_collection(
    store: Store, record: RootRecord, listing: Listing, listing_name: str, settings: RunSettings, reporter: Reporter
) -> Embedded:
    """Bring the parts up to the listing: an unfinished plan first, under its own names, then the rest."""
    entries = listing.entries
    catalog = load_catalog(store, record.encoder)
    before, told = set(catalog.parts), not len(catalog.rows)
    known = catalog
    speed, devices = Speed(), None
    standing: Standing | None = None
    for unfinished in [*open_plans(store, record.encoder), None]:
        standing = standing or standing_rows(entries, catalog, settings.max_attempts)
        todo = spans_to_do(entries, standing, catalog, to_retry(standing, catalog, before, settings.retry_failed))
        if unfinished is None and not len(todo):
            break
        if unfinished is None:
            plan = make_plan(record.encoder, todo, settings.limits)
            name = save_plan(store, record.encoder, plan, record.sources, settings.limits)
        else:
            name, plan = unfinished, unfinished_part(plan_shards(store, unfinished), catalog, todo)
        if len(plan) and not told:
            write_known(store, record.encoder, known)
            told = True
        if len(plan):
            if in_this_process(settings.beam):
                devices = devices or choose_usable_devices(store, name, settings, reporter, speed)
                good = int(standing.good.sum())
                _run_shards(store, record, name, plan, good, devices, settings, reporter, speed)
            else:
                _run_shards_elsewhere(store, name, plan, settings, reporter, speed)
        finish_plan(store, name)
        catalog, standing = load_catalog(store, record.encoder), None
    done = speed if speed.images else None
    return settle(store, listing, listing_name, catalog, before, settings, done, standing, reporter.say)


def ledger_of(
    store: Store, record: RootRecord, listing: Listing, listing_name: str, settings: RunSettings, reporter: Reporter
) -> Embedded:
    """As `embed_collection` for parts that are complete already. Raises SifBatchError if they are not."""
    catalog = load_catalog(store, record.encoder)
    return settle(store, listing, listing_name, catalog, set(catalog.parts), settings, say=reporter.say)


def settle(
    store: Store,
    listing: Listing,
    listing_name: str,
    catalog: Catalog,
    before: set[str],
    settings: RunSettings,
    speed: Speed | None = None,
    standing: Standing | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Embedded:
    """The listing by what the catalog has. before: the parts that stood as the run began."""
    entries = listing.entries
    standing = standing or standing_rows(entries, catalog, settings.max_attempts)
    stale = stale_rows(entries, standing, catalog, _older_listings(store, listing_name, say))
    live = np.concatenate([standing.row[standing.good], stale])
    keys = catalog.rows["key"].take(pa.array(np.concatenate([standing.row, stale])))
    counts = count(standing, stale, catalog, before) | {"ignored": sum(listing.ignored.values())}
    return Embedded(catalog, live, keys, counts, speed)


def to_retry(standing: Standing, catalog: Catalog, before: set[str], all_failed: bool) -> np.ndarray:
    """Which standing rows to do again, (n,) bool: passing failures of an earlier run, on demand all failures."""
    earlier = np.array([part in before for part in catalog.parts] or [False])
    part = catalog.rows["part"].to_numpy()[standing.row]
    failed = ~standing.good & ~standing.duplicate[standing.entry] if all_failed else standing.retry
    return failed & earlier[part]


def unfinished_part(plan: pa.Table, catalog: Catalog, todo: pa.Table) -> pa.Table:
    """The shards of an interrupted plan that have no part yet, or not all of a container's, and hold an entry that is
    still wanted."""
    made = pc.and_(
        pc.is_in(plan["part"], pa.array(catalog.parts, pa.string())), pc.not_equal(plan["last"], pa.scalar(OPEN))
    )
    missing = plan.filter(pc.invert(made))
    shards = missing.join(todo.select(ENTRY), ENTRY, join_type="left semi")["shard"].unique()
    return missing.filter(pc.is_in(missing["shard"], shards))


def count(standing: Standing, stale: np.ndarray, catalog: Catalog, before: set[str]) -> dict[str, Any]:
    """The ledger of the listing. Raises SifBatchError if it does not reconcile."""
    missing = int((standing.first >= 0).sum())
    if missing:
        raise SifBatchError(
            f"{missing} of {len(standing.first)} listed entries have no row: the ledger does not reconcile",
            remedy="sif-batch run embeds them; if it has just ended, report this with its run.json",
        )
    is_new = np.array([part not in before for part in catalog.parts], bool)
    new = is_new[catalog.rows["part"].to_numpy()[standing.row]]
    good = standing.good
    reused = int(are_known(catalog, standing.row[good & new], ~is_new).sum())
    counts: dict[str, Any] = {
        "listed": len(standing.row),
        "unchanged": int((good & ~new).sum()),
        "embedded": int((good & new).sum()) - reused,
        "reused": reused,
        "failed": int((~good & new).sum()),
        "failed_before": int((~good & ~new).sum()),
        "failed_by_kind": failures_by_kind(catalog, standing.row[~good]),
        "stale": len(stale),
        "superseded": standing.superseded,
    }
    counts["in_index"] = counts["unchanged"] + counts["embedded"] + counts["reused"] + counts["stale"]
    return counts


def choose_usable_devices(
    store: Store, plan: str, settings: RunSettings, reporter: Reporter, speed: Speed
) -> list[str]:
    """The devices to embed on, told to the user. Raises SifBatchError for one that is not here.

    `auto` tries the network on the GPU, and keeps to the CPU where it cannot run there.
    """
    encoder = plan_encoder(store, plan)
    devices, shown = choose_devices(settings.device, read_spec(store, f"encoders/{encoder}").precision)
    if settings.device == "auto" and devices != ["cpu"]:
        try:
            shared_child().call(WARM_UP, root=store.url, encoder_id=encoder, device=devices[0])
        except (SifBatchError, ChildDied) as error:
            devices, shown = ["cpu"], f"cpu, not {shown}: {error}"
    speed.device = shown
    reporter.say(f"embedding on {shown}")
    return devices


def _run_shards(
    store: Store,
    record: RootRecord,
    name: str,
    plan: pa.Table,
    good: int,
    devices: list[str],
    settings: RunSettings,
    reporter: Reporter,
    speed: Speed,
) -> None:
    shards, encoder = plan["shard"].unique().to_pylist(), plan_encoder(store, name)
    lanes = plan_lanes(devices, settings.workers, len(shards))
    lanes = fit_run(store, record, plan, good, lanes, settings, reporter.say)
    speed.lanes = max(speed.lanes, lanes, key=len)
    for child, lane in zip(shared_children(len(lanes)), lanes, strict=True):
        child.prepare(WARM_UP, root=store.url, encoder_id=encoder, device=lane.device)
    from sif_batch.pipelines import embed  # meanwhile
    from sif_batch.pipelines.runner import Progress, run_pipeline

    total = None if OPEN in plan["last"].to_pylist() else len(plan)  # nobody knows what a container holds
    with reporter.stage("embedding", total, "images") as update:
        began: list[float] = []

        told, ended = threading.Lock(), 0.0

        def on_progress(done: int, failed: int) -> None:
            nonlocal ended
            with told:  # several lanes tell
                if not began:
                    began.append(time.monotonic())
                    if speed.first_image_s is None:
                        speed.first_image_s = process_age_s()
                ended = time.monotonic()
                update(done, failed)

        Progress.update = staticmethod(on_progress)
        transform = embed.EmbedShards(store.url, name, shards, lanes, settings.image_timeout)
        counters = run_pipeline(transform, settings.beam)
    speed.working_s += ended - began[0] if began else 0.0
    add_counters(speed, counters)


def _run_shards_elsewhere(
    store: Store, name: str, plan: pa.Table, settings: RunSettings, reporter: Reporter, speed: Speed
) -> None:
    """On a cluster, whose machines choose their devices themselves; progress is what appears in ROOT."""
    from sif_batch.pipelines import embed
    from sif_batch.pipelines.runner import run_pipeline

    shards, encoder = plan["shard"].unique().to_pylist(), plan_encoder(store, name)
    threads = settings.workers if "workers" in settings.model_fields_set else None
    lanes = OwnLanes(settings.device, read_spec(store, f"encoders/{encoder}").precision, threads)
    speed.device = f"{settings.device}, chosen by each worker"
    total = None if OPEN in plan["last"].to_pylist() else len(plan["part"].unique())
    began = time.monotonic()
    with reporter.stage("embedding", total, "shards") as update, watching_folder(store, f"parts/{encoder}", update):
        transform = embed.EmbedShards(store.url, name, shards, lanes, settings.image_timeout)
        counters = run_pipeline(transform, settings.beam)
    speed.working_s += time.monotonic() - began
    add_counters(speed, counters)


def _older_listings(store: Store, current: str, say: Callable[[str], None]) -> Iterator[pa.Table]:
    """The entries of the listings before the current one, newest first; of those that can be read."""
    names = listing_names(store)
    for name in names[names.index(current) + 1 :]:
        try:
            listing = Listing.load(store, name)
        except SifBatchError as error:
            say(f"passed over, {error}")
            continue
        yield listing.entries

"""Preparing a night, a dry run or a search in bulk: what ROOT will record, its listing, its encoder."""

from sif_batch.config import IndexSettings, RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.jobs.nightly.int8_stage import lower_encoder, say_cost
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.settings import RunSettings
from sif_batch.machine.devices import choose_devices
from sif_batch.model_export.choose import Chosen, Say, choose_encoder
from sif_batch.pipelines.engines import in_this_process
from sif_batch.sources.apart import check_apart
from sif_batch.sources.listing import Listing, list_sources, listing_names, parse_sources, place_of
from sif_batch.storage.root import check_new, read_record
from sif_batch.storage.store import Store


def read_own(store: Store, settings: RunSettings) -> RootRecord | None:
    """root.json, None where a ROOT is to be made. Refuses a folder that holds what no run wrote."""
    record = read_record(store)
    if record is None and settings.sources:
        first, *others = settings.sources
        swapped = " ".join([*others, store.url, first])
        check_new(store, f"give ROOT last, a new or empty folder; the other way round? sif-batch run {swapped}")
    return record


def decide_record(
    store: Store, old: RootRecord | None, settings: RunSettings, say: Say = lambda text: None
) -> tuple[RootRecord, Chosen]:
    """What ROOT will record: its own choices, with what was asked for put in their place. Writes nothing."""
    if old is None and not settings.sources:
        raise SifBatchError(
            f"{store.url} is not a ROOT (it holds no root.json), and no SOURCE was given",
            remedy=f"give both: sif-batch run {settings.root} ROOT",
        )
    of_sources = {name: getattr(settings, name) for name in ("include", "exclude", "inventory", "image_column", "keep")}
    if any(of_sources.values()) and not settings.sources:
        raise SifBatchError(
            "--include, --exclude, --inventory, --image-column and --keep go with the SOURCEs of a command, "
            "and none was given",
            remedy="name the source again: they are recorded with it",
        )
    given = parse_sources(settings.sources, **of_sources)
    merged = {source.name: source for source in (*(old.sources if old else ()), *given)}
    check_apart(store, list(merged.values()))
    chosen = choose_encoder(store, old.encoder if old else None, settings.encoder, say)
    index = old.index if old else IndexSettings()
    index = IndexSettings.model_validate(index.model_dump() | settings.index)
    sources = tuple(merged[name] for name in sorted(merged))
    metadata = place_of(settings.metadata) if settings.metadata else old.metadata if old else None
    return RootRecord(sources=sources, encoder=chosen.spec.id, index=index, metadata=metadata), chosen


def list_collection(record: RootRecord, reporter: Reporter) -> Listing:
    """List all sources whole. Raises SifBatchError if one cannot be, or is empty."""
    for source in record.sources:
        reporter.say(f"listing {source.url}")
    return list_sources(record.sources, lambda found: reporter.say(f"listing: {found} found"), reporter.say)


def settle_encoder(
    store: Store,
    old: RootRecord | None,
    record: RootRecord,
    chosen: Chosen,
    listing: Listing,
    settings: RunSettings,
    reporter: Reporter,
) -> tuple[RootRecord, Chosen]:
    """The encoder lowered to int8 where that is asked for, and its price said. Writes nothing."""
    if chosen.to_int8:
        chosen = lower_encoder(store, chosen, record, listing, settings, reporter)
        record = record.model_copy(update={"encoder": chosen.spec.id})
    if old is not None and old.encoder != record.encoder:
        say_cost(store, old, record, listing, settings, reporter)
    if in_this_process(settings.beam):
        choose_devices(settings.device, chosen.spec.precision)  # or the error
    return record, chosen


def newest_listing(store: Store) -> str:
    names = listing_names(store)
    if not names:
        raise SifBatchError(f"{store.url} holds no listing yet", remedy=f"sif-batch embed SOURCE {store.url} makes one")
    return names[0]

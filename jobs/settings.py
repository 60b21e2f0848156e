"""What a run was asked to do: parsed and validated once, frozen, and stored in run.json."""

from typing import Any, Literal

from pydantic import Field

from sif_batch.config import Frozen, GateSettings, IndexSettings, Int8Settings, RootRecord
from sif_batch.embedding.supervision import IMAGE_TIMEOUT_S
from sif_batch.errors import SifBatchError
from sif_batch.ledger.plan import Limits
from sif_batch.ledger.reconcile import MAX_ATTEMPTS
from sif_batch.machine.devices import Device, usable_cores
from sif_batch.model_export.choose import Chosen, Say, choose_encoder
from sif_batch.model_export.request import EncoderRequest
from sif_batch.sources.listing import check_apart, parse_sources, place_of
from sif_batch.storage.store import Store

Retrain = Literal["auto", "never", "now"]


class RunSettings(Frozen):
    """The settings of `sif-batch run`. None: as ROOT records, else the default."""

    sources: tuple[str, ...]
    root: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    inventory: str | None = None
    image_column: str | None = None
    keep: tuple[str, ...] = ()
    encoder: EncoderRequest = EncoderRequest()
    workers: int = Field(default_factory=usable_cores, ge=1)
    device: Device = "auto"
    limits: Limits = Limits()
    image_timeout: float = Field(default=IMAGE_TIMEOUT_S, gt=0)
    retry_failed: bool = False
    max_attempts: int = Field(default=MAX_ATTEMPTS, ge=1, le=100)
    gate: GateSettings = GateSettings()
    index: dict[str, Any] = Field(default_factory=dict)
    scratch: str | None = None
    retrain: Retrain = "auto"
    max_memory: int | None = Field(default=None, ge=1)
    int8: Int8Settings = Int8Settings()
    metadata: str | None = None
    beam: tuple[str, ...] = ()
    report: bool = True


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

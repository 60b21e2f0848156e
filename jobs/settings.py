"""What a run was asked to do: parsed and validated once, frozen, and stored in run.json."""

from typing import Any, Literal

from pydantic import Field

from sif_batch.config import Frozen, GateSettings, Int8Settings
from sif_batch.embedding.supervision import IMAGE_TIMEOUT_S
from sif_batch.ledger.plan import Limits
from sif_batch.ledger.reconcile import MAX_ATTEMPTS
from sif_batch.machine.devices import Device, usable_cores
from sif_batch.model_export.request import EncoderRequest

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

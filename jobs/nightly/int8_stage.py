"""Another encoder than ROOT's: lowered to int8, and what its change costs."""

import tempfile
from pathlib import Path

from sif_batch.config import RootRecord
from sif_batch.encoders.installed import model_bytes
from sif_batch.errors import SifBatchError
from sif_batch.gate.int8 import candidates
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.machine.arithmetic import computes_int8, instruction_set
from sif_batch.machine.child import Child, ChildDied
from sif_batch.model_export.choose import Chosen
from sif_batch.sources.listing import Listing
from sif_batch.storage.store import Store

LOWER_STALL_S = 1800


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
                "sif_batch.gate.int8:lower",
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

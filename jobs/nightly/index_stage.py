"""The second half of a run: a quantizer, a candidate, the gate, and the release."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.gate.checks import judge
from sif_batch.jobs.nightly.candidate import Candidate, Collection, manifest_of, prepare_candidate
from sif_batch.jobs.nightly.embed_stage import Embedded
from sif_batch.jobs.nightly.retraining import choose_quantizer, train_again
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.live import live_rows
from sif_batch.release.history import publish, read_top
from sif_batch.release.metadata import join_metadata
from sif_batch.release.rebuild import read_images
from sif_batch.storage.lease import Lease
from sif_batch.storage.store import Store


@dataclass(frozen=True)
class Indexed:
    """What became of the candidate. outcome: published, unchanged, refused or held; training: why a quantizer was
    trained and what that cost, None where none was."""

    outcome: str
    candidate: Candidate
    reasons: list[str]
    deleted: int
    training: dict[str, Any] | None
    seconds: dict[str, float]


def index_collection(
    store: Store,
    lease: Lease,
    record: RootRecord,
    embedded: Embedded,
    settings: RunSettings,
    reporter: Reporter,
    metadata: pa.Table | None = None,
) -> Indexed:
    """Assemble a release of the live rows, measure it, and publish it if the gate lets it pass, unless held."""
    live = live_rows(embedded.catalog, embedded.live, record.sources)
    if metadata is not None:
        live, found = join_metadata(live, metadata)
        reporter.say(f"metadata: {found} of {len(live)} images have a row in {record.metadata}, of {len(metadata)}")
    top = read_top(store)
    parent = manifest_of(store, top["release"]) if top else None
    current = (top["release"], parent) if top and parent else None
    collection = Collection(store, record, embedded, live, settings, reporter, current)
    quantizer, training = choose_quantizer(collection)
    candidate = prepare_candidate(collection, quantizer)
    if training is None and (retrained := train_again(collection, quantizer, candidate)):
        candidate, training = retrained
    return _settle(collection, lease, top, candidate, training)


def _settle(
    collection: Collection,
    lease: Lease,
    top: dict[str, Any] | None,
    candidate: Candidate,
    training: dict[str, Any] | None,
) -> Indexed:
    """Publish the candidate, or say why not."""
    gate, current = collection.settings.gate, collection.current
    told = _deleted(collection), training, collection.seconds
    if current and candidate.release == current[0]:
        return Indexed("unchanged", candidate, [], *told)
    parent_rows = current[1]["rows"] if current else None
    reasons = judge(gate, candidate.manifest, parent_rows, candidate.query_ms)
    if reasons and gate.enabled:
        return Indexed("refused", candidate, reasons, *told)
    if top and top["held"]:
        return Indexed("held", candidate, reasons, *told)
    lease.check()
    note = f"trained: {training['why']}" if training else None
    publish(collection.store, candidate.release, top, "passed" if not reasons else "skipped", note=note)
    return Indexed("published", candidate, reasons, *told)


def _deleted(collection: Collection) -> int:
    """How many images of the current release are neither listed nor in a listed container any more."""
    if collection.current is None:
        return 0
    try:
        keys = read_images(collection.store, collection.current[0])["key"]
    except SifBatchError as error:  # the night makes another one, or says what to do where it would be the same
        collection.reporter.say(f"how many images went is not known: {error}; {error.remedy}")
        return 0
    if keys.equals(collection.live["key"].cast(pa.large_string())):  # as on most nights
        return 0
    named = collection.embedded.keys.combine_chunks().cast(pa.large_string())
    return len(keys) - int(pc.sum(pc.is_in(keys, named)).as_py() or 0)

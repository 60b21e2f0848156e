"""The second half of a run: a quantizer, codes, a candidate, the gate, and the release."""

import importlib
import itertools
import json
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.embed import Embedded
from jobs.progress import Reporter, timed, watching_folder
from jobs.runs import read_runs
from jobs.settings import RunSettings
from pipelines.engines import in_this_process
from sif_batch import release as releases
from sif_batch.assembly import Placement, assemble, check_scratch, copy_encoder, write_images
from sif_batch.child import shared_children
from sif_batch.config import RootRecord, SifBatchError, canonical_json
from sif_batch.gate import all_finite, check_sanity, fresh_rows, judge, measure_fresh, measure_recall
from sif_batch.history import publish, read_top
from sif_batch.lease import Lease
from sif_batch.metadata import join_metadata
from sif_batch.quantizer import QuantizerRecord, load_quantizer, must_retrain, read_record, train_quantizer
from sif_batch.query import Index
from sif_batch.standing import live_rows
from sif_batch.storage import Store
from sif_batch.truth import exact_neighbours
from sif_batch.tuning import best_points, choose_point, measure_curve, time_point

REMEMBERED_RUNS = 10
FEW_PARTS = 8


@dataclass(frozen=True)
class Indexed:
    """What became of the candidate. outcome: published, unchanged, refused or held."""

    outcome: str
    release: str
    manifest: dict[str, Any]
    reasons: list[str]
    deleted: int
    query_ms: float | None = None
    curve_ms: list[dict[str, Any]] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


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
    seconds: dict[str, float] = {}
    catalog, counts = embedded.catalog, embedded.counts
    live = live_rows(catalog, embedded.live, record.sources)
    if metadata is not None:
        live, found = join_metadata(live, metadata)
        reporter.say(f"metadata: {found} of {len(live)} images have a row in {record.metadata}, of {len(metadata)}")
    used = sorted(pc.unique(live["part"]).to_pylist())
    top = read_top(store)
    parent = _manifest(store, top["release"]) if top else None
    quantizer = _quantizer_in_force(store, record, parent, len(live))
    if quantizer is None:
        reporter.say("training the quantizer")
        _prepare_to_quantize(settings, len(used))
        current = parent["quantizer"]["family"] if parent else None
        with timed(seconds, "train"):
            quantizer = train_quantizer(store, record.encoder, record.index, catalog.parts, live, current)
        reporter.say(quantizer.spec.explain())
    decided = {
        "format": 1,
        "encoder": record.encoder,
        "quantizer": {"id": quantizer.id, **quantizer.spec.model_dump(mode="json")},
        "settings": record.index.model_dump(mode="json"),
        "sources": releases.describe_sources(record.sources),
        "rows": len(live),
        "listed": counts["listed"],
        "failed": counts["failed"] + counts["failed_before"],
        "failed_by_kind": counts["failed_by_kind"],
        "stale": counts["stale"],
        "oldest_faiss": releases.OLDEST_FAISS,
    }
    inputs = releases.inputs_digest(live, catalog.fingerprints, decided)
    deleted = _deleted(store, embedded, top, parent)
    if top and parent and parent["inputs"] == inputs:
        return Indexed("unchanged", top["release"], parent, [], deleted)
    known, curve_ms = _known_candidate(store, inputs), None
    if known is not None:
        candidate, query_ms = known
    else:
        with timed(seconds, "quantize"):
            _quantize(store, quantizer.id, [catalog.parts[number] for number in used], settings, reporter)
        reporter.say(f"assembling {len(live)} rows")
        made_by = sorted(
            {*(catalog.fingerprints[number] for number in used), canonical_json(quantizer.fingerprint).decode()}
        )
        manifest = decided | {"inputs": inputs, "fingerprints": [json.loads(text) for text in sorted(made_by)]}
        candidate, query_ms, curve_ms = _build(
            store, quantizer, catalog.parts, live, manifest, settings.scratch, seconds
        )
    manifest = releases.read_manifest(store, f"releases/{candidate}")
    reasons = judge(settings.gate, manifest, parent["rows"] if parent else None, query_ms)
    if reasons and settings.gate.enabled:
        return Indexed("refused", candidate, manifest, reasons, deleted, query_ms, curve_ms, seconds)
    if top and top["held"]:
        return Indexed("held", candidate, manifest, reasons, deleted, query_ms, curve_ms, seconds)
    lease.check()
    publish(store, candidate, top, "passed" if not reasons else "skipped")
    return Indexed("published", candidate, manifest, reasons, deleted, query_ms, curve_ms, seconds)


def _quantizer_in_force(
    store: Store, record: RootRecord, parent: dict[str, Any] | None, rows: int
) -> QuantizerRecord | None:
    """The quantizer of the current release, while it still fits; None: one must be trained."""
    if parent is None or not store.exists(f"quantizers/{parent['quantizer']['id']}"):
        return None
    quantizer = read_record(store, parent["quantizer"]["id"])
    return None if must_retrain(quantizer, record.index, record.encoder, rows) else quantizer


def _manifest(store: Store, release: str) -> dict[str, Any] | None:
    """The release's manifest; None where its folder is gone, so that it is built again. A damaged one raises."""
    folder = f"releases/{release}"
    return releases.check_release(store, folder) if store.exists(folder) else None


def _known_candidate(store: Store, inputs: str) -> tuple[str, float | None] | None:
    """A candidate that a recent run made of the same inputs, published or refused, and its milliseconds a query."""
    for run in itertools.islice(read_runs(store), REMEMBERED_RUNS):
        release = run["result"]["release"]
        query_ms = run["result"].get("index", {}).get("query_ms")
        manifest = _manifest(store, release) if release else None
        if manifest and manifest["inputs"] == inputs:
            return str(release), query_ms
    return None


def _deleted(store: Store, embedded: Embedded, top: dict[str, Any] | None, parent: dict[str, Any] | None) -> int:
    """How many images of the current release are neither listed nor in a listed container any more."""
    if top is None or parent is None:
        return 0
    with store.open(f"releases/{top['release']}/images.arrow") as file:
        keys = pa.ipc.open_file(file).read_all()["key"]
    named = embedded.keys.combine_chunks().cast(pa.large_string())
    return len(keys) - int(pc.sum(pc.is_in(keys, named)).as_py() or 0)


def _prepare_to_quantize(settings: RunSettings, parts: int) -> None:
    """Start the children and import Beam, which takes seconds, while the quantizer is trained."""
    if in_this_process(settings.beam):
        for child in shared_children(min(settings.workers, parts)):
            child.prepare("sif_batch.codes:ready")
    if parts > FEW_PARTS:
        threading.Thread(target=importlib.import_module, args=["pipelines.quantize"], daemon=True).start()


def _quantize(store: Store, quantizer: str, parts: list[str], settings: RunSettings, reporter: Reporter) -> None:
    """Make the codes of these parts that have none yet: a few in a child of this process, many by Beam."""
    done = store.sizes(f"codes/{quantizer}")
    missing = [part for part in parts if f"{part}.parquet" not in done]
    if not missing:
        return
    here = in_this_process(settings.beam)
    if here or len(missing) <= FEW_PARTS:
        children = shared_children(min(settings.workers, len(missing)))
        for child in children:
            child.start()
    with ExitStack() as told:
        update = told.enter_context(reporter.stage("quantizing", len(missing), "parts"))
        if len(missing) <= FEW_PARTS:  # importing and starting Beam takes longer
            for part in missing:
                children[0].call_again("sif_batch.codes:quantize_part", root=store.url, quantizer=quantizer, part=part)
                update(1, 0)
            return
        from pipelines import quantize
        from pipelines.runner import Progress, run_pipeline

        if here:
            Progress.update = update
            lanes = len(children)
        else:  # each machine of a cluster takes its cores, unless told
            told.enter_context(watching_folder(store, f"codes/{quantizer}", update))
            lanes = settings.workers if "workers" in settings.model_fields_set else 0
        run_pipeline(quantize.QuantizeParts(store.url, quantizer, missing, lanes), settings.beam)


def _build(
    store: Store,
    record: QuantizerRecord,
    parts: list[str],
    live: pa.Table,
    manifest: dict[str, Any],
    scratch: str | None,
    seconds: dict[str, float],
) -> tuple[str, float, list[dict[str, Any]]]:
    """Assemble, tune, measure and seal a candidate; returns its id, milliseconds a query, and those of the curve."""
    quantizer, asked = load_quantizer(store, record.id), manifest["settings"]
    k, target = asked["k"], asked["recall"]
    placement = Placement.of(live, parts)
    with store.scratch("releases", scratch) as made:
        folder = made / "release"
        folder.mkdir()
        check_scratch(folder, len(live) * (quantizer.spec.bytes_per_row + 8) + live.nbytes)
        with timed(seconds, "assemble"):
            assembled = assemble(store, folder, quantizer, placement, scratch=scratch)
            write_images(live, folder / "images.arrow")
            copy_encoder(store, quantizer.spec.encoder, folder / "encoder")
        manifest = manifest | {"segments": len(list((folder / "segments").iterdir()))}
        index = Index(Store(str(folder)), "", manifest)
        with timed(seconds, "measure"):
            own = pc.index_in(pa.array(quantizer.query_keys, pa.string()), live["key"].combine_chunks())
            truth = exact_neighbours(store, quantizer, placement, assembled, pc.fill_null(own, -1).to_numpy())
            curve = best_points(measure_curve(index, quantizer, truth, k, target))
            point = choose_point(curve, target)
            reached = measure_recall(index, quantizer, truth, point, k, target)
            new = fresh_rows(quantizer, placement.hashes, live["key"])
            scanned = index.codes_scanned(quantizer.queries, point) if point else len(live)
            manifest |= {
                "recall": reached | {"fresh": measure_fresh(index, new, k, point)},
                "operating_point": {"cells": point.cells, "rerank": point.rerank} if point else None,
                "codes_scanned": round(scanned, 1),
                "curve": [measured.describe() for measured in curve],
                "sanity": check_sanity(assembled, live["sha256"]),
                "finite": all_finite(index),
            }
            curve_ms = [{**m.describe(), "ms": round(time_point(index, quantizer, m.point, k), 4)} for m in curve]
            query_ms = time_point(index, quantizer, point, k)
        with timed(seconds, "seal"):
            release = releases.seal(folder, manifest)
            store.create_folder(f"releases/{release}", folder, releases.MANIFEST)
    if not store.exists(f"releases/{release}/{releases.MANIFEST}"):
        raise SifBatchError(f"releases/{release} could not be written")
    return release, query_ms, curve_ms

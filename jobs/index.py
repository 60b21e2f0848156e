"""The second half of a run: a quantizer, codes, a candidate, the gate, and the release."""

import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.embed import Embedded
from jobs.progress import Reporter
from jobs.runs import read_runs
from jobs.settings import RunSettings
from sif_batch import release as releases
from sif_batch.child import shared_child
from sif_batch.config import RootRecord, SifBatchError, canonical_json
from sif_batch.gate import all_finite, ask, choose_point, exact_neighbours, judge, recall
from sif_batch.history import publish, read_top
from sif_batch.lease import Lease
from sif_batch.quantizer import QuantizerRecord, load_quantizer, must_retrain, read_record, train_quantizer
from sif_batch.query import Index
from sif_batch.standing import live_rows
from sif_batch.storage import Store

REMEMBERED_RUNS = 10


@dataclass(frozen=True)
class Indexed:
    """What became of the candidate. outcome: published, unchanged, refused or held."""

    outcome: str
    release: str
    manifest: dict[str, Any]
    reasons: list[str]
    deleted: int
    query_ms: float | None = None


def index_collection(
    store: Store,
    lease: Lease,
    record: RootRecord,
    embedded: Embedded,
    settings: RunSettings,
    reporter: Reporter,
) -> Indexed:
    """Assemble a release of the live rows, measure it, and publish it if the gate lets it pass, unless held."""
    catalog, counts = embedded.catalog, embedded.counts
    live = live_rows(catalog, embedded.live, record.sources)
    used = sorted(pc.unique(live["part"]).to_pylist())
    top = read_top(store)
    parent = _manifest(store, top["release"]) if top else None
    quantizer = _quantizer_in_force(store, record, parent, len(live))
    if quantizer is None:
        reporter.say("training the quantizer")
        current = parent["quantizer"]["family"] if parent else None
        quantizer = train_quantizer(store, record.encoder, record.index, catalog.parts, live, current)
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
    candidate, query_ms = _known_candidate(store, inputs), None
    if candidate is None:
        _quantize(store, quantizer.id, [catalog.parts[number] for number in used], settings, reporter)
        reporter.say(f"assembling {len(live)} rows")
        made_by = sorted(
            {*(catalog.fingerprints[number] for number in used), canonical_json(quantizer.fingerprint).decode()}
        )
        manifest = decided | {"inputs": inputs, "fingerprints": [json.loads(text) for text in sorted(made_by)]}
        candidate, query_ms = _build(store, quantizer.id, catalog.parts, live, manifest)
    manifest = releases.read_manifest(store, f"releases/{candidate}")
    reasons = judge(settings.gate, manifest)
    if reasons and settings.gate.enabled:
        return Indexed("refused", candidate, manifest, reasons, deleted, query_ms)
    if top and top["held"]:
        return Indexed("held", candidate, manifest, reasons, deleted, query_ms)
    lease.check()
    publish(store, candidate, top, "passed" if not reasons else "skipped")
    return Indexed("published", candidate, manifest, reasons, deleted, query_ms)


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


def _known_candidate(store: Store, inputs: str) -> str | None:
    """A candidate that a recent run made of the same inputs, published or refused."""
    for run in itertools.islice(read_runs(store), REMEMBERED_RUNS):
        release = run["result"]["release"]
        manifest = _manifest(store, release) if release else None
        if manifest and manifest["inputs"] == inputs:
            return str(release)
    return None


def _deleted(store: Store, embedded: Embedded, top: dict[str, Any] | None, parent: dict[str, Any] | None) -> int:
    """How many images of the current release are neither listed nor in a listed container any more."""
    if top is None or parent is None:
        return 0
    with store.open(f"releases/{top['release']}/images.arrow") as file:
        keys = pa.ipc.open_file(file).read_all()["key"]
    named = embedded.keys.combine_chunks().cast(pa.large_string())
    return len(keys) - int(pc.sum(pc.is_in(keys, named)).as_py() or 0)


def _quantize(store: Store, quantizer: str, parts: list[str], settings: RunSettings, reporter: Reporter) -> None:
    """Make the codes of these parts that have none yet."""
    done = store.sizes(f"codes/{quantizer}")
    missing = [part for part in parts if f"{part}.parquet" not in done]
    if not missing:
        return
    shared_child().start()
    from pipelines import quantize
    from pipelines.runner import Progress, run_pipeline

    with reporter.stage("quantizing", len(missing), "parts") as update:
        Progress.update = update
        run_pipeline(quantize.QuantizeParts(store.url, quantizer, missing), settings.beam)


def _build(
    store: Store, quantizer_id: str, parts: list[str], live: pa.Table, manifest: dict[str, Any]
) -> tuple[str, float]:
    """Assemble, tune, measure and seal a candidate; returns its id and milliseconds a query."""
    quantizer = load_quantizer(store, quantizer_id)
    used = [parts[number] for number in sorted(pc.unique(live["part"]).to_pylist())]
    with store.scratch("releases") as scratch:
        folder = scratch / "release"
        folder.mkdir()
        placed = releases.assemble(store, folder, quantizer, parts, live)
        manifest = manifest | {"segments": len(list((folder / "segments").iterdir()))}
        index = Index(Store(str(folder)), "", manifest)
        own = pc.index_in(pa.array(quantizer.query_keys, pa.string()), live["key"].combine_chunks())
        truth = exact_neighbours(store, quantizer, used, placed, pc.fill_null(own, -1).to_numpy())
        point = choose_point(index, quantizer, truth)
        started = time.perf_counter()
        found = ask(index, quantizer, truth, point)
        query_ms = 1000 * (time.perf_counter() - started) / max(1, len(found))
        reached = recall(truth, found)
        scanned = index.codes_scanned(quantizer.queries, point.cells) if point else len(live)
        manifest |= {
            "recall": {"at_10": None if reached is None else round(reached, 4), "queries": len(found)},
            "operating_point": {"cells": point.cells, "rerank": point.rerank} if point else None,
            "codes_scanned": round(scanned, 1),
            "finite": all_finite(index),
        }
        release = releases.seal(folder, manifest)
        store.create_folder(f"releases/{release}", folder, releases.MANIFEST)
    if not store.exists(f"releases/{release}/{releases.MANIFEST}"):
        raise SifBatchError(f"releases/{release} could not be written")
    return release, query_ms

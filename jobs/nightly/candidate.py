"""A candidate: the live rows' codes under a quantizer, assembled and measured, or found as an earlier run made it."""

import importlib
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import RootRecord
from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.gate.checks import all_finite, check_sanity, fresh_rows, measure_fresh, measure_recall
from sif_batch.gate.drift import measure_drift
from sif_batch.gate.ground_truth import exact_neighbours
from sif_batch.gate.operating_point import TIMED_OF_CURVE, best_points, choose_point, measure_curve, time_point
from sif_batch.index.quantizer import QuantizerRecord, load_quantizer
from sif_batch.jobs.fan_out import FEW, spread
from sif_batch.jobs.nightly.capacity import processes_within
from sif_batch.jobs.nightly.embed_stage import Embedded
from sif_batch.jobs.progress import Reporter, timed
from sif_batch.jobs.run_record import read_runs
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.catalog import Catalog
from sif_batch.machine.child import shared_children
from sif_batch.pipelines.engines import in_this_process
from sif_batch.query.index import Index
from sif_batch.release import manifest as releases
from sif_batch.release.assembly import assemble
from sif_batch.release.external_sort import check_scratch
from sif_batch.release.placement import Placement
from sif_batch.release.write_files import copy_encoder, write_images
from sif_batch.storage.store import Store

REMEMBERED_RUNS = 10


@dataclass(frozen=True)
class Collection:
    """What a candidate is made of, whatever the quantizer. live: rows in order, as `live_rows` gives them; current: the
    manifest of the release that is current, if there is one; seconds: by step, added to."""

    store: Store
    record: RootRecord
    embedded: Embedded
    live: pa.Table
    settings: RunSettings
    reporter: Reporter
    current: tuple[str, dict[str, Any]] | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        return self.embedded.catalog.parts

    @property
    def used(self) -> list[str]:
        """The parts that hold live rows."""
        return [self.parts[number] for number in sorted(pc.unique(self.live["part"]).to_pylist())]


@dataclass(frozen=True)
class Candidate:
    """A sealed release, and what a query of it takes here: milliseconds at its operating point, and of its curve."""

    release: str
    manifest: dict[str, Any]
    query_ms: float | None = None
    curve_ms: list[dict[str, Any]] | None = None


def prepare_candidate(collection: Collection, quantizer: QuantizerRecord) -> Candidate:
    """The release of these rows under this quantizer: the current one, one that a recent run made, or a new one."""
    store, live, catalog = collection.store, collection.live, collection.embedded.catalog
    decided = decide(collection, quantizer)
    inputs = releases.inputs_digest(live, catalog.fingerprints, decided)
    if collection.current and collection.current[1]["inputs"] == inputs:
        return Candidate(*collection.current)
    if known := _known_candidate(store, inputs):
        return known
    with timed(collection.seconds, "quantize"):
        quantize_parts(store, quantizer.id, collection.used, collection.settings, collection.reporter)
    collection.reporter.say(f"assembling {len(live)} rows")
    manifest = decided | {"inputs": inputs, "fingerprints": fingerprints_of(catalog, live, quantizer)}
    scratch = collection.settings.scratch
    release, query_ms, curve_ms = build(store, quantizer, catalog.parts, live, manifest, scratch, collection.seconds)
    return Candidate(release, releases.read_manifest(store, f"releases/{release}"), query_ms, curve_ms)


def fingerprints_of(catalog: Catalog, live: pa.Table, quantizer: QuantizerRecord) -> list[dict[str, str]]:
    """By which arithmetic these rows and their codes were made, in order."""
    numbers = pc.unique(live["part"]).to_pylist()
    made_by = {*(catalog.fingerprints[number] for number in numbers), canonical_json(quantizer.fingerprint).decode()}
    return [json.loads(text) for text in sorted(made_by)]


def decide(collection: Collection, quantizer: QuantizerRecord) -> dict[str, Any]:
    """What decides the release, beside its rows."""
    record, counts = collection.record, collection.embedded.counts
    return {
        "format": 1,
        "encoder": record.encoder,
        "quantizer": {"id": quantizer.id, **quantizer.spec.model_dump(mode="json")},
        "settings": record.index.model_dump(mode="json"),
        "sources": releases.describe_sources(record.sources),
        "rows": len(collection.live),
        "listed": counts["listed"],
        "failed": counts["failed"] + counts["failed_before"],
        "failed_by_kind": counts["failed_by_kind"],
        "stale": counts["stale"],
        "oldest_faiss": releases.OLDEST_FAISS,
    }


def manifest_of(store: Store, release: str) -> dict[str, Any] | None:
    """The release's manifest; None where its folder is gone, so that it is built again. A damaged one raises."""
    folder = f"releases/{release}"
    return releases.check_release(store, folder) if store.exists(folder) else None


def _known_candidate(store: Store, inputs: str) -> Candidate | None:
    """A candidate that a recent run made of the same inputs, published or refused."""
    for run in itertools.islice(read_runs(store), REMEMBERED_RUNS):
        release = run["result"]["release"]
        query_ms = run["result"].get("index", {}).get("query_ms")
        manifest = manifest_of(store, release) if release else None
        if manifest and manifest["inputs"] == inputs:
            return Candidate(str(release), manifest, query_ms)
    return None


def prepare_to_quantize(settings: RunSettings, parts: int) -> None:
    """Start the children and import Beam, which takes seconds, while the quantizer is trained."""
    if in_this_process(settings.beam):
        for child in shared_children(processes_within(min(settings.workers, parts), settings)):
            child.prepare("sif_batch.index.quantize_part:ready")
    if parts > FEW:
        threading.Thread(target=importlib.import_module, args=["sif_batch.pipelines.calls"], daemon=True).start()


def quantize_parts(store: Store, quantizer: str, parts: list[str], settings: RunSettings, reporter: Reporter) -> None:
    """Make the codes of these parts that have none yet: a few in a child of this process, many by Beam."""
    done = store.sizes(f"codes/{quantizer}")
    elements = [{"part": part} for part in parts if f"{part}.parquet" not in done]
    workers = settings.workers if "workers" in settings.model_fields_set else None  # of each machine of a cluster
    if in_this_process(settings.beam):
        workers = processes_within(min(settings.workers, max(1, len(elements))), settings)
    spread(
        "sif_batch.index.quantize_part:quantize_part",
        {"root": store.url, "quantizer": quantizer},
        elements,
        "quantizing",
        (store, f"codes/{quantizer}"),
        reporter,
        settings.beam,
        workers,
    )


def build(
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
        with timed(seconds, "assemble"), ThreadPoolExecutor(1) as beside:
            images = beside.submit(write_images, live, folder / "images.arrow")
            assembled = assemble(store, folder, quantizer, placement, scratch=scratch)
            copy_encoder(store, quantizer.spec.encoder, folder / "encoder")
            images.result()
        manifest = manifest | {"segments": len(list((folder / "segments").iterdir()))}
        index = Index(Store(str(folder)), "", manifest)
        with timed(seconds, "measure"), ThreadPoolExecutor(1) as beside:
            sums = beside.submit(releases.files_of, folder)
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
                "drift": measure_drift(quantizer, assembled, placement.hashes),
                "sanity": check_sanity(assembled, live["sha256"]),
                "finite": all_finite(index),
            }
            files = sums.result()  # before anything is timed
            curve_ms = [
                m.describe() | {"ms": round(time_point(index, quantizer, m.point, k, TIMED_OF_CURVE), 4)} for m in curve
            ]
            query_ms = time_point(index, quantizer, point, k)
        with timed(seconds, "seal"):
            release = releases.seal(folder, manifest, files)
            store.create_folder(f"releases/{release}", folder, releases.MANIFEST)
    if not store.exists(f"releases/{release}/{releases.MANIFEST}"):
        raise SifBatchError(f"releases/{release} could not be written")
    return release, query_ms, curve_ms

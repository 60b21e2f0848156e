"""What must fit before a run starts: memory and disk, by a forecast; and the processes that memory has room for."""

import os
import shutil
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sif_batch.config import RootRecord
from sif_batch.encoders.installed import read_spec
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError
from sif_batch.gate.drift import why_outgrown, why_unfit
from sif_batch.index.quantizer import QuantizerRecord, read_record
from sif_batch.index.quantizer_spec import choose_family, choose_spec
from sif_batch.index.training_sample import TRAINING_ROWS, TRAINING_ROWS_PER_CELL
from sif_batch.jobs.nightly.forecast import (
    MB,
    Past,
    Task,
    foresee,
    lane_bytes,
    lanes_within,
    memory,
    past_of,
    worker_bytes,
)
from sif_batch.jobs.run_record import read_runs
from sif_batch.jobs.settings import RunSettings
from sif_batch.machine.devices import Lane
from sif_batch.machine.memory import available_bytes, resident_bytes
from sif_batch.model_export.choose import Say
from sif_batch.release.history import read_top
from sif_batch.release.manifest import MANIFEST, read_manifest
from sif_batch.sources.containers import are_containers
from sif_batch.storage.store import Store

IMAGE_BYTES = 100_000  # of an image in a container that nobody looked into
READ_RUNS = 10


def roughly_count(todo: pa.Table) -> int:
    """How many images these spans hold, by the size of containers alone."""
    sizes = todo["size"].filter(pa.array(are_containers(todo["path"]))).to_pylist()
    return len(todo) - len(sizes) + sum(max(1, size // IMAGE_BYTES) for size in sizes)


def make_task(
    store: Store,
    record: RootRecord,
    encoder: EncoderSpec,
    encoder_bytes: int,
    images: int,
    standing: int,
    lanes: list[Lane],
    settings: RunSettings,
) -> Task:
    """What there is to do. standing: images that are embedded already.

    Raises SifBatchError where no index of the kind asked for can be made of so many.
    """
    rows, trained = standing + images, 0
    current = _current(store)
    if current and settings.retrain != "now" and not _is_unfit(current, record, encoder, rows, settings):
        spec = current.spec
    else:
        family = choose_family(record.index, rows, encoder.dimension, current.spec.family if current else None)
        spec = choose_spec(record.index, family, encoder.id, encoder.dimension, rows)
        trained = min(rows * 15 // 16, max(TRAINING_ROWS, TRAINING_ROWS_PER_CELL * spec.cells))
    quantized = images + (standing if trained else 0)
    return Task(
        images=images,
        shard=settings.limits.shard_images,
        rows=rows,
        quantized=quantized,
        trained=trained,
        spec=spec,
        encoder_bytes=encoder_bytes,
        installed=store.exists(f"encoders/{encoder.id}/encoder.json"),
        lanes=[lane.threads for lane in lanes] if images else [],
        quantizers=min(settings.workers, -(-quantized // settings.limits.shard_images)),
        report=settings.report,
    )


def _is_unfit(
    current: QuantizerRecord, record: RootRecord, encoder: EncoderSpec, rows: int, settings: RunSettings
) -> bool:
    outgrown = settings.retrain == "auto" and why_outgrown(current, record.index, rows)
    return bool(outgrown or why_unfit(current, record.index, encoder.id))


def _current(store: Store) -> QuantizerRecord | None:
    """The quantizer of the current release, if both stand."""
    top = read_top(store)
    if top is None or not store.exists(f"releases/{top['release']}/{MANIFEST}"):
        return None
    name = read_manifest(store, f"releases/{top['release']}")["quantizer"]["id"]
    return read_record(store, name) if store.exists(f"quantizers/{name}") else None


def read_past(store: Store, encoder: str, lanes: list[Lane]) -> Past:
    """What the newest runs of ROOT took, with this encoder and as many threads."""
    runs = [run for run, _ in zip(read_runs(store), range(READ_RUNS), strict=False)]
    return past_of(runs, encoder, sum(lane.threads for lane in lanes))


def free_disk(store: Store) -> tuple[str, int] | None:
    """The folder that ROOT lies in, and the bytes that are free there; None for a bucket."""
    if not store.local:
        return None
    folder = store.base
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder, shutil.disk_usage(folder).free


def find_problems(store: Store, forecast: dict[str, Any], settings: RunSettings) -> list[tuple[str, str]]:
    """What cannot fit, each with its remedy."""
    problems = []
    place, needed = free_disk(store), forecast["disk"]["total"]
    if place and needed > place[1]:
        text = f"{place[0]}: about {_gb(needed)} of disk are needed, {_gb(place[1])} are free"
        problems.append((text, f"sif-batch gc {store.url} may make room; or give a ROOT on a larger disk"))
    needed, available = forecast["memory"]["total"], available_bytes()
    if available and needed > available:
        text = f"about {_gb(needed)} of memory are needed, {_gb(available)} are available"
        problems.append((text, "fewer --workers, or --max-memory with what may be taken"))
    return problems


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / MB:.0f} MB"


def check_fits(store: Store, task: Task, past: Past, settings: RunSettings) -> None:
    """Raises SifBatchError where the run would need more disk or memory than there is."""
    if problems := find_problems(store, foresee(task, None, past, 0.0), settings):
        raise SifBatchError(problems[0][0], remedy=problems[0][1])


def fit_run(
    store: Store, record: RootRecord, plan: pa.Table, good: int, lanes: list[Lane], settings: RunSettings, say: Say
) -> list[Lane]:
    """The lanes that embed a plan, as many as --max-memory has room for. good: images that are embedded already.

    Raises SifBatchError where the run would need more memory or disk than there is.
    """
    folder = f"encoders/{record.encoder}"
    encoder_bytes, past = store.sizes(folder)["model.onnx"], read_past(store, record.encoder, lanes)
    images = roughly_count(plan)
    try:
        task = make_task(store, record, read_spec(store, folder), encoder_bytes, images, good, lanes, settings)
    except SifBatchError:  # no index of that kind can be made of so many: who makes it says so
        return lanes
    task, lanes = fit_task(task, past, lanes, settings, say)
    check_fits(store, task, past, settings)
    return lanes


def processes_within(wanted: int, settings: RunSettings) -> int:
    """As many processes that quantize as --max-memory has room for beside this one, one at least."""
    if settings.max_memory is None:
        return wanted
    return max(1, min(wanted, (settings.max_memory - resident_bytes()) // worker_bytes(0, 1)))


def fit_task(task: Task, past: Past, lanes: list[Lane], settings: RunSettings, say: Say) -> tuple[Task, list[Lane]]:
    """The task with the processes that --max-memory has room for, and their lanes, each with its share of it.

    Raises SifBatchError where there is room for none.
    """
    limit = settings.max_memory
    if limit is None:
        return task, lanes
    main = memory(task, past, None)["main"]
    threads = lanes_within(limit - main, task, [lane.threads for lane in lanes])
    if not threads:
        least = main + lane_bytes(task, 1)
        raise SifBatchError(
            f"--max-memory {_gb(limit)}: this run needs about {_gb(least)} at least",
            remedy="raise it, or spread the sources over several ROOTs",
        )
    if threads != [lane.threads for lane in lanes]:
        say(f"--max-memory: {len(threads)} of {len(lanes)} worker processes, {max(threads)} threads each")
    share = (limit - main) // len(threads)
    fitted = [Lane(lane.device, count, share) for lane, count in zip(lanes, threads, strict=False)]
    quantizers = max(1, min(task.quantizers, (limit - main) // worker_bytes(0, 1)))
    return replace(task, lanes=threads if task.images else [], quantizers=quantizers), fitted

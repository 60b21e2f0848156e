"""A timed sample: some of the images that a run would embed, embedded for real in a ROOT that is thrown away."""

import itertools
import tempfile
import time

import numpy as np
import pyarrow as pa

from sif_batch.config import RootRecord, Source
from sif_batch.embedding.supervision import embed_in_child
from sif_batch.encoders.installed import install_encoder, model_bytes
from sif_batch.failures import ImageError
from sif_batch.jobs.nightly.embed_stage import WARM_UP
from sif_batch.jobs.nightly.forecast import Sample
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.plan import Limits, make_plan, save_plan
from sif_batch.machine.child import Child
from sif_batch.machine.devices import Lane
from sif_batch.machine.memory import peak_bytes
from sif_batch.model_export.choose import Chosen
from sif_batch.sources.containers import are_containers, container_kind
from sif_batch.sources.reading import read_container
from sif_batch.storage.store import Store

SHARD_IMAGES = 64
MOST_IMAGES = 1024
ENOUGH_S = 8.0
CONTAINERS = 4  # looked into
MEMBER_BYTES = 1024  # of an archive, beside a member's own


def count_images(todo: pa.Table, sources: dict[str, Source], limits: Limits) -> tuple[int, bool]:
    """How many images these spans hold, and whether that is counted or estimated.

    Of containers a few are looked into: their members so far, and by their size all.
    """
    spans = todo.filter(pa.array(are_containers(todo["path"])))
    if not len(spans):
        return len(todo), True
    looked = spans.take(pa.array(_pick(len(spans), CONTAINERS))).to_pylist()
    images = size = 0.0
    counted = len(looked) == len(spans)
    for span in looked:
        found, whole = _count_members(sources[span["source"]], span, limits)
        images, size, counted = images + found, size + span["size"], counted and whole
    per_byte = images / size if size else 0.0
    return len(todo) - len(spans) + round(per_byte * sum(spans["size"].to_pylist())), counted


def _count_members(source: Source, span: dict[str, object], limits: Limits) -> tuple[float, bool]:
    members = size = 0
    try:
        pieces = read_container(source, str(span["path"]), str(span["version"]), 0, limits.max_bytes)
        for piece in pieces:
            members += len(piece.members)
            size += sum(len(m.data) for m in piece.members if isinstance(m.data, bytes))
            if members >= SHARD_IMAGES:
                break
        else:
            return members, True
    except ImageError:
        return members, True
    beside = MEMBER_BYTES if container_kind(str(span["path"])) == "tar" else 0
    return max(members, int(str(span["size"])) / (size / members + beside)), False


def time_sample(
    store: Store, chosen: Chosen, record: RootRecord, todo: pa.Table, lane: Lane, settings: RunSettings
) -> Sample:
    """Embed a random sample of these spans in one worker process, for some seconds. ROOT is only read."""
    spans = sample_spans(todo)
    with tempfile.TemporaryDirectory(prefix="sif-batch-") as folder:
        trial = Store(folder)
        model = chosen.model or model_bytes(store, chosen.spec)
        install_encoder(trial, chosen.spec, model, chosen.float_model)
        limits = settings.limits.model_copy(update={"shard_images": SHARD_IMAGES})
        plan = make_plan(chosen.spec.id, spans, limits)
        name = save_plan(trial, chosen.spec.id, plan, record.sources, limits)
        child = Child()
        try:
            began = time.monotonic()
            child.call(WARM_UP, root=trial.url, encoder_id=chosen.spec.id, device=lane.device)
            ready = time.monotonic()
            images = failed = 0
            for shard in plan["shard"].unique().to_pylist():
                stats = embed_in_child(
                    child, trial.url, name, shard, lane, lambda done, failed: None, settings.image_timeout
                )
                images, failed = images + stats.images, failed + stats.failed
                if time.monotonic() - ready > ENOUGH_S:
                    break
            spent, peak = time.monotonic() - ready, peak_bytes(child.pid)
        finally:
            child.close()
        size = sum(trial.sizes(f"parts/{chosen.spec.id}").values())
    return Sample(images, failed, lane.threads, round(spent, 3), round(ready - began, 3), peak, size)


def sample_spans(todo: pa.Table) -> pa.Table:
    """Some of the spans, at random but always the same; of containers their first members."""
    picked = todo.take(pa.array(_pick(len(todo), MOST_IMAGES)))
    kinds = are_containers(picked["path"]).tolist()
    held = itertools.islice((i for i, kind in enumerate(kinds) if kind), MOST_IMAGES // SHARD_IMAGES)
    keep = np.array(sorted([*(i for i, kind in enumerate(kinds) if not kind), *held]), np.int64)
    picked = picked.take(pa.array(keep))
    in_container = np.array([kinds[i] for i in keep], bool)
    first = picked["first"].to_numpy()
    columns = {"last": np.where(in_container, first + SHARD_IMAGES - 1, 0), "end": ~in_container}
    for column, values in columns.items():
        place = picked.column_names.index(column)
        picked = picked.set_column(place, picked.schema.field(place), pa.array(values))
    return picked


def _pick(count: int, most: int) -> np.ndarray:
    if count <= most:
        return np.arange(count)
    return np.random.default_rng(0).choice(count, most, replace=False)

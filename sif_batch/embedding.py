"""Shard to part: read, decode, infer, write. `embed_shard` runs in the child, `embed_in_child` watches over it."""

import errno
import functools
import hashlib
import itertools
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sif_batch.child import Child, ChildDied
from sif_batch.config import SifBatchError, Source
from sif_batch.encoders import Encoder, read_spec
from sif_batch.images import MAX_BYTES, ImageError
from sif_batch.kernels import embedding_fingerprint
from sif_batch.parts import encode_part, part_path
from sif_batch.shards import read_shard
from sif_batch.sources.files import local_version, open_source
from sif_batch.sources.names import hash_of, key_of, local_of
from sif_batch.storage import Store, is_local

BATCH = 4  # larger ones are slower and hold more memory: 128 MB for two threads at 1, 788 MB at 32
STRIKES = 2  # an image that ends the child alone, this often, is the cause
SHARD_TRIES = 2  # the whole shard, before its images are suspected
STAGES = ("read", "decode", "network", "write")

Seconds = defaultdict[str, float]  # of thread time, by stage
Report = Callable[[Any], None]
Progress = Callable[[int, int], None]  # images done and images failed since the last call


@dataclass
class ShardStats:
    """What a shard cost: images, failures, and seconds of thread time by stage."""

    images: int = 0
    failed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def embed_in_child(
    child: Child, root: str, plan: str, shard: int, threads: int, on_progress: Progress, stall_s: float = 120
) -> ShardStats:
    """Embed one shard in the child process, whatever happens to it.

    A child that dies or stalls costs a second try of the whole shard; after that the images that were in
    work at each death are tried alone first, and one that ends the child alone twice becomes a failed row.
    """
    strikes: Counter[int] = Counter()
    in_work: set[int] = set()
    lost: dict[int, str] = {}
    barren = 0
    for tries in itertools.count():
        done = failed = 0

        def on_report(report: tuple[str, Any]) -> None:
            nonlocal done, failed
            kind, value = report
            if kind == "start":
                in_work.add(value)
                return
            in_work.difference_update(value[0])
            done, failed = done + len(value[0]), failed + value[1]
            on_progress(len(value[0]), value[1])

        try:
            stats: ShardStats = child.call(
                "sif_batch.embedding:embed_shard",
                on_report,
                stall_s,
                root=root,
                plan=plan,
                shard=shard,
                threads=threads,
                lost=lost,
                suspects=sorted(strikes.keys() - lost.keys()) if tries >= SHARD_TRIES else [],
            )
            return stats
        except ChildDied as death:
            on_progress(-done, -failed)
            barren = 0 if in_work else barren + 1
            if barren > SHARD_TRIES:
                raise SifBatchError(
                    f"shard {shard} of plan {plan}: {death}, {barren} times with no image in work",
                    remedy="free memory or lower --workers; the same command goes on where this one stopped",
                ) from death
            alone = len(in_work) == 1
            for image in in_work:
                strikes[image] += 1 if alone and tries >= SHARD_TRIES else 0
                if strikes[image] >= STRIKES:
                    lost[image] = f"{'timeout' if death.overdue else 'crashed'}:{death}"
            in_work.clear()
    raise AssertionError("unreachable")


def embed_shard(
    report: Report, root: str, plan: str, shard: int, threads: int, lost: dict[int, str], suspects: list[int]
) -> ShardStats:
    """Make the part of one shard, unless it stands. Runs in the child.

    lost: images known to end the process, as "kind:message"; suspects: images to try alone, first.
    Reports ("start", image) and ("done", (images, failures)).
    """
    store = Store(root)
    spans, encoder_id, sources = read_shard(store, plan, shard)
    path = part_path(encoder_id, spans["part"][0].as_py())
    if store.exists(path):
        report(("done", (range(len(spans)), 0)))
        return ShardStats()
    encoder = load_encoder(root, encoder_id)
    entries = spans.to_pylist()
    rows: dict[int, dict[str, Any]] = {}

    def work(images: Sequence[int]) -> Seconds:
        seconds = Seconds(float)
        made = [_read_row(i, entries[i], sources, encoder, lost.get(i), seconds, report) for i in images]
        _embed_rows([(row, pixels) for row, pixels in made if pixels is not None], encoder, seconds)
        rows.update(zip(images, (row for row, _ in made), strict=True))
        report(("done", (images, sum(row["error_kind"] is not None for row, _ in made))))
        return seconds

    spent = [work([image]) for image in suspects]
    others = [i for i in range(len(entries)) if i not in set(suspects)]
    Image.init()  # Pillow loads its formats at the first odd file: not in two threads at once
    batches = [others[start : start + BATCH] for start in range(0, len(others), BATCH)]
    with ThreadPoolExecutor(threads) as pool:
        spent += pool.map(work, batches)
    started = time.perf_counter()
    store.create(path, encode_part(list(rows.values()), spans, encoder_id, embedding_fingerprint()))
    seconds = {stage: sum(part[stage] for part in spent) for stage in STAGES}
    seconds["write"] = time.perf_counter() - started
    return ShardStats(len(rows), sum(row["error_kind"] is not None for row in rows.values()), seconds)


@functools.lru_cache(maxsize=1)
def load_encoder(root: str, encoder_id: str) -> Encoder:
    store = Store(root)
    folder = f"encoders/{encoder_id}"
    with tempfile.TemporaryDirectory() as scratch:
        return Encoder(read_spec(store, folder), store.fetch(f"{folder}/model.onnx", Path(scratch)))


def _read_row(
    number: int,
    entry: dict[str, Any],
    sources: dict[str, Source],
    encoder: Encoder,
    lost: str | None,
    seconds: Seconds,
    report: Report,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The entry's row, without its embedding, and its pixels as network input (None: the row says why not)."""
    key = key_of(entry["source"], entry["path"])
    row: dict[str, Any] = dict.fromkeys(("member", "sha256", "width", "height", "fields", "embedding", "error"))
    row |= {name: entry[name] for name in ("source", "path", "version", "attempt")}
    row |= {"key": key, "hash": hash_of(key), "error_kind": None}
    try:
        if entry["duplicate"]:
            raise ImageError("duplicate_key", "another file of the source has the same name in Unicode NFC")
        if lost is not None:
            kind, _, message = lost.partition(":")
            raise ImageError(kind, message)
        report(("start", number))
        started = time.perf_counter()
        data = read_entry(sources[entry["source"]], entry["path"], entry["size"], entry["version"])
        read = time.perf_counter()
        row["sha256"] = hashlib.sha256(data).digest()
        pixels, row["width"], row["height"] = encoder.read_image(data)
        seconds["read"] += read - started
        seconds["decode"] += time.perf_counter() - read
        return row, pixels
    except ImageError as error:
        row["error_kind"], row["error"] = error.kind, str(error)
        return row, None


def _embed_rows(pairs: list[tuple[dict[str, Any], np.ndarray]], encoder: Encoder, seconds: Seconds) -> None:
    if not pairs:
        return
    started = time.perf_counter()
    vectors = encoder.embed(np.stack([pixels for _, pixels in pairs]))
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float16)
    for (row, _), vector in zip(pairs, vectors, strict=True):
        if np.isfinite(vector).all():
            row["embedding"] = vector
        else:
            row["error_kind"], row["error"] = "not_finite", "the network's output does not fit float16"
    seconds["network"] += time.perf_counter() - started


def read_entry(source: Source, path: str, size: int, version: str) -> bytes:
    """The entry's bytes, checked against what was listed. Raises ImageError of a transient kind."""
    if size > MAX_BYTES:
        raise ImageError("too_large", f"{size} bytes; the limit is {MAX_BYTES}")
    fs, base = open_source(source)
    try:
        if not is_local(fs):
            data = bytes(fs.cat_file(f"{base}/{path}"))
        else:
            with open(local_of(f"{base}/{path}"), "rb") as file:
                data = file.read(MAX_BYTES + 1)
                if local_version(os.fstat(file.fileno())) != version:
                    raise ImageError("changed", "it changed after it was listed")
    except FileNotFoundError as error:
        raise ImageError("missing", "it was listed and is gone") from error
    except PermissionError as error:
        raise ImageError("forbidden", "this user may not read it") from error
    except TimeoutError as error:
        raise ImageError("timeout", f"reading it took too long ({error})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENFILE):
            raise  # the machine's trouble, not the image's
        raise ImageError("unreadable", f"{type(error).__name__}: {error}"[:500]) from error
    if len(data) != size:
        raise ImageError("short_read", f"{len(data)} bytes of {size}")
    return data

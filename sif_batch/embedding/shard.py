"""Shard to part: read, decode, infer, write. `embed_shard` runs in a child process that may die of an image."""

import functools
import hashlib
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from sif_batch.digests import canonical_json
from sif_batch.encoders.installed import read_spec
from sif_batch.encoders.runtime import Encoder
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.ledger.content_index import Known
from sif_batch.ledger.parts import container_spans, encode_part, part_path
from sif_batch.ledger.plan import OPEN, Limits, Shard, part_name, read_shard
from sif_batch.ledger.tombstones import Erased, read_erased
from sif_batch.machine.arithmetic import computes_int8, embedding_fingerprint, instruction_set
from sif_batch.machine.devices import Lane
from sif_batch.sources.containers import Member, container_kind
from sif_batch.sources.names import hash_of, key_of, member_key
from sif_batch.sources.reading import check_unchanged, read_container, read_file
from sif_batch.storage.store import Store

AHEAD_BYTES = 64 * 2**20  # of a container that may wait for a thread
STAGES = ("read", "decode", "network", "write")

Seconds = defaultdict[str, float]  # of thread time, by stage
Report = Callable[[Any], None]
Row = dict[str, Any]


@dataclass
class ShardStats:
    """What a shard cost: images, failures, and seconds of thread time by stage."""

    images: int = 0
    failed: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass(frozen=True)
class _Image:
    """An image to be embedded. number: within its shard; row: what is known of it before it is read."""

    number: int
    row: Row
    read: Callable[[], bytes]
    size: int = 0  # bytes that it already takes


class _Crew:
    """Threads that turn images into rows, never far behind the reader."""

    def __init__(
        self,
        encoder: Encoder,
        threads: int,
        limits: Limits,
        known: Known,
        erased: Erased,
        lost: dict[int, str],
        suspects: list[int],
        report: Report,
    ):
        self.encoder, self._threads, self._limits, self._known = encoder, threads, limits, known
        self.erased = erased
        self._lost, self._suspects, self._report = lost, frozenset(suspects), report
        self._pool = ThreadPoolExecutor(threads)
        self._batch: list[_Image] = []
        self._waiting: deque[tuple[int, Future[Seconds]]] = deque()
        self._rows: dict[int, Row] = {}
        self.stats = ShardStats()

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, image: _Image) -> None:
        """Take an image up; waits while too much is ahead of the threads. A suspect is alone in work."""
        alone = image.number in self._suspects and image.number not in self._lost
        if alone:
            self._finish()
        self._batch.append(image)
        if len(self._batch) == self.encoder.batch or alone:
            self._submit()
        if alone:
            self._finish()

    def take(self) -> dict[int, Row]:
        """The rows of all images since the last call, by number."""
        self._finish()
        rows, self._rows = self._rows, {}
        self.stats.images += len(rows)
        self.stats.failed += sum(row["error_kind"] is not None for row in rows.values())
        return rows

    def _submit(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._waiting.append((sum(image.size for image in batch), self._pool.submit(self._work, batch)))
        while len(self._waiting) > 2 * self._threads or sum(size for size, _ in self._waiting) > AHEAD_BYTES:
            self._wait()

    def _finish(self) -> None:
        self._submit()
        while self._waiting:
            self._wait()

    def _wait(self) -> None:
        for stage, spent in self._waiting.popleft()[1].result().items():
            self.stats.seconds[stage] += spent

    def _work(self, images: Sequence[_Image]) -> Seconds:
        seconds = Seconds(float)
        pixels, before = [], None
        for image in images:
            self._report(("start", (image.number, before)))
            pixels.append(self._read(image, seconds))
            before = image.number
        self._report(("decoded", before))
        rows = [image.row for image in images]
        _embed_rows([(row, p) for row, p in zip(rows, pixels, strict=True) if p is not None], self.encoder, seconds)
        self._rows.update((image.number, image.row) for image in images)
        failed = sum(row["error_kind"] is not None for row in rows)
        self._report(("done", ([image.number for image in images], failed)))
        return seconds

    def _read(self, image: _Image, seconds: Seconds) -> np.ndarray | None:
        """The image's pixels as network input, its row filled in; None: the row says why not, or is known already."""
        row = image.row
        try:
            if image.number in self._lost:
                kind, _, message = self._lost[image.number].partition(":")
                raise ImageError(kind, message)
            started = time.perf_counter()
            data = image.read()
            read = time.perf_counter()
            row["sha256"] = hashlib.sha256(data).digest()
            if row["sha256"].hex() in self.erased.contents:
                raise ImageError("erased", "an image of these bytes was erased")
            if found := self._known.find(row["sha256"], self._limits.max_pixels):
                row["embedding"], row["width"], row["height"] = found.embedding, found.width, found.height
                seconds["read"] += time.perf_counter() - started
                return None
            pixels, row["width"], row["height"] = self.encoder.read_image(data, self._limits.max_pixels)
            seconds["read"] += read - started
            seconds["decode"] += time.perf_counter() - read
            return pixels
        except ImageError as error:
            row["error_kind"], row["error"] = error.kind, str(error)
            return None


def warm_up(report: Report, root: str, encoder_id: str, device: str) -> None:
    """Load all that the first shard would wait for. Runs in the child, while the caller imports Beam."""
    encoder = load_encoder(root, encoder_id, device)
    size = encoder.spec.input_size
    encoder.run(np.zeros((encoder.batch, size, size, 3), np.uint8))
    encode_part([], [], encoder_id, embedding_fingerprint(encoder.fingerprint))


def embed_shard(
    report: Report,
    root: str,
    plan: str,
    shard: int,
    lane: Lane,
    lost: dict[int, str],
    suspects: list[int],
) -> ShardStats:
    """Make the part of one shard, or the parts of one container, unless they stand. Runs in the child.

    lost: images known to end the process, as "kind:message"; suspects: images to try alone.
    Reports ("start", (image, the one decoded before it)), ("decoded", image) and ("done", (images, failures)).
    """
    store = Store(root)
    work = read_shard(store, plan, shard)
    encoder = load_encoder(root, work.encoder_id, lane.device)
    known, erased = open_known(root, work.encoder_id, lane.device, plan), erased_before(root, plan)
    with _Crew(encoder, lane.threads, work.limits, known, erased, lost, suspects, report) as crew:
        if container_kind(work.spans[0]["path"]) is not None:
            _embed_container(store, work, crew, report)
        elif store.exists(part_path(work.encoder_id, work.part)):
            report(("done", (range(len(work.spans)), 0)))
        else:
            for number, span in enumerate(work.spans):
                crew.add(_file_image(work, number, span))
            _write(store, work, work.part, work.spans, list(crew.take().values()), crew)
        return crew.stats


def _file_image(work: Shard, number: int, span: dict[str, Any]) -> _Image:
    def read() -> bytes:
        if span["duplicate"]:
            raise ImageError("duplicate_key", "another file of the source has the same name in Unicode NFC")
        source, limit = work.sources[span["source"]], work.limits.max_bytes
        return read_file(source, span["path"], span["size"], span["version"], limit)

    return _Image(number, _new_row(span, key_of(span["source"], span["path"])), read)


def _embed_container(store: Store, work: Shard, crew: _Crew, report: Report) -> None:
    """The container's images as successive parts, from where the last one ended."""
    (span,) = work.spans
    source, path, version = work.sources[span["source"]], span["path"], span["version"]
    first = _skip_made(store, work, span, report)
    if first is None:
        return
    last, count, size, own = first - 1, 0, 0, None

    def write(end: bool) -> bool:
        """Write what came since `first` as a part; whether to go on."""
        nonlocal own
        rows = crew.take()
        try:
            check_unchanged(source, path, version)
        except ImageError as error:
            rows, own, end = {}, error, True
        named = {row["key"]: row for _, row in sorted(rows.items())}  # of two with one name the last wins
        kept = list(named.values())
        if own is not None:
            row = _new_row(span, key_of(span["source"], path))
            kept.append(row | {"error_kind": own.kind, "error": str(own)})
        name = part_name(work.encoder_id, [span | {"first": first}], work.limits)
        made = span | {"first": first, "last": last, "end": end}
        _write(store, work, name, [made], kept, crew, len(rows) - len(named))
        return not end

    try:
        for piece in read_container(source, path, version, first, work.limits.max_bytes):
            if span["last"] != OPEN and piece.last > span["last"]:
                write(end=False)
                return
            if span["last"] == OPEN and (count >= work.limits.shard_images or size >= work.limits.shard_bytes):
                if not write(end=False):
                    return
                first, count, size = last + 1, 0, 0
            for member in piece.members:
                if crew.erased.has_key(member_key(source.name, path, member.name)):
                    continue
                crew.add(_member_image(span, member))
                count, size = count + 1, size + (len(member.data) if isinstance(member.data, bytes) else 0)
            last = piece.last
    except ImageError as error:
        own = error
    write(end=span["last"] == OPEN or own is not None)


def _skip_made(store: Store, work: Shard, span: dict[str, Any], report: Report) -> int | None:
    """Where to begin, past the parts that an earlier try made; None: all stand."""
    first = int(span["first"])
    while store.exists(
        path := part_path(work.encoder_id, part_name(work.encoder_id, [span | {"first": first}], work.limits))
    ):
        with store.open(path) as file:
            parquet = pq.ParquetFile(file)
            report(("done", (range(parquet.metadata.num_rows), 0)))
            (_, _, _, _, last, end, _, _) = container_spans(parquet.schema_arrow.metadata)[0]
        if end or span["last"] != OPEN:
            return None
        first = last + 1
    return first


def _member_image(span: dict[str, Any], member: Member) -> _Image:
    def read() -> bytes:
        if isinstance(member.data, ImageError):
            raise member.data
        return member.data

    row = _new_row(span, member_key(span["source"], span["path"], member.name))
    row |= {"member": member.name, "fields": canonical_json(member.fields).decode() if member.fields else None}
    return _Image(member.ordinal, row, read, len(member.data) if isinstance(member.data, bytes) else 0)


def _new_row(span: dict[str, Any], key: str) -> Row:
    row: Row = dict.fromkeys(("member", "sha256", "width", "height", "fields", "embedding", "error_kind", "error"))
    row |= {name: span[name] for name in ("source", "path", "version", "attempt")}
    return row | {"key": key, "hash": hash_of(key)}


def _write(
    store: Store,
    work: Shard,
    name: str,
    spans: Sequence[dict[str, Any]],
    rows: list[Row],
    crew: _Crew,
    superseded: int = 0,
) -> None:
    started = time.perf_counter()
    data = encode_part(rows, spans, work.encoder_id, embedding_fingerprint(crew.encoder.fingerprint), superseded)
    store.create(part_path(work.encoder_id, name), data)
    crew.stats.seconds["write"] += time.perf_counter() - started


@functools.lru_cache(maxsize=1)
def open_known(root: str, encoder_id: str, device: str, plan: str) -> Known:
    """What was known when this plan was made."""
    fingerprint = embedding_fingerprint(load_encoder(root, encoder_id, device).fingerprint)
    return Known(Store(root), encoder_id, fingerprint)


@functools.lru_cache(maxsize=1)
def erased_before(root: str, plan: str) -> Erased:
    """What was erased from ROOT when this plan's work began here."""
    return read_erased(Store(root))


@functools.lru_cache(maxsize=1)
def load_encoder(root: str, encoder_id: str, device: str) -> Encoder:
    """ROOT's encoder, ready to run on a device of `devices.Lane`. Raises SifBatchError."""
    Image.init()  # Pillow loads its formats at the first odd file: not in two threads at once
    store = Store(root)
    folder = f"encoders/{encoder_id}"
    with tempfile.TemporaryDirectory() as scratch:
        spec = read_spec(store, folder)
        if spec.precision == "int8" and not computes_int8():
            raise SifBatchError(
                f"{encoder_id} is int8, which this machine's CPU ({instruction_set()}) computes otherwise (no VNNI)",
                remedy="run on machines with VNNI, or choose --precision fp32, which embeds everything again",
            )
        return Encoder(spec, store.fetch(f"{folder}/model.onnx", Path(scratch)), device)


def _embed_rows(pairs: list[tuple[Row, np.ndarray]], encoder: Encoder, seconds: Seconds) -> None:
    if not pairs:
        return
    started = time.perf_counter()
    try:
        vectors = encoder.embed(np.stack([pixels for _, pixels in pairs]))
    except SifBatchError:
        raise
    except Exception as error:  # onnxruntime and torch raise their own
        for pair in pairs if len(pairs) > 1 else ():
            _embed_rows([pair], encoder, seconds)
        if len(pairs) == 1:
            row = pairs[0][0]
            row["error_kind"], row["error"] = "crashed", f"the network failed on it: {error}"[:500]
        return
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float16)
    for (row, _), vector in zip(pairs, vectors, strict=True):
        if np.isfinite(vector).all():
            row["embedding"] = vector
        else:
            row["error_kind"], row["error"] = "not_finite", "the network's output does not fit float16"
    seconds["network"] += time.perf_counter() - started

"""The threads of one shard: they read ahead, decode and embed, and give rows back in order."""

import hashlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sif_batch.encoders.runtime import Encoder
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.ledger.content_index import Known
from sif_batch.ledger.plan import Limits
from sif_batch.ledger.tombstones import Erased

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
class PendingImage:
    """An image to be embedded. number: within its shard; row: what is known of it before it is read."""

    number: int
    row: Row
    read: Callable[[], bytes]
    size: int = 0  # bytes that it already takes


class ShardThreads:
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
        self._batch: list[PendingImage] = []
        self._waiting: deque[tuple[int, Future[Seconds]]] = deque()
        self._rows: dict[int, Row] = {}
        self.stats = ShardStats()

    def __enter__(self) -> "ShardThreads":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, image: PendingImage) -> None:
        """Take an image up; waits while too much is ahead of the threads. A suspect is alone in work."""
        alone = image.number in self._suspects and image.number not in self._lost
        if alone:
            self._finish()
        self._batch.append(image)
        if len(self._batch) == self.encoder.batch or alone or sum(one.size for one in self._batch) > AHEAD_BYTES:
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

    def _work(self, images: Sequence[PendingImage]) -> Seconds:
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

    def _read(self, image: PendingImage, seconds: Seconds) -> np.ndarray | None:
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

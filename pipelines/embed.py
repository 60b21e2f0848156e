"""Shards to parts. An element is (plan, shard number): under 200 bytes."""

import os
import queue
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam

from sif_batch.embedding.supervision import embed_in_child
from sif_batch.embedding.threads import ShardStats
from sif_batch.machine.child import Child, shared_children
from sif_batch.machine.devices import Lane, OwnLanes
from sif_batch.pipelines.runner import Progress, settle, telling_why


class EmbedShard(beam.DoFn):  # type: ignore[misc]
    """`embed_in_child` on each shard, in as many processes at once as there are lanes."""

    def __init__(self, root: str, lanes: Sequence[Lane] | OwnLanes, image_timeout_s: float):
        self.root, self.planned, self.image_timeout_s = root, lanes, image_timeout_s

    def start_bundle(self) -> None:
        with telling_why():
            self.lanes = self.planned.plan() if isinstance(self.planned, OwnLanes) else self.planned
        self._free: queue.SimpleQueue[tuple[Child, Lane]] = queue.SimpleQueue()
        for place in zip(shared_children(len(self.lanes)), self.lanes, strict=True):
            self._free.put(place)
        self._pool = ThreadPoolExecutor(len(self.lanes))
        self._in_work: set[Future[ShardStats]] = set()

    def process(self, element: tuple[str, int]) -> Iterator[None]:
        self._in_work.add(self._pool.submit(self._embed, *element))
        self._settle(len(self.lanes))  # one more waits, so that no lane waits for Beam
        yield from ()

    def finish_bundle(self) -> None:
        self._settle(0)
        self._pool.shutdown()

    def _embed(self, plan: str, shard: int) -> ShardStats:
        child, lane = self._free.get()
        try:
            return embed_in_child(child, self.root, plan, shard, lane, Progress.update, self.image_timeout_s)
        finally:
            self._free.put((child, lane))

    def _settle(self, most: int) -> None:
        """Wait until at most so many shards are in work or waiting, and count what the others cost."""
        settle(self._pool, self._in_work, most, count)


def count(stats: ShardStats) -> None:
    """Add a shard's cost to the pipeline's counters."""
    values = {"images": stats.images, "failed": stats.failed}
    values |= {f"{stage}_ms": round(1000 * seconds) for stage, seconds in stats.seconds.items()}
    values[f"shards of {socket.gethostname()}:{os.getpid()}"] = 1
    for name, value in values.items():
        beam.metrics.Metrics.counter("sif_batch", name).inc(value)
    Progress.update(0, 0)  # a part stands


class EmbedShards(beam.PTransform):  # type: ignore[misc]
    """All shards of a plan, spread over the workers."""

    def __init__(
        self,
        root: str,
        plan: str,
        shards: Sequence[int],
        lanes: Sequence[Lane] | OwnLanes,
        image_timeout_s: float,
    ):
        super().__init__()
        self.plan, self.shards, self.embed_shard = plan, shards, EmbedShard(root, lanes, image_timeout_s)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Shards" >> beam.Create([(self.plan, shard) for shard in self.shards])
            | "Spread" >> beam.Reshuffle()
            | "EmbedShard" >> beam.ParDo(self.embed_shard)
        )

"""Shards to parts. An element is (plan, shard number): under 200 bytes."""

from collections.abc import Iterator, Sequence

import apache_beam as beam

from pipelines.runner import Progress, telling_why
from sif_batch.child import shared_child
from sif_batch.watching import embed_in_child


class EmbedShard(beam.DoFn):  # type: ignore[misc]
    """`sif_batch.watching.embed_in_child` on each shard."""

    def __init__(self, root: str, threads: int, image_timeout_s: float):
        self.root, self.threads, self.image_timeout_s = root, threads, image_timeout_s

    def process(self, element: tuple[str, int]) -> Iterator[None]:
        plan, shard = element
        with telling_why():
            stats = embed_in_child(
                shared_child(), self.root, plan, shard, self.threads, Progress.update, self.image_timeout_s
            )
        values = {"images": stats.images, "failed": stats.failed}
        values |= {f"{stage}_ms": round(1000 * seconds) for stage, seconds in stats.seconds.items()}
        for name, value in values.items():
            beam.metrics.Metrics.counter("sif_batch", name).inc(value)
        yield from ()


class EmbedShards(beam.PTransform):  # type: ignore[misc]
    """All shards of a plan, spread over the workers."""

    def __init__(self, root: str, plan: str, shards: Sequence[int], threads: int, image_timeout_s: float):
        super().__init__()
        self.plan, self.shards, self.embed_shard = plan, shards, EmbedShard(root, threads, image_timeout_s)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Shards" >> beam.Create([(self.plan, shard) for shard in self.shards])
            | "Spread" >> beam.Reshuffle()
            | "EmbedShard" >> beam.ParDo(self.embed_shard)
        )

"""Parts to codes. An element is (quantizer id, part name)."""

from collections.abc import Iterator, Sequence

import apache_beam as beam

from pipelines.runner import Progress, telling_why
from sif_batch.child import shared_child


class QuantizePart(beam.DoFn):  # type: ignore[misc]
    """`sif_batch.codes.quantize_part` on each part, in the worker's child."""

    def __init__(self, root: str):
        self.root = root

    def process(self, element: tuple[str, str]) -> Iterator[None]:
        quantizer, part = element
        with telling_why():
            rows = shared_child().call_again(
                "sif_batch.codes:quantize_part", root=self.root, quantizer=quantizer, part=part
            )
        beam.metrics.Metrics.counter("sif_batch", "rows").inc(rows)
        Progress.update(1, 0)
        yield from ()


class QuantizeParts(beam.PTransform):  # type: ignore[misc]
    """All parts that have no codes under this quantizer yet."""

    def __init__(self, root: str, quantizer: str, parts: Sequence[str]):
        super().__init__()
        self.root, self.quantizer, self.parts = root, quantizer, parts

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Parts" >> beam.Create([(self.quantizer, part) for part in self.parts])
            | "Spread" >> beam.Reshuffle()
            | "QuantizePart" >> beam.ParDo(QuantizePart(self.root))
        )

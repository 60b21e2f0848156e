"""Parts to codes. An element is (quantizer id, part name)."""

from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam

from pipelines.runner import first_error
from sif_batch.child import shared_child


def ignore_progress(done: int, failed: int) -> None:
    """Elsewhere than in the driver's process nobody looks on."""


on_progress: Callable[[int, int], None] = ignore_progress


class QuantizePart(beam.DoFn):  # type: ignore[misc]
    """`sif_batch.codes.quantize_part` on each part, in the worker's child."""

    def __init__(self, root: str):
        self.root = root

    def process(self, element: tuple[str, str]) -> Iterator[None]:
        quantizer, part = element
        try:
            rows = shared_child().call_again(
                "sif_batch.codes:quantize_part", root=self.root, quantizer=quantizer, part=part
            )
        except Exception as error:
            first_error.append(error)
            raise
        beam.metrics.Metrics.counter("sif_batch", "rows").inc(rows)
        on_progress(1, 0)
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

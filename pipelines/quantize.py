"""Parts to codes. An element is (quantizer id, part name)."""

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import apache_beam as beam

from pipelines.runner import Progress, telling_why
from sif_batch.child import Child, shared_children
from sif_batch.devices import usable_cores


class QuantizePart(beam.DoFn):  # type: ignore[misc]
    """`sif_batch.codes.quantize_part` on each part, in so many children of the worker at once; 0: as it has cores."""

    def __init__(self, root: str, lanes: int):
        self.root, self.planned = root, lanes

    def start_bundle(self) -> None:
        self.lanes = self.planned or usable_cores()
        self._free: queue.SimpleQueue[Child] = queue.SimpleQueue()
        for child in shared_children(self.lanes):
            self._free.put(child)
        self._pool = ThreadPoolExecutor(self.lanes)
        self._in_work: set[Future[int]] = set()

    def process(self, element: tuple[str, str]) -> Iterator[None]:
        self._in_work.add(self._pool.submit(self._quantize, *element))
        self._settle(self.lanes)  # one more waits, so that no child waits for Beam
        yield from ()

    def finish_bundle(self) -> None:
        self._settle(0)
        self._pool.shutdown()

    def _quantize(self, quantizer: str, part: str) -> int:
        child = self._free.get()
        try:
            rows = child.call_again("sif_batch.codes:quantize_part", root=self.root, quantizer=quantizer, part=part)
            return int(rows)
        finally:
            self._free.put(child)

    def _settle(self, most: int) -> None:
        """Wait until at most so many parts are in work or waiting, and count the others' rows."""
        with telling_why():
            try:
                while len(self._in_work) > most:
                    done, self._in_work = wait(self._in_work, return_when=FIRST_COMPLETED)
                    for part in done:
                        beam.metrics.Metrics.counter("sif_batch", "rows").inc(part.result())
                        Progress.update(1, 0)
            except BaseException:
                self._pool.shutdown(cancel_futures=True)
                raise


class QuantizeParts(beam.PTransform):  # type: ignore[misc]
    """All parts that have no codes under this quantizer yet."""

    def __init__(self, root: str, quantizer: str, parts: Sequence[str], lanes: int):
        super().__init__()
        self.root, self.quantizer, self.parts, self.lanes = root, quantizer, parts, lanes

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Parts" >> beam.Create([(self.quantizer, part) for part in self.parts])
            | "Spread" >> beam.Reshuffle()
            | "QuantizePart" >> beam.ParDo(QuantizePart(self.root, self.lanes))
        )

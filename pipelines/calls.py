"""Elements to files, each by one function of sif_batch in a child process. An element is the few names it takes."""

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam

from sif_batch.machine.child import Child, shared_children
from sif_batch.machine.devices import usable_cores
from sif_batch.pipelines.runner import Progress, settle


class CallInChild(beam.DoFn):  # type: ignore[misc]
    """`function` ("module:name") on each element, in so many children of the worker at once; 0: as it has cores.

    common: arguments that all elements share. What the function returns is counted as rows.
    """

    def __init__(self, function: str, common: dict[str, Any], lanes: int):
        self.function, self.common, self.planned = function, common, lanes

    def start_bundle(self) -> None:
        self.lanes = self.planned or usable_cores()
        self._free: queue.SimpleQueue[Child] = queue.SimpleQueue()
        for child in shared_children(self.lanes):
            self._free.put(child)
        self._pool = ThreadPoolExecutor(self.lanes)
        self._in_work: set[Future[int]] = set()

    def process(self, element: dict[str, Any]) -> Iterator[None]:
        self._in_work.add(self._pool.submit(self._call, element))
        self._settle(self.lanes)  # one more waits, so that no child waits for Beam
        yield from ()

    def finish_bundle(self) -> None:
        self._settle(0)
        self._pool.shutdown()

    def _call(self, element: dict[str, Any]) -> int:
        child = self._free.get()
        try:
            return int(child.call_again(self.function, **self.common, **element))
        finally:
            self._free.put(child)

    def _settle(self, most: int) -> None:
        """Wait until at most so many elements are in work or waiting, and count the others' rows."""
        settle(self._pool, self._in_work, most, _count)


def _count(rows: int) -> None:
    beam.metrics.Metrics.counter("sif_batch", "rows").inc(rows)
    Progress.update(1, 0)


class CallInChildren(beam.PTransform):  # type: ignore[misc]
    """A function on all elements, spread over the workers. elements: its arguments beside the common ones."""

    def __init__(self, function: str, common: dict[str, Any], elements: Sequence[dict[str, Any]], lanes: int):
        super().__init__()
        self.elements, self.call_in_child = elements, CallInChild(function, common, lanes)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Elements" >> beam.Create(self.elements)
            | "Spread" >> beam.Reshuffle()
            | "CallInChild" >> beam.ParDo(self.call_in_child)
        )

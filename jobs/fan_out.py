"""Work spread over children: a few elements here at once, many by Beam, on whatever engine its options name."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from sif_batch.jobs.progress import Reporter, watching_folder
from sif_batch.machine.child import shared_children
from sif_batch.machine.devices import usable_cores
from sif_batch.pipelines.engines import in_this_process
from sif_batch.storage.store import Store

FEW = 8  # elements: importing and starting Beam takes longer


def spread(
    function: str,
    common: dict[str, Any],
    elements: Sequence[dict[str, Any]],
    stage: str,
    made: tuple[Store, str],
    reporter: Reporter,
    beam: Sequence[str] = (),
    workers: int | None = None,
) -> None:
    """Call a function of sif_batch ("module:name") with each element, in as many children as there are workers.

    made: where each element's file appears, a folder of a store; workers: None: as many as there are cores, on a
    cluster those of each machine.
    """
    if not elements:
        return
    here = in_this_process(beam)
    if here or len(elements) <= FEW:
        children = shared_children(min(workers or usable_cores(), len(elements)))
        for child in children:
            child.start()
    with ExitStack() as told:
        update = told.enter_context(reporter.stage(stage, len(elements), "parts"))
        if len(elements) <= FEW:
            for element in elements:
                children[0].call_again(function, **common, **element)
                update(1, 0)
            return
        from sif_batch.pipelines.calls import CallInChildren
        from sif_batch.pipelines.runner import Progress, run_pipeline

        if here:
            Progress.update = staticmethod(update)
        else:
            told.enter_context(watching_folder(*made, update))
        run_pipeline(CallInChildren(function, common, elements, len(children) if here else workers or 0), beam)

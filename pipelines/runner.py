"""Running a pipeline: its options, its counters, and the error that a person should see."""

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sif_batch.config import SifBatchError

RUNNERS = ("FnApiRunner", "DirectRunner")
first_error: list[BaseException] = []  # Beam turns exceptions into text; the original is kept here


class Progress:
    """What the driver's process is told of the work; elsewhere nobody looks on."""

    update: Callable[[int, int], None] = staticmethod(lambda done, failed: None)


@contextmanager
def telling_why() -> Iterator[None]:
    """Keep the exception that ends an element, for `run_pipeline` to raise."""
    try:
        yield
    except Exception as error:
        first_error.append(error)
        raise


def check_options(arguments: Sequence[str]) -> list[str]:
    """Beam's options as given after `--`, made safe: DirectRunner, a switch that may download, is run as FnApiRunner.

    Raises SifBatchError for what is known to lose data or to hang.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise SifBatchError("Beam is not installed, only the reader is", remedy="install 'sif-batch[batch]'")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--runner", default="FnApiRunner")
    parser.add_argument("--direct_running_mode", default="in_memory")
    try:
        known, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise SifBatchError(f"{error}", remedy="Beam's options look like --name=value") from error
    if known.direct_running_mode == "multi_threading":
        raise SifBatchError(
            "--direct_running_mode=multi_threading loses elements in Beam 2.77",
            remedy="leave it out: images are spread over --workers threads inside each shard",
        )
    if known.direct_running_mode != "in_memory":
        raise SifBatchError(
            f"--direct_running_mode={known.direct_running_mode} hangs for ever when a worker is killed",
            remedy="leave it out: each shard already runs in a child process that is watched",
        )
    if known.runner not in RUNNERS:
        raise SifBatchError(f"--runner={known.runner} is not supported yet", remedy=f"use one of {', '.join(RUNNERS)}")
    return [*others, "--runner=FnApiRunner"]


def run_pipeline(transform: object, arguments: Sequence[str]) -> dict[str, int]:
    """Run one transform on an empty pipeline to its end. Returns the counters of namespace sif_batch by name."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    first_error.clear()
    pipeline = beam.Pipeline(options=PipelineOptions(list(arguments)))
    pipeline | transform
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        raise (first_error[0] if first_error else error) from None
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("sif_batch"))["counters"]
    return {m.key.metric.name: m.committed if m.committed is not None else m.attempted for m in found}

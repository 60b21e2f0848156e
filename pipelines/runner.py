"""Running a pipeline: its options, its counters, and the error that a person should see."""

from collections.abc import Sequence

from sif_batch.config import SifBatchError

RUNNERS = ("FnApiRunner", "DirectRunner")
first_error: list[BaseException] = []  # Beam turns exceptions into text; the original is kept here


def check_options(arguments: Sequence[str]) -> list[str]:
    """Beam's options as given after `--`, made safe. Raises SifBatchError for what is known to lose data."""
    checked = list(arguments)
    values = {a.partition("=")[0]: a.partition("=")[2] for a in checked}
    if values.get("--direct_running_mode") == "multi_threading":
        raise SifBatchError(
            "--direct_running_mode=multi_threading loses elements in Beam 2.77",
            remedy="leave it out: images are spread over --workers threads inside each shard",
        )
    if values.get("--direct_running_mode", "in_memory") != "in_memory":
        raise SifBatchError(
            f"--direct_running_mode={values['--direct_running_mode']} hangs for ever when a worker is killed",
            remedy="leave it out: each shard already runs in a child process that is watched",
        )
    runner = values.get("--runner", "FnApiRunner")
    if runner not in RUNNERS:
        raise SifBatchError(f"--runner={runner} is not supported yet", remedy=f"use one of {', '.join(RUNNERS)}")
    return [a for a in checked if not a.startswith("--runner")] + ["--runner=FnApiRunner"]


def run_pipeline(transform: object, arguments: Sequence[str]) -> dict[str, int]:
    """Run one transform on an empty pipeline to its end. Returns the counters of namespace sif_batch by name."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise SifBatchError(f"Beam is not installed ({error})", remedy="install 'sif-batch[batch]'") from error

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

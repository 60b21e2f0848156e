"""Running a pipeline: its counters, and the error that a person should see."""

import base64
import contextlib
import json
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.pipelines.engines import serve_jobs, stop_serving
from sif_batch.pipelines.logs import silence

silence()  # before anything imports Beam, in the driver and in workers

CANCEL_S = 10.0
TOLD = re.compile(r"told by sif-batch: ([A-Za-z0-9_=-]+)")

first_error: list[BaseException] = []  # Beam turns exceptions into text; the original is kept here
_running: list[Any] = []


class Progress:
    """What the driver's process is told of the work; elsewhere nobody looks on."""

    update: Callable[[int, int], None] = staticmethod(lambda done, failed: None)


@contextlib.contextmanager
def telling_why() -> Iterator[None]:
    """Keep the exception that ends an element for `run_pipeline` to raise: here, and as text, which an engine carries
    from the worker to the driver."""
    try:
        yield
    except Exception as error:
        first_error.append(error)
        told = {"message": f"{error}"[:1000], "remedy": getattr(error, "remedy", "")}
        text = base64.urlsafe_b64encode(canonical_json(told)).decode()  # engines quote and escape each in its way
        raise RuntimeError(f"{error} (told by sif-batch: {text})") from error


def settle(pool: ThreadPoolExecutor, in_work: set[Future[Any]], most: int, count: Callable[[Any], None]) -> None:
    """Wait until at most so many elements are in work or waiting, and count the others' results."""
    with telling_why():
        try:
            while len(in_work) > most:
                done, _ = wait(in_work, return_when=FIRST_COMPLETED)
                in_work -= done
                for element in done:
                    count(element.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # the other lanes end what they are at
            raise


def run_pipeline(transform: object, arguments: Sequence[str]) -> dict[str, int]:
    """Run one transform on an empty pipeline to its end. Returns the counters of namespace sif_batch by name.

    Raises the exception that ended it, or SifBatchError where only the engine's text came back.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    first_error.clear()
    threading.excepthook = _without_beams
    arguments = [*arguments, *serve_jobs(arguments)]
    pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    pipeline | transform
    try:
        result = pipeline.run()
        _running.append(result)
        result.wait_until_finish()
    except Exception as error:
        raise (first_error[0] if first_error else as_told(error)) from None
    finally:
        _running.clear()
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("sif_batch"))["counters"]
    return {m.key.metric.name: m.committed if m.committed is not None else m.attempted for m in found}


def _without_beams(failure: threading.ExceptHookArgs) -> None:
    """Beam's threads raise when a job has ended and its channels close: no news to anybody."""
    frames = traceback.extract_tb(failure.exc_traceback)
    if not any("apache_beam" in frame.filename for frame in frames):
        threading.__excepthook__(failure)


def as_told(error: Exception) -> Exception:
    """What a worker told through the engine's text; else what the engine said, in a line."""
    text = str(error)
    if found := TOLD.search(text):
        with contextlib.suppress(ValueError):
            told = json.loads(base64.urlsafe_b64decode(found[1]))
            return SifBatchError(told["message"], remedy=told["remedy"])
    if "FAILED" not in text and "CANCELLED" not in text:
        return error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("at ")]
    return SifBatchError(
        f"the engine gave the job up: {lines[0][:500]}",
        remedy="its pages and logs say more; the same command goes on where this one stopped",
    )


def cancel() -> None:
    """End what runs, on a cluster too: the process is about to end. Takes seconds at most."""

    def work() -> None:
        for result in list(_running):
            with contextlib.suppress(Exception):
                result.cancel()
        stop_serving()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(CANCEL_S)

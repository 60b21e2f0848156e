"""A run that ends early, before it has written its own record: recorded all the same, where ROOT stands."""

import contextlib
from collections.abc import Iterator
from typing import Any

from sif_batch.errors import SifBatchError
from sif_batch.jobs.run_record import new_run_id, on_end, utc, write_run
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.terminal.summary import summarise
from sif_batch.release.history import read_top
from sif_batch.storage.root import read_record
from sif_batch.storage.store import Store


@contextlib.contextmanager
def end_recorded(store: Store, settings: RunSettings) -> Iterator[str]:
    """The id of a run. What ends it, a signal too, stands in runs/<id>/run.json with its reason and remedy.

    A mistyped ROOT stays what it was: nothing is written where none stands, or one of another layout.
    """
    run_id, started = new_run_id(), utc()

    def record(error: BaseException) -> None:
        with contextlib.suppress(OSError, SifBatchError):
            if read_record(store) is None or store.exists(f"runs/{run_id}/run.json"):
                return
            result: dict[str, Any] = {
                "outcome": "error",
                "release": None,
                "root": store.url,
                "run": run_id,
                "seconds": {},
            }
            result |= {"error": str(error) or type(error).__name__, "remedy": getattr(error, "remedy", "")}
            write_run(store, run_id, settings, started, None, read_top(store), result)
            store.create(f"runs/{run_id}/summary.txt", summarise(result).encode())

    with on_end(record):
        try:
            yield run_id
        except Exception as error:
            record(error)
            raise

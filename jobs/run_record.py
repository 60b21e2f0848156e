"""Runs: what each run was asked, where it ran and what came of it, in runs/<id>/run.json."""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import sif_batch
from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.gc import parse_time
from sif_batch.machine.arithmetic import computes_int8, instruction_set
from sif_batch.machine.devices import usable_cores
from sif_batch.release.manifest import MANIFEST
from sif_batch.storage.store import Store

PUT_EVERY_S = 30.0

_logs: list["EventLog"] = []
_records: list[Callable[[BaseException], None]] = []


def new_run_id() -> str:
    """A name whose order is that of time."""
    return f"{utc()}-{uuid.uuid4().hex[:8]}"


def write_run(
    store: Store,
    run_id: str,
    settings: RunSettings,
    started: str,
    listing: str | None,
    parent: dict[str, Any] | None,
    result: dict[str, Any],
) -> None:
    """Write run.json. Failing here fails nothing."""
    document = {
        "id": run_id,
        "started": started,
        "ended": utc(),
        "settings": settings.model_dump(mode="json"),
        "version": sif_batch.__version__,
        "listing": listing,
        "parent": parent["release"] if parent else None,
        "parent_n": parent["n"] if parent else None,
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cores": usable_cores(),
            "isa": instruction_set(),
            "vnni": computes_int8(),
            "pid": os.getpid(),
        },
        "result": result,
    }
    with suppress(OSError):
        store.create(f"runs/{run_id}/run.json", canonical_json(document))


class EventLog:
    """runs/<id>/events.jsonl: one JSON object a line, as things happen. Failing here fails nothing.

    In a bucket, where nothing can be appended to, the object is put anew at most every `PUT_EVERY_S`, and at the end.
    """

    def __init__(self, store: Store, run_id: str):
        self._store, self._name = store, f"runs/{run_id}/events.jsonl"
        self._lock = threading.RLock()  # a signal may come in the midst of a line, and has one of its own to write
        self._lines: list[bytes] = []
        self._put_at = 0.0
        _logs.append(self)

    def write(self, event: str, **facts: Any) -> None:
        """Add a line: when, what, and what else is to be known of it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False, default=str).encode() + b"\n"
        with self._lock, suppress(OSError):
            if self._store.local:
                path = self._store.path(self._name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "ab") as file:
                    file.write(line)
            else:
                self._lines.append(line)
                if time.monotonic() - self._put_at > PUT_EVERY_S:
                    self._put()

    def close(self) -> None:
        if self in _logs:
            _logs.remove(self)
        with self._lock, suppress(OSError):
            if not self._store.local:
                self._put()

    def _put(self) -> None:
        self._store.replace(self._name, b"".join(self._lines))
        self._put_at = time.monotonic()


@contextmanager
def on_end(record: Callable[[BaseException], None]) -> Iterator[None]:
    """Call `record` with the reason if this process is about to end meanwhile, by a signal."""
    _records.append(record)
    try:
        yield
    finally:
        _records.remove(record)


def note_end(event: str, **facts: Any) -> None:
    """Tell all open logs and records that this process is about to end."""
    for record in list(_records):
        record(SifBatchError(f"{event} ({', '.join(map(str, facts.values()))})", remedy="the same command goes on"))
    for log in list(_logs):
        log.write(event, **facts)
        log.close()


def read_runs(store: Store) -> Iterator[dict[str, Any]]:
    """The documents of ROOT's runs, newest first; those that cannot be read are passed over."""
    for name in reversed(store.sizes("runs")):
        with suppress(OSError, ValueError):
            document = json.loads(store.read(f"runs/{name}/run.json"))
            if isinstance(document, dict) and isinstance(document.get("result"), dict):
                yield document


def last_run(store: Store) -> dict[str, Any] | None:
    """The newest run's id, outcome, release and age in seconds; of one that ended early its error and remedy."""
    run = next(read_runs(store), None)
    if run is None:
        return None
    result = run["result"]
    told = {name: result.get(name) for name in ("outcome", "release", "error", "remedy")}
    return {
        "id": run["id"],
        **told,
        "age_s": max(0, round((datetime.now(UTC) - parse_time(str(run.get("ended")))).total_seconds())),
    }


def newest_candidate(store: Store, top: dict[str, Any] | None) -> str | None:
    """The release that the newest run that came to an end made and held back, if nothing was published since."""
    run = next((run for run in read_runs(store) if run["result"]["outcome"] != "error"), None)
    if run is None or top is None or run.get("parent_n") != top["n"] or run["result"]["outcome"] != "held":
        return None
    release = str(run["result"]["release"])
    return release if store.exists(f"releases/{release}/{MANIFEST}") else None


def utc() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())

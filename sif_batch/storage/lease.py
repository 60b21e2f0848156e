"""The lease: one writer of a ROOT at a time, told from a dead one.

lease.json is held while it names a holder. It is only ever swapped: replaced if it still is what was read. A holder
renews it; one whose process is gone, or that has not renewed for `TTL_S`, is taken over. Harm is kept off elsewhere:
whoever wakes up late finds its lease gone, and cannot publish, since history/<n+1> is created exclusively.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sif_batch.digests import canonical_json
from sif_batch.errors import BusyError, SifBatchError
from sif_batch.storage.store import Store

NAME = "lease.json"
TTL_S = 60.0
RENEW_EVERY_S = 15.0
TRIES = 5

_held: list["Lease"] = []


class Lease:
    """A ROOT's lease, held by this process. `take` gets it, `release` gives it back."""

    def __init__(self, store: Store, command: str, clock: Callable[[], float] = time.time):
        self.store, self._clock = store, clock
        self._own = {"id": uuid.uuid4().hex, "command": command, **_process()}
        self._since = _utc(clock())
        self._data = b""
        self._lost: BusyError | None = None
        self._swapping = threading.Lock()
        self._ended = threading.Event()

    def take(self) -> dict[str, Any] | None:
        """Get the lease; returns the dead holder that it was taken from, if any. Raises BusyError if it is held."""
        for _ in range(TRIES):  # others may take it or give it back meanwhile
            data = self._record()
            if self.store.create(NAME, data):
                self._data = data
                return None
            found = _read(self.store)
            if found is None:
                continue
            holder = _holder(found)
            if holder is not None and (why := _why_held(holder, self._clock())):
                raise busy(self.store, holder, why)
            if swap(self.store, found, data):
                self._data = data
                return holder
        raise SifBatchError(f"{self.store.path(NAME)} changes all the time", remedy="run the same command again")

    def keep(self) -> None:
        """Renew the lease from now on, in a thread, until it is released or lost."""
        _held.append(self)
        threading.Thread(target=self._renew_for_ever, daemon=True, name="lease").start()

    def renew(self) -> None:
        """Say once more that the holder lives; notes if the lease was taken over."""
        with self._swapping:
            if self._ended.is_set() or self._lost:
                return
            data = self._record()
            if swap(self.store, self._data, data):
                self._data = data
            elif (found := _read(self.store)) != self._data:
                holder = _holder(found) if found else None
                self._lost = busy(self.store, holder, "it took the lease over") if holder else _gone(self.store)

    def check(self) -> None:
        """Raise BusyError if the lease was taken over. Looks, since this process may have slept."""
        if self._lost is None and _read(self.store) != self._data:
            _apart(self.renew)
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Give the lease back, if it is still this one's."""
        with self._swapping:
            self._ended.set()
            free = canonical_json({"holder": None, "since": _utc(self._clock())})
            if self._data and not self._lost:
                swap(self.store, self._data, free)
            if self in _held:
                _held.remove(self)

    def _renew_for_ever(self) -> None:
        while not self._ended.wait(RENEW_EVERY_S) and not self._lost:
            with contextlib.suppress(OSError):  # a full disk, a store that is away: the next time
                self.renew()

    def _record(self) -> bytes:
        now = self._clock()
        times = {"since": self._since, "renewed": _utc(now), "expires": now + TTL_S}
        return canonical_json({"holder": self._own, **times})


@contextlib.contextmanager
def holding(store: Store, command: str, say: Callable[[str], None] = lambda text: None) -> Iterator[Lease]:
    """Hold ROOT's lease. Raises BusyError at once if another process does."""
    lease = Lease(store, command)
    if dead := lease.take():
        say(f"the lease of {_describe(dead)} is taken over: it has ended without giving it back")
    lease.keep()
    try:
        yield lease
    finally:
        with contextlib.suppress(OSError):  # a full disk: the lease of a process that is gone is taken over
            _apart(lease.release)


def _apart(work: Callable[[], None]) -> None:
    """In a thread of its own: a signal's handler, which gives the lease back, would wait for ever for what it
    interrupted in the main one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def release_all() -> None:
    """Give back whatever this process holds: it is about to end."""
    for lease in list(_held):
        with contextlib.suppress(OSError):
            lease.release()


def check_free(store: Store) -> None:
    """Raise BusyError if a living process holds ROOT's lease. Writes nothing."""
    holder = _holder(_read(store) or b"{}")
    if holder is not None and (why := _why_held(holder, time.time())):
        raise busy(store, holder, why)


def swap(store: Store, old: bytes, new: bytes) -> bool:
    """Replace lease.json if its bytes still are `old`. False, and nothing changed, if they are not."""
    try:
        data, version = store.read_versioned(NAME)
    except FileNotFoundError:
        return False
    return data == old and store.replace_if(NAME, new, version)


def _read(store: Store) -> bytes | None:
    try:
        return store.read(NAME)
    except FileNotFoundError:
        return None


def _holder(data: bytes) -> dict[str, Any] | None:
    """Who holds the lease, with its times; None if nobody does, or if it cannot be read."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        record = json.loads(data)
        if record["holder"] is not None:
            return dict(record["holder"]) | {"since": str(record["since"]), "expires": float(record["expires"])}
    return None


def _why_held(holder: dict[str, Any], now: float) -> str | None:
    """Why this holder must be left alone; None: it is dead, and may be taken over."""
    if now > holder["expires"]:
        return None
    if holder.get("machine") == _machine() and _started(holder["pid"]) != holder["started"]:
        return None
    return f"if it has died, its lease ends {_utc(holder['expires'])}"


def busy(store: Store, holder: dict[str, Any], why: str) -> BusyError:
    return BusyError(
        f"{store.url} is held by {_describe(holder)} since {holder['since']}",
        remedy=f"wait for it to end, or end it; {why}",
    )


def _gone(store: Store) -> BusyError:
    return BusyError(f"the lease of {store.url} was taken away", remedy="run the same command again")


def _describe(holder: dict[str, Any]) -> str:
    return f"sif-batch {holder['command']} (process {holder['pid']} on {holder['host']})"


def _process() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "started": _started(pid), "host": socket.gethostname(), "machine": _machine()}


def _machine() -> str:
    """What tells a running system, and the process numbers in it, from all others."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None if it does not run (any more)."""
    if not sys.platform.startswith("linux"):
        return "unknown"  # not taken for dead: its lease ends by itself
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

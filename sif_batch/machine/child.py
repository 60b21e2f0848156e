"""One long-lived child process that does the dangerous work, so that a crash or a hang costs only a retry.

The parent calls a function by name; the child reports progress while it works. A child that ends, or
that reports nothing for too long, is noticed within seconds and raised as `ChildDied`.
"""

import contextlib
import ctypes
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from sif_batch.errors import SifBatchError

POLL_S = 1.0
STALL_S = 120.0
# glibc: give a large image's memory back when it is freed, whatever came before (1,142 -> 981 MB on odd files)
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt's names
SAFE_PATH = ("-P",)  # a random.py in the folder that a command is started in is the user's, not Python's
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def keep_memory() -> None:
    """Take GIVE_BACK back in this process: mapping arrays of some MB anew each time costs more than computing them
    (a part of 1,000 rows of 512 dimensions: 50 ms, 31 without)."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**28)


def package_path() -> dict[str, str]:
    """PYTHONPATH for a child with SAFE_PATH: with the folder of this package, where that is not installed."""
    place = str(Path(__file__).parents[2])
    if place in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), place)))}


class ChildDied(RuntimeError):
    """The child process ended, or was ended because it reported nothing for too long (`overdue`)."""

    def __init__(self, message: str, overdue: bool):
        super().__init__(message)
        self.overdue = overdue


class Child:
    """A child process, started on the first call (or `start`) and again after a death."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._errors: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, if none runs, without waiting for it: its imports overlap with the caller's."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        # Not multiprocessing's spawn, which would import the caller's __main__ again.
        ours, theirs = (end.detach() for end in socket.socketpair())
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        env = os.environ | dict.fromkeys(THREAD_VARIABLES, "1") | GIVE_BACK | package_path()
        try:
            self._process = subprocess.Popen(
                [sys.executable, *SAFE_PATH, "-m", "sif_batch.machine.child", str(theirs)],
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=env,
            )
        finally:
            os.close(theirs)
        self._pipe = Connection(ours)

    def call(
        self,
        function: str,
        on_report: Callable[[Any], None] = lambda report: None,
        stall_s: float = STALL_S,
        overdue: Callable[[], str | None] = lambda: None,
        **arguments: Any,
    ) -> Any:
        """Run `module:function(report, **arguments)` in the child and return its result.

        Raises ChildDied when the process ends, reports nothing for `stall_s` seconds or is `overdue` (asked about every
        second: why, or None), and the function's own exception when it raised one.
        """
        with self._lock:
            self.start()
            assert self._pipe and self._process  # start() made both
            try:
                self._pipe.send((function, arguments))
                kind, value = self._await(on_report, stall_s, overdue)
            except (EOFError, ConnectionError) as error:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=POLL_S)
                code, tail = self._process.poll(), self._error_tail()
                self.close()
                raise ChildDied(f"the worker process ended ({_describe(code)}){tail}", overdue=False) from error
            except BaseException:
                self.close()
                raise
        if kind == "result":
            return value
        known, text = value
        raise known or RuntimeError(f"in the worker process:\n{text}")

    def prepare(self, function: str, **arguments: Any) -> None:
        """Start the process and `call` without waiting; what goes wrong there, the next call meets too."""

        def work() -> None:
            with contextlib.suppress(Exception):
                self.call(function, **arguments)

        self.start()
        threading.Thread(target=work, daemon=True).start()

    def call_again(self, function: str, tries: int = 3, **arguments: Any) -> Any:
        """`call` for work that is not to blame for a death: up to `tries` times."""
        for left in reversed(range(tries)):
            try:
                return self.call(function, **arguments)
            except ChildDied as death:
                if not left:
                    raise SifBatchError(
                        f"{death}, {tries} times", remedy="free memory; the same command goes on where this stopped"
                    ) from death

    def close(self) -> None:
        """End the process at once. It holds nothing that is not on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        if self._errors is not None:
            self._errors.close()
        self._process = self._pipe = self._errors = None

    def _await(
        self, on_report: Callable[[Any], None], stall_s: float, overdue: Callable[[], str | None]
    ) -> tuple[str, Any]:
        """The child's answer; its reports on the way go to `on_report`, each resetting the clock."""
        assert self._pipe
        readable = select.poll()  # Connection.poll makes one each time
        readable.register(self._pipe, select.POLLIN)
        asked = time.monotonic()
        deadline = asked + stall_s
        while True:
            if time.monotonic() - asked > POLL_S:
                asked = time.monotonic()
                if why := overdue():
                    raise ChildDied(why, overdue=True)
            if readable.poll(1000 * POLL_S):
                kind, value = self._pipe.recv()
                if kind != "report":
                    return kind, value
                on_report(value)
                deadline = time.monotonic() + stall_s
            elif time.monotonic() > deadline:
                raise ChildDied(f"the worker process reported nothing for {stall_s:.0f} s", overdue=True)

    def _error_tail(self) -> str:
        assert self._errors
        self._errors.seek(0)
        lines = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _describe(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


_shared: list[Child] = []
_shared_lock = threading.Lock()


def shared_children(number: int) -> list[Child]:
    """So many children of this process, always the same: each loads its model once, however many elements come."""
    with _shared_lock:
        _shared.extend(Child() for _ in range(number - len(_shared)))
        return _shared[:number]


def shared_child() -> Child:
    """The first of them, for what needs one."""
    return shared_children(1)[0]


def running_children() -> list[Child]:
    """Those of them that have a process now."""
    return [child for child in _shared if child.pid is not None]


def close_shared_children() -> None:
    for child in _shared:
        child.close()


def serve(descriptor: int) -> None:
    """The child's loop: do what is asked until the parent's end of the pipe closes."""
    warnings.simplefilter("ignore")  # of images, which end as rows
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, args=[descriptor], daemon=True).start()
    pipe = Connection(descriptor)
    sending = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with sending:
            try:
                pipe.send((kind, value))
            except OSError:
                os._exit(0)  # the parent is gone: nobody waits for this work

    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            module, name = function.split(":")
            work = getattr(importlib.import_module(module), name)
            send("result", work(lambda report: send("report", report), **arguments))
        except Exception as error:
            known = error if isinstance(error, SifBatchError | OSError) else None
            send("error", (known, traceback.format_exc()))


def _end_with_parent(descriptor: int) -> None:
    """End this process when the parent's end of the pipe closes, even while an image hangs and reports nothing."""
    hung_up = select.poll()
    hung_up.register(descriptor, 0)
    hung_up.poll()
    os._exit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))

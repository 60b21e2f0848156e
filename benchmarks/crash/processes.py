"""A run in a process group of its own, to be killed, and a reader that asks its ROOT meanwhile."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.crash.cases import Night, Undisturbed
from benchmarks.crash.stages import stage_of
from sif_batch.errors import SifBatchError
from sif_batch.query.index import Index

REPOSITORY = Path(__file__).parents[2]
SHARD_IMAGES = 16  # many parts, so many moments between them
TIMEOUT_S = 300.0
POLL_S = 0.01
READ_EVERY_S = 0.1
NOTHING_YET = ("neither a ROOT nor a release", "no release is published yet")


class Reader:
    """Asks ROOT all the time. fault: the first answer that it should not have got."""

    def __init__(self, root: Path, expected: Undisturbed):
        self._root, self._old, self._new = root, expected.night.release, expected.release
        self.asked, self.fault, self._seen = 0, "", ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(TIMEOUT_S)

    def _ask_on(self) -> None:
        while not self.fault and not self._ended.wait(READ_EVERY_S):
            try:
                self.fault = self._ask()
            except SifBatchError as error:
                if self._seen or self._old or not any(text in str(error) for text in NOTHING_YET):
                    self.fault = f"a reader: {error}"
            except Exception as error:
                self.fault = f"a reader: {type(error).__name__}: {error}"

    def _ask(self) -> str:
        index = Index.open(self._root)
        if index.release not in (self._old, self._new) or (self._seen == self._new != index.release):
            return f"a reader saw release {index.release[:12]}"
        self._seen = index.release
        key = index.column("key")[self.asked % len(index)].as_py()
        hits = index.search(key=key, k=5)
        if len(hits) != 5 or any(not -1 <= hit.similarity <= 1 for hit in hits):
            return f"a reader got {len(hits)} hits for {key}"
        self.asked += 1
        return ""


class Run:
    """`sif-batch run IMAGES ROOT` in a process group of its own, its output in files beside ROOT."""

    def __init__(self, night: Night, root: Path, *options: str):
        self.root, self.night = root, night
        self.started = time.monotonic()
        self._out, self._log = root.with_suffix(".json"), root.with_suffix(".log")
        command = [
            sys.executable,
            "-m",
            "sif_batch.jobs.cli",
            "run",
            str(night.images),
            str(root),
            *options,
            "--no-report",
            "--json",
        ]
        with open(self._out, "wb") as out, open(self._log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=out, stderr=log, cwd=REPOSITORY, start_new_session=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def kill_group(self) -> None:
        """kill -9 of the run and its child."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT_S)

    def child(self) -> int | None:
        """The process id of the run's child."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                if (
                    parent == self.process.pid
                    and b"sif_batch.machine.child" in status.with_name("cmdline").read_bytes()
                ):
                    return int(status.parent.name)
        return None

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Wait for something; False if the run ended before."""
        while not ready():
            if self.process.poll() is not None:
                return False
            if self.seconds > TIMEOUT_S:
                raise click.ClickException(f"a run still goes on after {TIMEOUT_S:.0f} s: {self._last_line()}")
            time.sleep(POLL_S)
        return True

    def wait_for_moment(self, expected: Undisturbed, at_s: float) -> bool:
        """Wait until this run is where the undisturbed one was after `at_s` seconds, whichever is faster."""
        stage, seen_s = next(mark for mark in reversed(expected.marks) if mark[1] <= at_s)
        reached = self.wait_until(lambda: stage_of(self.root, self.night.files) >= stage)
        then = self.seconds + at_s - seen_s
        return reached and self.wait_until(lambda: self.seconds >= then)

    def finish(self) -> dict[str, Any]:
        """What the run printed, at its end."""
        self.wait_until(lambda: self.process.poll() is not None)
        printed = self._out.read_text()
        if self.process.returncode or not printed:
            raise click.ClickException(f"exit {self.process.returncode}: {self._last_line()}")
        result: dict[str, Any] = json.loads(printed)
        return result

    def _last_line(self) -> str:
        return next(reversed(self._log.read_text(errors="replace").splitlines()), "")[:300]


@contextlib.contextmanager
def started(night: Night, root: Path, *options: str) -> Iterator[Run]:
    """A run that does not outlive this block."""
    run = Run(night, root, "--family", night.family, "--shard-images", str(SHARD_IMAGES), *options)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.kill_group()


@contextlib.contextmanager
def new_root(night: Night) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sif-batch-crash-", ignore_cleanup_errors=True) as folder:
        if night.base is not None:
            shutil.copytree(night.base, Path(folder, "root"))
        yield Path(folder, "root")

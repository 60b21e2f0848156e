"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sif_batch.jobs.wording import format_seconds
from sif_batch.storage.store import Store

PLAIN_EVERY_S = 5.0
WINDOW_S = 30.0
LOG_EVERY_S = 60.0
WATCH_EVERY_S = 5.0


class Update(Protocol):
    def __call__(self, done: int, failed: int = 0) -> None: ...


class Log(Protocol):
    def write(self, event: str, **facts: Any) -> None: ...


class Reporter:
    """Says what runs and how far it is. log: where it is written down too, as soon as there is one."""

    log: Log | None = None

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.live = sys.stderr.isatty()

    def say(self, text: str) -> None:
        self.console.print(text)
        if self.log is not None:
            self.log.write("said", text=text)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Update]:
        """Progress of one stage: the update takes what was done, and what failed of it, since the last call.

        total: None where nobody knows."""
        with self._bar(name, total, unit) if self.live else self._lines(name, total, unit) as update:
            yield self._logged(name, total, unit, update)

    def _logged(self, name: str, total: int | None, unit: str, update: Update) -> Update:
        """The same update, written down every minute."""
        if self.log is None:
            return update
        log, finished, failures, written = self.log, 0, 0, time.monotonic()

        def both(done: int, failed: int = 0) -> None:
            nonlocal finished, failures, written
            update(done, failed)
            finished, failures = finished + done, failures + failed
            if time.monotonic() - written >= LOG_EVERY_S or (finished == total and done):
                written = time.monotonic()
                log.write("progress", stage=name, done=finished, failed=failures, total=total, unit=unit)

        return both

    @contextlib.contextmanager
    def _bar(self, name: str, total: int | None, unit: str) -> Iterator[Update]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[rate]:.1f}/s, {task.fields[failed]} failed"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, speed_estimate_period=WINDOW_S) as bar:
            task = bar.add_task(name, total=total, failed=0, rate=0.0)
            failures = 0

            def update(done: int, failed: int = 0) -> None:
                nonlocal failures
                failures += failed
                bar.update(task, advance=done, failed=failures, rate=bar.tasks[task].speed or 0.0)

            yield update

    @contextlib.contextmanager
    def _lines(self, name: str, total: int | None, unit: str) -> Iterator[Update]:
        started = said = time.monotonic()
        finished = failures = 0

        def update(done: int, failed: int = 0) -> None:
            nonlocal finished, failures, said
            finished, failures = finished + done, failures + failed
            now = time.monotonic()
            if now - said >= PLAIN_EVERY_S or (finished == total and done):
                said = now
                rate = finished / max(now - started, 1e-9)
                of, ends = "", ""
                if total is not None:
                    of, ends = f" / {total}", f", ETA {format_seconds((total - finished) / rate if rate > 0 else 0)}"
                self.say(f"{name}: {finished}{of} {unit}, {rate:.1f}/s, {failures} failed{ends}")

        yield update


@contextlib.contextmanager
def watching_folder(store: Store, folder: str, update: Update) -> Iterator[None]:
    """Tell `update` of the files that appear in a folder of ROOT meanwhile: work on a cluster, seen from here."""
    seen, ended = len(store.sizes(folder)), threading.Event()

    def look() -> None:
        nonlocal seen
        with contextlib.suppress(OSError):
            now = len(store.sizes(folder))
            update(now - seen)
            seen = now

    def watch() -> None:
        while not ended.wait(WATCH_EVERY_S):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()


def process_age_s() -> float:
    """Seconds since this process was started, its imports included; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of its stage."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started

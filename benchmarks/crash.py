"""Kill runs at random moments: the same command again must give the release that an undisturbed run gives.

First nights and second ones, of which some images came, went and changed, in turns. Meanwhile a reader asks ROOT all
the time, and may see the old release or the new one, whole, and nothing else.

python -m benchmarks.crash [--runs 10] [--child-runs 5] [--at-once 1] [--images DIR] [--seed N] [--json]
(Linux: it reads /proc)
"""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from sif_batch.errors import SifBatchError
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.query.index import Index
from sif_batch.storage.temporary_files import TEMPORARY

REPOSITORY = Path(__file__).parents[1]
PHOTOS = REPOSITORY / "examples" / "photos"
FAMILIES = ("flat", "ivf-pq")
SHARD_IMAGES = 16  # many parts, so many moments between them
OTHER = ("--shard-images", "75", "--workers", "1")
TIMEOUT_S = 300.0
POLL_S = 0.01
READ_EVERY_S = 0.1
NOTHING_YET = ("neither a ROOT nor a release", "no release is published yet")
IDENTICAL = "identical"

# What appears in ROOT, in this order.
STAGES = (
    ("start", "."),
    ("list", "root.json"),
    ("plan", "plans/*.parquet"),
    ("embed", "parts/*/*.parquet"),
    ("embedded", "plans/*.done"),
    ("train", "quantizers/*"),
    ("quantize", "codes/*/*.parquet"),
    ("assemble", f"releases/{TEMPORARY}*"),
    ("sealed", "releases/[0-9a-f]*"),
    ("published", "history/*.json"),
)
EMBED, EMBEDDED = 3, 4

Stage = tuple[int, int]  # place in STAGES, and how many of its files there are


@dataclass(frozen=True)
class Night:
    """What a trial begins with. base: a ROOT to copy, None for a first night; before: its release and its files."""

    images: Path
    family: str
    base: Path | None = None
    release: str | None = None
    files: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed; marks: each stage with the second at which it was first seen."""

    night: Night
    release: str
    seconds: float
    marks: list[tuple[Stage, float]]

    def embedding(self) -> tuple[float, float]:
        """The seconds between which images were embedded: the first part took as long as the others."""
        times = [at_s for (place, _), at_s in self.marks if place == EMBED]
        end = next(at_s for (place, _), at_s in self.marks if place >= EMBEDDED)
        return times[0] - (end - times[0]) / len(times), end


@dataclass(frozen=True)
class Trial:
    """One disturbed run. killed: group, child or nothing; outcome: identical, or what is wrong; asked: how often the
    reader was answered meanwhile."""

    killed: str
    family: str
    night: str
    at_s: float | None
    stage: str
    seconds: float
    outcome: str
    asked: int = 0


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


def make_nights(images: Path, families: Sequence[str], folder: Path) -> list[Night]:
    """For each family a first night over all images, and a second one after a first over most of them: a tenth went,
    a tenth came and a few have other bytes."""
    nights = []
    photos = sorted(path for path in images.rglob("*") if path.is_file())
    for family in families:
        nights.append(Night(images, family))
        own = folder / family / images.name
        for number, photo in enumerate(photos):
            if number % 10:
                target = own / photo.relative_to(images)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(photo, target)
        base = folder / family / "root"
        with started(Night(own, family), base) as run:
            release = run.finish()["release"]
        for number, photo in enumerate(photos):
            target = own / photo.relative_to(images)
            if number % 10 == 0:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(photo, target)
            elif number % 10 == 1:
                target.unlink()
            elif number % 20 == 2:
                shutil.copyfile(photos[number - 1], target)
        nights.append(Night(own, family, base, release, frozenset(map(str, relative(base, base.rglob("*"))))))
    return nights


def relative(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    return (path.relative_to(root) for path in paths)


def run_undisturbed(night: Night) -> Undisturbed:
    marks = [((0, 1), 0.0)]

    def ended() -> bool:
        if (stage := stage_of(root, night.files)) > marks[-1][0]:
            marks.append((stage, run.seconds))
        return run.process.poll() is not None

    with new_root(night) as root, started(night, root) as run:
        run.wait_until(ended)
        seconds = run.seconds
        result = run.finish()
        fault = find_fault(root, result, result["release"])
        if fault != IDENTICAL or result["outcome"] != "published":
            raise click.ClickException(f"the undisturbed run: {result['outcome']}, {fault}")
        return Undisturbed(night, result["release"], seconds, marks)


def kill_a_run(expected: Undisturbed, share: float) -> Trial:
    """kill -9 of the whole group after this share of the undisturbed run; then the same command again."""
    night = expected.night
    with new_root(night) as root, Reader(root, expected) as reader:
        with started(night, root) as run:
            run.wait_for_moment(expected, share * expected.seconds)
            run.kill_group()
        at_s, stage = run.seconds, show_stage(stage_of(root, night.files))
        with started(night, root) as again:
            outcome = outcome_of(again, expected)
        return trial_of("group", expected, at_s, stage, again, outcome, reader)


def kill_a_child(expected: Undisturbed, share: float) -> Trial:
    """kill -9 of the child alone after this share of the embedding; the very same run must go on to its end."""
    night = expected.night
    begin, end = expected.embedding()
    with new_root(night) as root, Reader(root, expected) as reader, started(night, root) as run:
        run.wait_for_moment(expected, begin + share * (end - begin))
        at_s, stage, child = run.seconds, show_stage(stage_of(root, night.files)), run.child()
        if child is None:
            return trial_of("child", expected, at_s, stage, run, "there was no child to kill", reader)
        os.kill(child, signal.SIGKILL)
        outcome = outcome_of(run, expected)
        return trial_of("child", expected, at_s, stage, run, outcome, reader)


def run_otherwise(expected: Undisturbed) -> Trial:
    """Another shard size and another number of workers."""
    night = expected.night
    with new_root(night) as root, Reader(root, expected) as reader, started(night, root, *OTHER) as run:
        outcome = outcome_of(run, expected)
        return trial_of("nothing", expected, None, " ".join(OTHER), run, outcome, reader)


def trial_of(
    killed: str, expected: Undisturbed, at_s: float | None, stage: str, run: Run, outcome: str, reader: Reader
) -> Trial:
    night = expected.night
    which = "first" if night.base is None else "second"
    return Trial(killed, night.family, which, at_s, stage, run.seconds, reader.fault or outcome, reader.asked)


def outcome_of(run: Run, expected: Undisturbed) -> str:
    try:
        return find_fault(run.root, run.finish(), expected.release)
    except click.ClickException as error:
        return error.message


def find_fault(root: Path, result: dict[str, Any], release: str) -> str:
    """What is wrong with a ROOT after a run that printed `result`; IDENTICAL if nothing is."""
    if result["release"] != release:
        return f"another release: {result['release'][:12]}"
    latest = (root / "LATEST").read_text().strip() if (root / "LATEST").exists() else "missing"
    if latest != release:
        return f"LATEST is {latest[:12]}"
    if left := sorted(str(path.relative_to(root)) for path in root.rglob(f"{TEMPORARY}*")):
        return f"temporary files are left: {', '.join(left)}"
    if damaged := verify(str(root))["damaged"]:
        return f"damaged: {', '.join(found['file'] for found in damaged)}"
    return IDENTICAL


def stage_of(root: Path, before: frozenset[str] = frozenset()) -> Stage:
    """How far a run has come, by what stands in its ROOT that did not before."""
    for place in range(len(STAGES) - 1, 0, -1):
        if found := sum(str(path) not in before for path in relative(root, root.glob(STAGES[place][1]))):
            return place, found
    return 0, 1


def show_stage(stage: Stage) -> str:
    place, found = stage
    return f"{STAGES[place][0]} {found}" if found > 1 else STAGES[place][0]


def spread(generator: random.Random, count: int) -> list[float]:
    """`count` random shares of the whole, one in each of as many equal pieces, so that no stage is left out."""
    return [(i + generator.random()) / count for i in range(count)]


def run_trials(
    images: Path,
    runs: int,
    child_runs: int,
    at_once: int,
    seed: int,
    families: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Trial]:
    generator = random.Random(seed)
    planned = [(kill_a_run, spread(generator, runs)), (kill_a_child, spread(generator, child_runs))]
    with tempfile.TemporaryDirectory(prefix="sif-batch-crash-", ignore_cleanup_errors=True) as folder:
        expected = []
        for night in make_nights(images, families, Path(folder)):
            expected.append(run_undisturbed(night))
            which = "first" if night.base is None else "second"
            said = f"{night.family}  {which} night  {expected[-1].seconds:.1f} s  release {expected[-1].release[:12]}"
            say(f"undisturbed  {said}")
        trials: list[Callable[[], Trial]] = [
            functools.partial(kill, expected[i % len(expected)], share)
            for kill, shares in planned
            for i, share in enumerate(shares)
        ]
        trials += [functools.partial(run_otherwise, one) for one in expected]
        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(lambda trial: trial(), trials)


def show_trials(console: Console, trials: Sequence[Trial]) -> None:
    table = Table(
        "killed", "family", "night", "after", "stage reached", "then took", "read", "release", box=box.SIMPLE_HEAD
    )
    for trial in trials:
        table.add_row(*cells_of(trial))
    console.print(table)


def cells_of(trial: Trial) -> list[str]:
    after = "" if trial.at_s is None else f"{trial.at_s:.2f} s"
    took = f"{trial.seconds:.1f} s"
    return [trial.killed, trial.family, trial.night, after, trial.stage, took, str(trial.asked), trial.outcome]


@click.command()
@click.option("--runs", type=click.IntRange(min=0), default=10, show_default=True, help="Runs killed as a whole.")
@click.option("--child-runs", type=click.IntRange(min=0), default=5, show_default=True, help="Runs whose child is.")
@click.option("--at-once", type=click.IntRange(min=1), default=1, show_default=True, help="Trials side by side.")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=PHOTOS,
    help="The folder to index. Default: examples/photos.",
)
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option(
    "--family",
    "families",
    type=click.Choice(FAMILIES),
    multiple=True,
    default=FAMILIES,
    show_default=True,
    help="Kinds of index, taken in turns.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def main(
    images: Path, runs: int, child_runs: int, at_once: int, seed: int, families: Sequence[str], as_json: bool
) -> None:
    """Kill runs at random moments and compare release ids. Exit 1 if one differs."""
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    trials = []
    for trial in run_trials(images, runs, child_runs, at_once, seed, families, progress.print):
        trials.append(trial)
        progress.print("  ".join(cells_of(trial)), markup=False)
    identical = sum(trial.outcome == IDENTICAL for trial in trials)
    if as_json:
        result = {"runs": len(trials), "identical": identical, "trials": [asdict(trial) for trial in trials]}
        click.echo(json.dumps(result))
    else:
        show_trials(Console(highlight=False), trials)
        click.echo(f"{identical} of {len(trials)} releases are identical")
    sys.exit(0 if identical == len(trials) else 1)


if __name__ == "__main__":
    main()

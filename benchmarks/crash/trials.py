"""Disturbed runs: killed as a whole, with a child killed, or cut otherwise; then the same command again."""

import functools
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.crash.cases import Trial, Undisturbed
from benchmarks.crash.faults import outcome_of
from benchmarks.crash.nights import make_nights, run_undisturbed
from benchmarks.crash.processes import Reader, Run, new_root, started
from benchmarks.crash.stages import show_stage, stage_of

OTHER = ("--shard-images", "75", "--workers", "1")


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

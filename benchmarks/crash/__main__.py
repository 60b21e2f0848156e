"""Kill runs at random moments: the same command again must give the release that an undisturbed run gives.

First nights and second ones, of which some images came, went and changed, in turns. Meanwhile a reader asks ROOT all
the time, and may see the old release or the new one, whole, and nothing else.

python -m benchmarks.crash [--runs 10] [--child-runs 5] [--at-once 1] [--images DIR] [--seed N] [--json]
(Linux: it reads /proc)
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.crash.cases import Trial
from benchmarks.crash.faults import IDENTICAL
from benchmarks.crash.processes import REPOSITORY
from benchmarks.crash.trials import run_trials

PHOTOS = REPOSITORY / "examples" / "photos"
FAMILIES = ("flat", "ivf-pq")


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

"""Evaluations and comparisons of releases as text."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from sif_batch.jobs.terminal.table import plain_table
from sif_batch.jobs.wording import FIGURES, STAGES, evaluation_notes, evaluation_split

MOST_SHOWN = 20  # images of a kind of difference
MOST_LISTED = 3  # entries that are compared one by one


def show_differences(console: Console, report: dict[str, Any]) -> None:
    say = functools.partial(console.print, soft_wrap=True)
    say(f"from {report['old']}\nto   {report['new']}")
    for name in ("added", "deleted", "moved", "changed", "relabelled"):
        found = report[name]
        say(f"{len(found):>9,} {name}")
        for one in found[:MOST_SHOWN]:
            say(f"          {one if isinstance(one, str) else ' -> '.join(one)}")
        if len(found) > MOST_SHOWN:
            say("          ...")
    for name, (old, new) in report["settings"].items():
        for line in _changes(name, old, new):
            say(line)
    neighbours = report["neighbours"]
    if neighbours["asked"]:
        kept = f"{neighbours['kept_at_10']:.1%} of the ten nearest stayed"
        say(f"{kept}, asked with {neighbours['asked']}; most changed: {_most_changed(neighbours)}")
    if report["mean_cosine"] is not None:
        say(f"{report['mean_cosine']:.4f} cosine of the mean vectors")


def _changes(name: str, old: Any, new: Any) -> Iterator[str]:
    """What differs between two values, one line for each number or text in them; of long lists that they differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old | new):
            yield from _changes(f"{name}.{key}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) <= MOST_LISTED:
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(f"{name}.{i}", *pair)
    elif old != new:
        long = [f"{len(value)} entries" if isinstance(value, list) else value for value in (old, new)]
        yield f"{name}: {long[0]} -> {long[1]}"


def _most_changed(neighbours: dict[str, Any]) -> str:
    changed = [f"{row['key']} ({row['kept']:.0%} kept)" for row in neighbours["changed_most"] if row["kept"] < 1]
    return ", ".join(changed) or "none"


def show_evaluation(console: Console, report: dict[str, Any]) -> None:
    exact, metrics = report["exact"], report["metrics"] or {}
    sides = {"release": report, **{f"exact, {name}": found for name, found in metrics.items()}}
    table = plain_table("", "release", "95 % interval", *list(sides)[1:], title=_evaluation_title(report))
    figures = [(f"{n}@{cut}", (n, cut)) for n in ("precision", "recall", "f1") for cut in report["precision"]]
    for label, (name, cut) in figures + [(label, (name, None)) for label, name in FIGURES]:
        values = [f"{side[name][cut] if cut else side[name]:.4f}" for side in sides.values()]
        low, high = report["intervals"][name][cut] if cut else report["intervals"][name]
        table.add_row(label, values[0], f"{low:.4f} to {high:.4f}", *values[1:])
    console.print(table)
    if report["losses"]:
        _show_losses(console, report["losses"])
    if report["per_label"]:
        worst = plain_table("worst labels", "images", "mAP", "most taken for")
        for row in report["per_label"][:5]:
            worst.add_row(row["label"], str(row["images"]), f"{row['map']:.4f}", row["most_taken_for"] or "")
        console.print(worst)
    for line in evaluation_notes(report):
        console.print(line, soft_wrap=True)
    if exact is None:
        console.print("a ROOT instead of a release shows exact search too, and what each stage loses", soft_wrap=True)


def _show_losses(console: Console, losses: Sequence[dict[str, Any]]) -> None:
    table = plain_table("stage", "mAP", "lost", "95 % interval", "kept of exact ten")
    for row in losses:
        low, high = row["interval"]
        figures = (f"{row['map']:.4f}", f"{row['lost']:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{row['kept_at_10']:.4f}")
        table.add_row(STAGES[row["stage"]], *figures)
    console.print(table)


def _evaluation_title(report: dict[str, Any]) -> str:
    same = "same " if report["per_label"] else ""
    return f"{report['n_queries']:,} queries, relevant: {same}{report['labels']}, {evaluation_split(report)}"

"""A run and a dry run as text."""

import functools
from typing import Any

from rich.console import Console

from sif_batch.jobs.terminal.table import plain_table
from sif_batch.jobs.wording import describe_drift, format_seconds


def show_run(console: Console, result: dict[str, Any]) -> None:
    """The ledger of a run, the gate's verdict, where the release is and how to ask it."""
    table = plain_table("ledger", "images")
    rows = [
        ("listed", result["listed"], ""),
        ("  unchanged", result["unchanged"], ""),
        ("  embedded", result["embedded"], ""),
        ("  reused, their bytes being known", result["reused"], "reused"),
        ("  failed now", result["failed"], ""),
        ("  failed before", result["failed_before"], ""),
        ("ignored by name", result["ignored"], "ignored"),
        ("stale, still served", result["stale"], "stale"),
        ("superseded in their container", result["superseded"], "superseded"),
        ("deleted", result.get("deleted", 0), "deleted"),
        ("in the index", result["in_index"], ""),
    ]
    for label, number, only_if in rows:
        if number or not only_if:
            table.add_row(label, f"{number:,}")
    console.print(table)
    say = functools.partial(console.print, soft_wrap=True)  # a path must stay one to copy
    for kind, number in result["failed_by_kind"].items():
        say(f"  {number:,} failed: {kind}")
    if result["failed_by_kind"]:
        say(f"  each with its reason: sif-batch status {result['root']} --failures")
    stages = ", ".join(f"{name} {format_seconds(value)}" for name, value in result["seconds"].items())
    if "index" not in result:
        say(f"time      {stages}" + (f"; {result['bottleneck']}" if result["bottleneck"] else ""))
        say(f"outcome   {result['outcome']}; sif-batch index {result['root']} makes a release of them")
        return
    gate, index = result["gate"], result["index"]
    recall = "not measured: no held-out image" if gate["recall_at_10"] is None else f"{gate['recall_at_10']:.3f}"
    say(f"recall@10 {recall} on {gate['queries']} held-out queries")
    say(f"index     {index['shape']}")
    if training := result["training"]:
        cost = sum(training["seconds"].values())
        say(f"trained   {training['why']}; it took {format_seconds(cost)}")
    if told := describe_drift(result["drift"]):
        say(f"drift     {told}")
    say(f"time      {stages}" + (f"; {result['bottleneck']}" if result["bottleneck"] else ""))
    say(f"outcome   {result['outcome']}")
    for reason in gate["reasons"]:
        say(f"          {'refused' if gate['enabled'] else 'passed over'}: {reason}")
    root, where = result["root"], f"{result['root']}/releases/{result['release']}"
    if result["outcome"] == "refused":
        say(f"candidate {where}")
        say(f"          kept, not published; sif-batch publish {root} {result['release'][:12]} does so all the same")
    elif result["outcome"] == "held":
        say(f"candidate {where}")
        say(f"          kept, not published: after a rollback; sif-batch publish {root} ends that")
    else:
        say(f"release   {where}")
        say(f"ask it    sif-batch search {root} IMAGE")


def show_forecast(console: Console, found: dict[str, Any]) -> None:
    """What a dry run foretells."""
    todo, sample, forecast = found["to_do"], found["sample"], found["forecast"]
    say = functools.partial(console.print, soft_wrap=True)
    about = "" if todo["counted"] else "about "
    known = f"{found['standing']:,} images known, {found['ignored']:,} ignored by name"
    say(f"listed    {found['listed']:,} entries, {known}")
    say(f"to do     {todo['entries']:,} entries, {about}{todo['images']:,} images, {_size(todo['bytes'])}")
    say(f"index     {found['index']['rows']:,} images; {found['index']['shape']}")
    if sample:
        say(f"sample    {sample['images']} images, {sample['images_per_s']} images/s on {sample['threads']} threads")
    for name, shown in (("seconds", format_seconds), ("disk", _size), ("memory", _size)):
        parts = dict(forecast[name])
        total = parts.pop("total")
        label = {"seconds": "time", "disk": "disk", "memory": "memory"}[name]
        split = ", ".join(f"{part} {shown(value)}" for part, value in parts.items() if value)
        say(f"{label:<9} {shown(total)}: {split}" if split else f"{label:<9} {shown(total)}")
    for problem in found["problems"]:
        say(f"problem   {problem['problem']}; {problem['remedy']}")
    say("outcome   nothing was written" + ("; it would not fit" if found["problems"] else ""))


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

"""The state of a ROOT as text: status, failures, one image, releases, sources, damage, what could go."""

import functools
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from sif_batch.jobs.terminal.table import plain_table
from sif_batch.jobs.wording import format_seconds
from sif_batch.sources.fields import tag_of


def show_status(console: Console, status: dict[str, Any]) -> None:
    table = plain_table("ROOT", status["root"])
    for source in status["sources"]:
        table.add_row("source", f"{source['name']} = {source['url']}")
    table.add_row("encoder", status["encoder"])
    for name in ("listed", "good", "failed", "to_do"):
        table.add_row(name.replace("_", " "), f"{status[name]:,}")
    for kind, number in status["failed_by_kind"].items():
        table.add_row(f"  {kind}", f"{number:,}")
    table.add_row("unfinished plans", str(status["open_plans"]))
    release = status["release"]
    table.add_row("release", f"{release['n']}: {release['release']}, {release['time']}" if release else "none yet")
    last = status["last_run"]
    table.add_row("last run", _last_run(last) if last else "none yet")
    console.print(table)


def _last_run(last: dict[str, Any]) -> str:
    """What became of the newest run, how long ago, and why it ended early."""
    why = "; ".join(filter(None, (last["error"], last["remedy"])))
    return f"{last['id']}, {format_seconds(last['age_s'])} ago: {last['outcome']}" + (f": {why}" if why else "")


def show_failures(console: Console, failures: Sequence[dict[str, Any]]) -> None:
    table = plain_table("key", "kind", "attempt", "reason")
    for failure in failures:
        table.add_row(failure["key"], failure["kind"], str(failure["attempt"]), failure["error"])
    console.print(table)


def show_explanation(console: Console, report: dict[str, Any]) -> None:
    say = functools.partial(console.print, soft_wrap=True)
    say(report["key"])
    say(f"  state      {report['state']}")
    for name in ("uri", "size", "version"):
        if report[name] is not None:
            say(f"  {name:<10} {report[name]}")
    for row in report["rows"]:
        outcome = "embedded" if row["kind"] is None else f"{row['kind']}: {row['error']}"
        standing = " (stands)" if row["stands"] else ""
        size = f", {row['width']} x {row['height']}" if row["width"] else ""
        say(f"  attempt {row['attempt']}  {outcome}{size}{standing}, version {row['version']}, part {row['part']}")
    if report["meaning"]:
        say(f"  meaning    {report['meaning']}")
        say(f"  remedy     {report['remedy']}")
    for name, value in (report["fields"] or {}).items():
        tag = tag_of(value)
        say(f"  field      {name} = {value[tag] if tag else value}")
    say(f"  release    {report['release'] or 'not in the current one'}")


def show_releases(console: Console, releases: Sequence[dict[str, Any]]) -> None:
    table = plain_table("n", "release", "time", "by", "action", "rows", "recall@10", "MB", "")
    for release in releases:
        recall = "" if release["recall_at_10"] is None else f"{release['recall_at_10']:.3f}"
        size = f"{release['bytes'] / 1e6:.1f}"
        current = "current" if release["current"] else "gone" if release["gone"] else ""
        current += ", publishing is held" if release["current"] and release["held"] else ""
        current += f"{', ' if current else ''}{release['note']}" if release["note"] else ""
        who = (release["n"], release["id"], release["time"], release["by"], release["action"])
        row = (*who, f"{release['rows']:,}", recall, size, current)
        table.add_row(*map(str, row))
    console.print(table)


def show_encoders(console: Console, encoders: Sequence[dict[str, Any]]) -> None:
    table = plain_table("encoder", "dimension", "input", "weights", "licence", "here")
    for row in encoders:
        size = row["input_size"] and f"{row['input_size']} px"
        here = f"yes: {row['where']}" if row["available"] else f"no: {row['where']}"
        table.add_row(
            *(str(v or "") for v in (row["name"], row["dimension"], size, row["source"], row["licence"], here))
        )
    console.print(table)
    console.print("and timm:NAME, your own FILE.onnx, or --weights for any of torchvision's", markup=False)


def show_damage(console: Console, report: dict[str, Any]) -> None:
    if report["ok"]:
        console.print(f"no damage in {report['files']:,} files")
        return
    table = plain_table("damaged file", "reason")
    for damage in report["damaged"]:
        table.add_row(damage["file"], damage["reason"])
    console.print(table)


def show_sources(console: Console, sources: Sequence[dict[str, Any]]) -> None:
    table = plain_table("source", "place", "options")
    for source in sources:
        options = {name: value for name, value in source.items() if name not in ("name", "url") and value}
        table.add_row(source["name"], source["url"], ", ".join(f"{name} {value}" for name, value in options.items()))
    console.print(table)


def show_garbage(console: Console, report: dict[str, Any]) -> None:
    table = plain_table("no longer needed", "bytes")
    for one in report["garbage"]:
        table.add_row(one["file"], f"{one['bytes']:,}")
    console.print(table)
    done = "removed" if report["deleted"] else "could be removed, with --delete"
    console.print(f"{len(report['garbage'])} files and folders, {report['bytes']:,} bytes, {done}")


def show_compaction(console: Console, report: dict[str, Any]) -> None:
    done = "copied; sif-batch gc removes the old ones" if report["compacted"] else "could be copied, with --yes"
    rows = f"{report['rows']:,} rows, without {report['dead']:,} dead ones"
    console.print(f"{report['merged']} parts into {report['into']}, {rows}: {done}")


def show_erasure(console: Console, report: dict[str, Any]) -> None:
    table = plain_table("key", "sha256")
    for image in report["images"]:
        table.add_row(image["key"], image["sha256"] or "")
    console.print(table)
    held = f"in {report['parts']} parts, {len(report['releases'])} releases, {len(report['quantizers'])} quantizers"
    done = "erased" if report["erased"] else "would be erased, with --yes; nothing was changed"
    console.print(f"{len(report['images'])} images {held}: {done}")
    for name in report["trained_on"]:
        console.print(f"{name} was trained on some of them among others: sif-batch run --retrain now makes another")
    for old, new in report.get("replaced", {}).items():
        console.print(f"replaced  {old[:12]} by {new[:12]}" if new else f"removed   {old[:12]}")

"""What a run did, as plain text fit for a mail: its first line is the subject."""

import io
from typing import Any

from rich.console import Console

from sif_batch.jobs.terminal.nightly import show_run

WIDTH = 100


def summarise(result: dict[str, Any]) -> str:
    """The summary of what a run printed with `--json`, whatever its outcome."""
    lines = [subject_of(result), ""]
    if result["outcome"] == "error":
        lines += [f"error     {result.get('error', 'a defect')}", f"remedy    {result.get('remedy', 'see the log')}"]
    else:
        page = io.StringIO()
        show_run(Console(file=page, width=WIDTH, highlight=False, markup=False, emoji=False), result)
        lines += [line.rstrip() for line in page.getvalue().splitlines()]
    return "\n".join([*lines, f"log       {result['root']}/runs/{result['run']}/events.jsonl", ""])


def subject_of(result: dict[str, Any]) -> str:
    """One line: what became of it."""
    start = f"sif-batch {result['root']}: {result['outcome']}"
    if "in_index" not in result or result["outcome"] == "error":
        return start
    new = result["embedded"] + result["reused"]
    failed = result["failed"] + result["failed_before"]
    changed = f"{new:,} new, {result.get('deleted', 0):,} deleted, {failed:,} failed"
    return f"{start}, {result['in_index']:,} images, {changed}"

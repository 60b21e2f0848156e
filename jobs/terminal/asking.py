"""Answers as text: hits, the facts of a search in bulk, what a usage log says."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from sif_batch.jobs.terminal.table import plain_table
from sif_batch.query.hits import Hit


def show_hits(console: Console, query: str, hits: Sequence[Hit]) -> None:
    table = plain_table("", "similarity", "key", "uri", title=query)
    for rank, hit in enumerate(hits, 1):
        table.add_row(str(rank), f"{hit.similarity:.4f}", hit.key, hit.uri)
    console.print(table)


def show_facts(console: Console, facts: dict[str, Any]) -> None:
    """Figures and places, a line each."""
    for name, value in facts.items():
        if value is not None:
            text = f"{value:,}" if isinstance(value, int) else str(value)
            console.print(f"{name.replace('_', ' '):<16} {text}")


def show_usage(console: Console, found: dict[str, Any]) -> None:
    lists = ("days", "most_asked", "most_clicked")
    plain = {name: value for name, value in found.items() if name not in lists}
    plain |= {"by": ", ".join(f"{kind} {n}" for kind, n in found["by"].items()) or None}
    plain |= {"seconds": found["seconds"] and "median {median}, 95 % below {p95}".format(**found["seconds"])}
    show_facts(console, plain)
    for name in lists:
        if found[name]:
            table = plain_table(*found[name][0], title=name.replace("_", " "))
            for row in found[name]:
                table.add_row(*map(str, row.values()))
            console.print(table)

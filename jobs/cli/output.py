"""stdout, JSON, errors and exit codes."""

import json
import sys
from typing import Any

import click
from rich.console import Console

from sif_batch.storage.store import FULL

EXIT = {"published": 0, "unchanged": 0, "held": 0, "embedded": 0, "error": 1, "refused": 3}
EXIT_DAMAGED = 5


def stdout() -> Console:
    """The terminal, or a file or pipe at a width that cuts no key."""
    width = None if sys.stdout.isatty() else 200
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    click.echo(text.encode(errors="backslashreplace").decode())  # a name that is not UTF-8, as JSON may have it


def fail(error: BaseException, as_json: bool) -> int:
    """One clear line on stderr, with --json one object on stdout too. Returns the exit code."""
    remedy = getattr(error, "remedy", "")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror or error}"
        todo = "make room there (sif-batch gc)" if error.errno in FULL else "see to that place"
        remedy = f"{todo}; the same command goes on where this one stopped"
    else:
        message = str(error)
    message = " ".join(message.split())
    click.echo(f"sif-batch: {message}" + (f"; {remedy}" if remedy else ""), err=True)
    if as_json:
        print_json({"outcome": "error", "error": message, "remedy": remedy})
    return getattr(error, "exit_code", 1)

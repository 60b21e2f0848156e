"""stdout, JSON, errors and exit codes."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console

from sif_batch.errors import SifBatchError
from sif_batch.storage.store import FULL

EXIT = {"published": 0, "unchanged": 0, "held": 0, "embedded": 0, "error": 1, "refused": 3}
EXIT_DAMAGED = 5


def stdout() -> Console:
    """The terminal, or a file or pipe at a width that cuts no key."""
    width = None if sys.stdout.isatty() else 200
    return Console(file=_Stdout(), highlight=False, markup=False, emoji=False, width=width)  # type: ignore[arg-type]


class _Stdout:
    """sys.stdout for rich, with `telling_stdout`."""

    def write(self, text: str) -> int:
        with telling_stdout():
            return sys.stdout.write(text)

    def flush(self) -> None:
        with telling_stdout():
            sys.stdout.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    with telling_stdout():  # a name that is not UTF-8 is written as JSON may have it
        click.echo(text.encode(errors="backslashreplace").decode())


@contextlib.contextmanager
def telling_stdout() -> Iterator[None]:
    """Raise SifBatchError where stdout cannot be written; the end of a pipe is its reader's business."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again as it ends
        raise SifBatchError(
            f"stdout cannot be written ({error.strerror or error})",
            remedy="see to where the output goes; what the command did stands",
        ) from error


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

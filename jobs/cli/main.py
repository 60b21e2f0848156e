"""The entry points: signals, exit codes, and what a command raises made one line."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import click
from pydantic import ValidationError

from sif_batch.errors import SifBatchError
from sif_batch.jobs.cli import asking, nightly, page, reports, upkeep
from sif_batch.jobs.cli.group import cli
from sif_batch.jobs.cli.output import fail, print_json, telling_stdout
from sif_batch.jobs.run_record import note_end
from sif_batch.machine.child import close_shared_children
from sif_batch.pipelines.engines import stop_serving
from sif_batch.pipelines.logs import silence
from sif_batch.storage.lease import release_all

__all__ = ["cli", "main", "worker_main"]

COMMANDS = (nightly, asking, page, reports, upkeep)  # as they are imported, their commands join the group
GIVE_BACK_S = 5.0


def interrupted(number: int, frame: object) -> None:
    """Stop at once: all that stands is whole, and what was in work is not there. ROOT is given back."""
    if "sif_batch.pipelines.runner" in sys.modules:
        from sif_batch.pipelines.runner import cancel

        cancel()
    slow = threading.Timer(GIVE_BACK_S, os._exit, [128 + number])  # the store does not answer: the lease ends by itself
    slow.daemon = True
    slow.start()
    close_shared_children()
    note_end("interrupted", signal=signal.Signals(number).name)
    release_all()
    click.echo("sif-batch: interrupted; the same command goes on where this one stopped", err=True)
    os._exit(128 + number)


def guarded(command: Callable[[], Any], as_json: bool) -> int:
    """Run a command and turn what it raises into a line and an exit code."""
    try:
        code = command() or 0
        with telling_stdout():
            sys.stdout.flush()  # what is held back still, so that the exit code knows of it
        return code
    except BrokenPipeError:  # whoever reads has enough, as head(1) has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.ClickException as error:
        error.show()
        if as_json:
            print_json({"outcome": "error", "error": error.format_message(), "remedy": "sif-batch --help"})
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except ValidationError as error:
        return fail(
            SifBatchError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())), as_json
        )
    except (SifBatchError, OSError) as error:
        return fail(error, as_json)
    except Exception as error:
        traceback.print_exc()
        return fail(RuntimeError(f"a defect of sif-batch: {type(error).__name__}: {error}"), as_json)
    finally:
        close_shared_children()
        stop_serving()


def open_standard_streams() -> None:
    """Read nothing from a stdin that is closed (`<&-`), and write to nowhere where stdout or stderr is."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as the process)


def main() -> None:
    open_standard_streams()
    silence()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    sys.exit(guarded(lambda: cli(standalone_mode=False), "--json" in sys.argv[1:]))


def worker_main() -> None:
    """`sif-batch-worker`: `sif-batch worker`, for engines that take a command without arguments of its own."""
    sys.argv[1:1] = ["worker"]
    main()

"""What test_child.py has its child do; apart from it, so that the child need not import pytest."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from sif_batch.errors import BusyError

Report = Callable[[Any], None]


def double(report: Report, number: int) -> int:
    report("half way")
    return 2 * number


def refuse(report: Report) -> None:
    raise BusyError("no such thing", remedy="give another")


def find_no_file(report: Report, path: str) -> None:
    with open(path):
        pass


def divide_by_zero(report: Report) -> float:
    return 1 / 0


def exit_with(report: Report, code: int) -> None:
    print("something was wrong", file=sys.stderr)
    sys.exit(code)


def send_signal(report: Report, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def hang(report: Report) -> None:
    report(os.getpid())
    time.sleep(60)


def count(report: Report, reports: int, every_s: float) -> str:
    for i in range(reports):
        time.sleep(every_s)
        report(i)
    return "counted"


def die_until(report: Report, path: str, deaths: int) -> int:
    with open(path, "a+") as file:
        file.write("x")
        file.seek(0)
        calls = len(file.read())
    if calls <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls


def hoard(report: Report, size: int) -> None:
    """Take that much memory, and keep it until this process is ended."""
    held = bytearray(size)
    for at in range(0, size, 4096):
        held[at] = 1
    while True:
        report("hoarding")
        time.sleep(0.2)

"""Makes the n-th write below a folder fail, in this process and in those that it starts.

SIF_FAULTS names a folder: writes below `root` in it are counted by the bytes of its file `count`, as long as its file
`plan` stands; that holds the number of the one that fails and its errno. What Python's audit events do not show is not
seen: bytes that are written to a file that is open already, and fsync.
"""

import os
import sys
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
CHANGED = {"open": 0, "os.link": 1, "os.rename": 1, "os.mkdir": 0}  # which argument is the file that is written


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Count a write, and raise OSError if it is the one."""
    if event not in CHANGED or (event == "open" and not arguments[2] & WRITING):
        return
    folder, path = os.environ.get("SIF_FAULTS"), arguments[CHANGED[event]]
    if folder is None or isinstance(path, int) or not os.fsdecode(path).startswith(f"{folder}/root"):
        return
    try:
        wanted, number = map(int, Path(folder, "plan").read_text().split())
    except FileNotFoundError:
        return
    descriptor = os.open(f"{folder}/count", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, b".")
        count = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if count == wanted:
        raise OSError(number, os.strerror(number), os.fsdecode(path))


def install() -> None:
    """Watch this process from now on."""
    sys.addaudithook(watch)

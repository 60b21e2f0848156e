"""Temporary files: their names say whose they are, so that what a killed process left is told from work."""

import contextlib
import os
import socket
import time
import uuid
from pathlib import Path

TEMPORARY = ".tmp-"
SWEEP_AFTER_S = 24 * 3600
HOST = "".join(c for c in socket.gethostname() if c.isalnum())[:32] or "host"


def temporary_name() -> str:
    """A name that says whose it is, so that a later run can tell whether its maker still lives."""
    return f"{TEMPORARY}{HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def is_abandoned(path: Path, after_s: float) -> bool:
    host, pid, *_ = *path.name.removeprefix(TEMPORARY).split("-"), ""
    if host == HOST and pid.isdecimal() and not _is_running(pid):
        return True
    if host == HOST and pid == str(os.getpid()):
        after_s = SWEEP_AFTER_S
    with contextlib.suppress(FileNotFoundError):  # of another machine, or its number went to another process
        return time.time() - path.lstat().st_mtime > after_s
    return False


def _is_running(pid: str) -> bool:
    """Whether this process runs. One that has ended, but was not yet waited for (a zombie), does not."""
    try:
        return Path("/proc", pid, "stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:  # gone, or a system without /proc
        pass
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sync_folder(path: str) -> None:
    """fsync a folder (so that a name in it outlives a power cut) or a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

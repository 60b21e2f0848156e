"""Memory: what processes take, and what there is. On Linux; elsewhere nothing is known, and nothing is limited."""

import contextlib
import os
import re
from pathlib import Path

from sif_batch.errors import SifBatchError

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
SIZE = re.compile(r"^(\d+(?:\.\d+)?) ?([kmgt]?)i?b?$", re.IGNORECASE)
CGROUP = Path("/sys/fs/cgroup")


def parse_size(text: str) -> int:
    """4G, 800MB or a number of bytes, in powers of 1,024. Raises SifBatchError."""
    match = SIZE.match(text.strip())
    if match is None or float(match[1]) <= 0:
        raise SifBatchError(f"{text!r} is no size", remedy="write 4G, 800M or a number of bytes")
    return int(float(match[1]) * UNITS[match[2].lower()])


def peak_bytes(pid: int | None = None) -> int:
    """The most that a process had in memory so far; of this one by default. 0 where it cannot be told.

    Not by getrusage, which begins with what the parent had.
    """
    return _status(pid, "VmHWM")


def resident_bytes(pid: int | None = None) -> int:
    """What a process has in memory now; 0 where it cannot be told."""
    return _status(pid, "VmRSS")


def _status(pid: int | None, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid or os.getpid()}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0


def available_bytes() -> int | None:
    """What may be taken without swapping, of the machine's memory and of this group's limit; None: not known."""
    found = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int((CGROUP / "memory.max").read_text(encoding="ascii"))
        taken = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        found.append(max(0, limit - taken + int(stat["file"])))  # cached files make room
    return min(found, default=None)

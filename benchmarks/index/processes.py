"""The command line and tasks of this benchmark, each in a process of its own, timed and weighed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
K = 10
ROUNDS = 5  # of the same queries, one point after the other: a shared machine slows down for seconds


def sif_batch(*arguments: object) -> dict[str, Any]:
    """Run the command line with --json; `rss_mb`: the peak of a run's process and of each of its workers, added up."""
    started, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "sif_batch.jobs.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise SystemExit(
            f"sif-batch {' '.join(map(str, arguments))} failed:\n{done.stdout[-600:]}{done.stderr[-1500:]}"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    memory = found.get("memory", {"main": 0, "workers": []})
    rss_mb = (memory["main"] + sum(memory["workers"])) / 2**20
    return found | {"wall_s": time.perf_counter() - started, "cpu_s": cpu_s, "rss_mb": rss_mb}


def apart(task: str, *arguments: object) -> dict[str, Any]:
    """A task of this module in a process of its own, for its memory."""
    command = [sys.executable, "-m", "benchmarks.index", "--task", task, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def anonymous_mb() -> float:
    """What this process has in memory beside the files that it maps."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024

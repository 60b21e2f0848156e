"""The command line, called as a user does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import REPOSITORY

from sif_batch.jobs.progress import Reporter


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


def run_command(folder: Path, *arguments: object, timeout_s: float = 900) -> Finished:
    """Run `sif-batch` in `folder` as a user does: another process, exit code, stdout, stderr."""
    command = [sys.executable, "-m", "sif_batch.jobs.cli", *map(str, arguments)]
    env = {"SIF_BATCH_REPORT": "0"} | os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env, cwd=folder)
    return Finished(done.returncode, done.stdout, done.stderr)


class Quiet(Reporter):
    """Says nothing."""

    def say(self, text: str) -> None: ...

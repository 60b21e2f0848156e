"""`sif-batch serve` as a user starts it, ended as by Ctrl+C."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from paths import REPOSITORY


@contextlib.contextmanager
def served(root: Path, folder: Path, *options: str) -> Iterator[str]:
    """The page's address. folder: where the server stands, and keeps its thumbnails."""
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "serve", str(root), "--port", "0", "--json", *options]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "SIF_BATCH_CACHE": str(folder / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=env, cwd=folder)  # type: ignore[call-overload]
    try:
        assert process.stdout
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=900)
    assert process.returncode == 130 and not out and err.splitlines()[-1].startswith("sif-batch: interrupted"), err

"""What is wrong with a ROOT after a run."""

from pathlib import Path
from typing import Any

import click

from benchmarks.crash.cases import Undisturbed
from benchmarks.crash.processes import Run
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.storage.temporary_files import TEMPORARY

IDENTICAL = "identical"


def outcome_of(run: Run, expected: Undisturbed) -> str:
    try:
        return find_fault(run.root, run.finish(), expected.release)
    except click.ClickException as error:
        return error.message


def find_fault(root: Path, result: dict[str, Any], release: str) -> str:
    """What is wrong with a ROOT after a run that printed `result`; IDENTICAL if nothing is."""
    if result["release"] != release:
        return f"another release: {result['release'][:12]}"
    latest = (root / "LATEST").read_text().strip() if (root / "LATEST").exists() else "missing"
    if latest != release:
        return f"LATEST is {latest[:12]}"
    if left := sorted(str(path.relative_to(root)) for path in root.rglob(f"{TEMPORARY}*")):
        return f"temporary files are left: {', '.join(left)}"
    if damaged := verify(str(root))["damaged"]:
        return f"damaged: {', '.join(found['file'] for found in damaged)}"
    return IDENTICAL

"""How far a run has come, by what stands in its ROOT."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from sif_batch.storage.temporary_files import TEMPORARY

# What appears in ROOT, in this order.
STAGES = (
    ("start", "."),
    ("list", "root.json"),
    ("plan", "plans/*.parquet"),
    ("embed", "parts/*/*.parquet"),
    ("embedded", "plans/*.done"),
    ("train", "quantizers/*"),
    ("quantize", "codes/*/*.parquet"),
    ("assemble", f"releases/{TEMPORARY}*"),
    ("sealed", "releases/[0-9a-f]*"),
    ("published", "history/*.json"),
)
EMBED, EMBEDDED = 3, 4

Stage = tuple[int, int]  # place in STAGES, and how many of its files there are


def relative(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    return (path.relative_to(root) for path in paths)


def stage_of(root: Path, before: frozenset[str] = frozenset()) -> Stage:
    """How far a run has come, by what stands in its ROOT that did not before."""
    for place in range(len(STAGES) - 1, 0, -1):
        if found := sum(str(path) not in before for path in relative(root, root.glob(STAGES[place][1]))):
            return place, found
    return 0, 1


def show_stage(stage: Stage) -> str:
    place, found = stage
    return f"{STAGES[place][0]} {found}" if found > 1 else STAGES[place][0]

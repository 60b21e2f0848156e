"""What a trial begins with, what an undisturbed run gives, and what a disturbed one gave."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.crash.stages import EMBED, EMBEDDED, Stage


@dataclass(frozen=True)
class Night:
    """What a trial begins with. base: a ROOT to copy, None for a first night; before: its release and its files."""

    images: Path
    family: str
    base: Path | None = None
    release: str | None = None
    files: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed; marks: each stage with the second at which it was first seen."""

    night: Night
    release: str
    seconds: float
    marks: list[tuple[Stage, float]]

    def embedding(self) -> tuple[float, float]:
        """The seconds between which images were embedded: the first part took as long as the others."""
        times = [at_s for (place, _), at_s in self.marks if place == EMBED]
        end = next(at_s for (place, _), at_s in self.marks if place >= EMBEDDED)
        return times[0] - (end - times[0]) / len(times), end


@dataclass(frozen=True)
class Trial:
    """One disturbed run. killed: group, child or nothing; outcome: identical, or what is wrong; asked: how often the
    reader was answered meanwhile."""

    killed: str
    family: str
    night: str
    at_s: float | None
    stage: str
    seconds: float
    outcome: str
    asked: int = 0

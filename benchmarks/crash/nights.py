"""First and second nights over some images, and their undisturbed runs."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.crash.cases import Night, Undisturbed
from benchmarks.crash.faults import IDENTICAL, find_fault
from benchmarks.crash.processes import new_root, started
from benchmarks.crash.stages import relative, stage_of


def make_nights(images: Path, families: Sequence[str], folder: Path) -> list[Night]:
    """For each family a first night over all images, and a second one after a first over most of them: a tenth went,
    a tenth came and a few have other bytes."""
    nights = []
    photos = sorted(path for path in images.rglob("*") if path.is_file())
    for family in families:
        nights.append(Night(images, family))
        own = folder / family / images.name
        for number, photo in enumerate(photos):
            if number % 10:
                target = own / photo.relative_to(images)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(photo, target)
        base = folder / family / "root"
        with started(Night(own, family), base) as run:
            release = run.finish()["release"]
        for number, photo in enumerate(photos):
            target = own / photo.relative_to(images)
            if number % 10 == 0:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(photo, target)
            elif number % 10 == 1:
                target.unlink()
            elif number % 20 == 2:
                shutil.copyfile(photos[number - 1], target)
        nights.append(Night(own, family, base, release, frozenset(map(str, relative(base, base.rglob("*"))))))
    return nights


def run_undisturbed(night: Night) -> Undisturbed:
    marks = [((0, 1), 0.0)]

    def ended() -> bool:
        if (stage := stage_of(root, night.files)) > marks[-1][0]:
            marks.append((stage, run.seconds))
        return run.process.poll() is not None

    with new_root(night) as root, started(night, root) as run:
        run.wait_until(ended)
        seconds = run.seconds
        result = run.finish()
        fault = find_fault(root, result, result["release"])
        if fault != IDENTICAL or result["outcome"] != "published":
            raise click.ClickException(f"the undisturbed run: {result['outcome']}, {fault}")
        return Undisturbed(night, result["release"], seconds, marks)

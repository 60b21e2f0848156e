"""Thumbnails: made once of the originals that a release names, and kept in this user's cache, never in a release.

A thumbnail lies under the sha256 of its original, so it is good for every release, and for the copies of an image too.
"""

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.images.thumbnails import thumbnail
from sif_batch.machine.devices import usable_cores
from sif_batch.release.local_copies import cache_home
from sif_batch.sources.originals import read_uri
from sif_batch.storage.temporary_files import temporary_name

SIDES = (320, 800)  # pixels of the longer side: in the grid, of the image asked with
MOST_BYTES = 500_000_000  # of all thumbnails
SWEPT_TO = 0.8  # of that, when there are more
GONE = {"missing": "The original is missing", "forbidden": "The original may not be read"}


@dataclass(frozen=True)
class Picture:
    """An encoded picture. lasting: it will be the same tomorrow."""

    data: bytes
    mime: str
    lasting: bool


class Thumbnails:
    """Thumbnails in a folder that holds `most_bytes` at most. For any number of threads and processes."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES):
        self._folder, self._most_bytes = folder, most_bytes
        self._turns = threading.BoundedSemaphore(max(1, usable_cores() - 1))  # answers come before pictures
        self._sweeping = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / temporary_name()
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SifBatchError(
                f"{folder}: thumbnails cannot be kept there ({error.strerror or error})",
                remedy="give another folder by SIF_BATCH_CACHE",
            ) from error
        self._new_bytes = most_bytes  # so that the first one sweeps

    def get(self, uri: str, sha256: bytes, side: int) -> Picture:
        """The thumbnail of a release's image; a picture that says why where its original cannot be had."""
        path = self._folder / str(side) / sha256.hex()[:2] / f"{sha256.hex()}.webp"
        with contextlib.suppress(FileNotFoundError):
            data = path.read_bytes()
            os.utime(path)
            return Picture(data, "image/webp", True)
        try:
            original = read_uri(uri)
            with self._turns:
                small = thumbnail(original, side)
                same = hashlib.sha256(original).digest() == sha256
                data = webp_bytes(small if same else noted(small, "changed since"))
        except (ImageError, OSError) as error:
            why = GONE.get(getattr(error, "kind", ""), "The original cannot be read")
            return Picture(sign(why), "image/svg+xml", False)
        if same:
            self._keep(path, data)
        return Picture(data, "image/webp", same)

    def _keep(self, path: Path, data: bytes) -> None:
        """Where it cannot be kept, it is made again next time."""
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(temporary_name())
            partial.write_bytes(data)
            os.replace(partial, path)
            self._new_bytes += len(data)
        if self._new_bytes > (1 - SWEPT_TO) * self._most_bytes and self._sweeping.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._sweeping.release()

    def _sweep(self) -> None:
        """Remove those that were longest not asked for, if there are too many."""
        self._new_bytes = 0
        files = sorted(_files(self._folder))
        total = sum(size for _, size, _ in files)
        if total <= self._most_bytes:
            return
        for _, size, path in files:
            if total <= SWEPT_TO * self._most_bytes:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    """When each file below was last asked for, its bytes, its path."""
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.stat(os.path.join(where, name))
                yield found.st_mtime, found.st_size, os.path.join(where, name)


def thumbnails_home() -> Path:
    """Where thumbnails lie."""
    return cache_home() / "thumbnails"


def webp_bytes(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=80, method=2)
    return sink.getvalue()


def noted(image: Image.Image, text: str) -> Image.Image:
    """The image with a line of text over its lower edge."""
    shown = image.copy()
    draw = ImageDraw.Draw(shown)
    height = max(14, shown.height // 9)
    draw.rectangle((0, shown.height - height, shown.width, shown.height), fill="#9a5b00")
    draw.text(
        (6, shown.height - height / 2), text, fill="#ffffff", font=ImageFont.load_default(height * 0.7), anchor="lm"
    )
    return shown


def sign(text: str) -> bytes:
    """A picture of some words, as SVG."""
    cross = '<path d="M132 100h56v44h-56zM126 94l68 56" fill="none" stroke="#9aa3b0" stroke-width="4"/>'
    style = 'text-anchor="middle" font-family="sans-serif" font-size="20" fill="#5b6472"'
    words = f'<text x="160" y="196" {style}>{text}</text>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 320" width="320" height="320">'
        f'<rect width="320" height="320" fill="#eceef1"/>{cross}{words}</svg>'
    ).encode()

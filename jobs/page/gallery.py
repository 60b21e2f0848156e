"""What all visitors of the page share: the release that is open now, its thumbnails, and what stands beside it."""

import threading
import time
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow.compute as pc
import pyarrow.types as pt

from sif_batch.config import Frozen
from sif_batch.errors import SifBatchError
from sif_batch.jobs.page.thumbnails import Picture, Thumbnails, thumbnails_home
from sif_batch.jobs.run_record import read_runs
from sif_batch.query.index import Index
from sif_batch.query.opening import find_release
from sif_batch.query.usage_log import UsageLog
from sif_batch.release.history import read_history
from sif_batch.release.manifest import MANIFEST
from sif_batch.storage.store import Store

LOOK_EVERY_S = 2.0  # whether another release was published
PAGES = ("map.html", "report.html")  # of a run
MOST_SLID = 2**53  # a browser has no greater numbers
MOST_CHOICES = 500  # values of a column to choose from


class PageSettings(Frozen):
    """What the page was asked to show. judgements, feedback_log: where marks and usage are kept; None: nowhere."""

    place: str
    judgements: str | None = None
    feedback_log: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a visitor wants to know of a release first. recall: None where it was not measured; published: an ISO time,
    None for a copied release."""

    release: str
    rows: int
    encoder: str
    dimension: int
    family: str
    recall: float | None
    published: str | None


@dataclass(frozen=True)
class Choices:
    """What a filter may ask of a column: some of its values, most frequent first, or a range of numbers."""

    values: tuple[str, ...] = ()
    low: float = 0
    high: float = 0


class Gallery:
    """The open release and the one before it. For any number of threads."""

    def __init__(self, settings: PageSettings, look_every_s: float = LOOK_EVERY_S):
        self.settings = settings
        self.thumbnails = Thumbnails(thumbnails_home())
        self.log = UsageLog(settings.feedback_log) if settings.feedback_log else None
        self._index, self._earlier = Index.open(settings.place), None  # type: Index, Index | None
        self._gone: SifBatchError | None = None
        self._look_every_s, self._looked_at = look_every_s, time.monotonic()
        self._looking = threading.Lock()
        self._choices: dict[tuple[str, str], Choices] = {}
        self._facts: Facts | None = None

    def current(self) -> Index:
        """The release that is published now. Raises SifBatchError while there is none to ask."""
        if self._looking.acquire(blocking=False):  # one visitor looks, the others go on with what is open
            try:
                if self._gone or time.monotonic() - self._looked_at >= self._look_every_s:
                    self._look()
                    self._looked_at = time.monotonic()
            finally:
                self._looking.release()
        if self._gone is not None:
            raise self._gone
        return self._index

    def _look(self) -> None:
        try:
            store, folder = find_release(self.settings.place)
            if not store.exists(f"{folder}/{MANIFEST}" if folder else MANIFEST):
                raise SifBatchError(
                    f"release {self._index.release[:12]} was removed", remedy="publish one: sif-batch run or publish"
                )
            newest = self._index.refresh()
        except SifBatchError as error:
            self._gone = error
            return
        if newest is not self._index:
            self._index, self._earlier = newest, self._index
        self._gone = None

    def picture(self, release: str, row: int, side: int) -> Picture | None:
        """The thumbnail of a row of the release that is open, or was before; None where there is no such row."""
        for index in (self._index, self._earlier):
            if index is not None and index.release.startswith(release) and 0 <= row < len(index):
                (image,) = index.roster.take(np.array([row]), ["uri", "sha256"]).to_pylist()
                return self.thumbnails.get(image["uri"], image["sha256"], side)
        return None

    def facts(self, index: Index) -> Facts:
        facts = self._facts  # another visitor may see a newer release already
        if facts is None or facts.release != index.release:
            facts = self._facts = find_facts(index, self.settings.place)
        return facts

    def choices(self, index: Index, column: str) -> Choices:
        name = (index.release, column)
        if name not in self._choices:
            self._choices[name] = find_choices(index, column)
        return self._choices[name]

    def run_page(self, release: str, name: str) -> bytes | None:
        """map.html or report.html of the newest run that made the release and has one."""
        root = root_of(self.settings.place)
        for run in read_runs(root) if root else ():
            page = f"runs/{run['id']}/{name}"
            if run["result"].get("release") == release and root and root.exists(page):
                return root.read(page)
        return None


def find_facts(index: Index, place: str) -> Facts:
    manifest, root = index.manifest, root_of(place)
    times = [entry["time"] for entry in read_history(root) if entry["release"] == index.release] if root else []
    measured = manifest.get("recall") or {}
    return Facts(
        release=index.release,
        rows=len(index),
        encoder=str(manifest["encoder"]).rpartition("-")[0],
        dimension=index.dimension,
        family=index.spec.family,
        recall=measured.get("at_10"),
        published=times[-1] if times else None,
    )


def find_choices(index: Index, column: str) -> Choices:
    values = index.column(column)
    if pt.is_integer(values.type) or pt.is_floating(values.type):
        found = pc.min_max(values.filter(pc.is_finite(values)))
        low, high = found["min"].as_py() or 0, found["max"].as_py() or 0
        if max(-low, high) < MOST_SLID:
            return Choices(low=low, high=high)
    if pt.is_large_binary(values.type):
        return Choices()
    counts = pc.value_counts(values.cast("string"))
    order = pc.sort_indices(counts, sort_keys=[("counts", "descending"), ("values", "ascending")])[:MOST_CHOICES]
    return Choices(tuple(value for value in counts.field("values").take(order).to_pylist() if value is not None))


def root_of(place: str) -> Store | None:
    """The ROOT that is, or that holds, a release; None for a release elsewhere."""
    store, folder = find_release(place)
    if folder:
        return store
    above = PurePosixPath(store.url).parents
    if len(above) < 2 or above[0].name != "releases":
        return None
    root = Store(store.url.removesuffix("/").rpartition("/")[0].rpartition("/")[0])
    return root if root.exists("root.json") else None


_open: list[Gallery] = []


def open_gallery(settings: PageSettings, **options: float) -> Gallery:
    """Open what is to be shown, in place of what was before. Raises SifBatchError."""
    _open[:] = [Gallery(settings, **options)]
    return _open[0]


def gallery() -> Gallery:
    return _open[0]

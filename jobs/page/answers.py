"""A visitor's question, and its answer as cards. Nothing here knows of Streamlit."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sif_batch.errors import SifBatchError
from sif_batch.images.thumbnails import thumbnail
from sif_batch.query.filters import KEYWORDS
from sif_batch.query.hits import Hit
from sif_batch.query.index import Index

K, MOST = 24, 500  # images shown: by default, at most
MOST_SEEN = 10_000  # hits looked through for MOST images, copies folded
MOST_UPLOADED = 20_000_000  # bytes of an image
UPLOADS = 8  # images of one question


@dataclass(frozen=True)
class Question:
    """Asked with an image of the release by its key, or with uploaded ones together; and with marks."""

    key: str | None = None
    uploads: tuple[bytes, ...] = ()
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    k: int = K
    where: str = ""
    fold: bool = True
    expand: int = 0

    @property
    def by(self) -> str:
        """As usage is counted."""
        uploaded = "images" if len(self.uploads) > 1 else "image"
        return "marks" if self.right or self.wrong else uploaded if self.uploads else "key"

    def terms(self) -> dict[str, Any]:
        """What `Index.search` is given, k aside."""
        given = {
            "key": self.key,
            "images": list(self.uploads),
            "together": bool(self.uploads),
            "right": self.right,
            "wrong": self.wrong,
            "expand": self.expand,
            "where": self.where.strip(),
        }
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Card:
    """An image of the answer. copies: others of the very same bytes that it stands for."""

    hit: Hit
    row: int
    copies: int = 0


@dataclass(frozen=True)
class Answer:
    """cards: best first; copies: of the image asked with; seconds: that it took."""

    cards: tuple[Card, ...]
    copies: int
    seconds: float


def answer(index: Index, question: Question) -> Answer:
    """The k most similar images, or fewer where fewer qualify. Raises SifBatchError."""
    if not 1 <= question.k <= MOST:
        raise SifBatchError(f"k is {question.k}", remedy=f"ask for 1 to {MOST} images")
    began = time.perf_counter()
    row = index.row_of(question.key) if question.key else None
    own = None if row is None or not question.fold else index.column("sha256")[row].as_py()
    wanted = question.k
    while True:
        hits = index.search(k=wanted, **question.terms())
        cards, copies = as_cards(index, hits, own, question.fold)
        if len(cards) >= question.k or len(hits) < wanted or wanted >= MOST_SEEN:
            break
        wanted = min(4 * wanted, MOST_SEEN)
    return Answer(tuple(cards[: question.k]), copies, time.perf_counter() - began)


def as_cards(index: Index, hits: Sequence[Hit], own: bytes | None, fold: bool) -> tuple[list[Card], int]:
    """Hits as cards, those of equal bytes as one where they are folded, those of the bytes `own` as none.

    Returns how many of the latter there are, too.
    """
    cards: dict[Any, Card] = {}
    digests, copies = index.column("sha256"), 0
    for hit in hits:
        row = index.row_of(hit.key)
        name = digests[row].as_py() if fold else row
        if name == own:
            copies += 1
        elif name in cards:
            first = cards[name]
            cards[name] = Card(first.hit, first.row, first.copies + 1)
        else:
            cards[name] = Card(hit, row)
    return list(cards.values()), copies


def random_key(index: Index) -> str:
    """The key of some image."""
    return str(index.column("key")[int(np.random.default_rng().integers(len(index)))].as_py())


def check_upload(data: bytes, side: int) -> Image.Image:
    """The thumbnail of an uploaded image that can be asked with. Raises SifBatchError, or ImageError with the kind."""
    if len(data) > MOST_UPLOADED:
        raise SifBatchError(
            f"{len(data) / 1e6:.0f} MB, the limit is {MOST_UPLOADED / 1e6:.0f} MB", remedy="upload a smaller image"
        )
    return thumbnail(data, side)


def where_values(column: str, values: Sequence[str]) -> str:
    """The condition that a column has one of some values."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{name_of(column)} in ({quoted})"


def where_between(column: str, low: float, high: float) -> str:
    return f"{name_of(column)} >= {low} and {name_of(column)} <= {high}"


def name_of(column: str) -> str:
    """A column's name as a condition takes it."""
    return column if column.isidentifier() and column.lower() not in KEYWORDS else "`" + column.replace("`", "``") + "`"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]

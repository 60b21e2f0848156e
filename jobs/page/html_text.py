"""What the page says, as text: nothing of a release goes in as HTML unescaped."""

import base64
import functools
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from sif_batch.errors import SifBatchError
from sif_batch.failures import PERMANENT, TRANSIENT, ImageError
from sif_batch.images.thumbnails import png_bytes
from sif_batch.jobs.page.answers import Card
from sif_batch.jobs.page.gallery import Facts
from sif_batch.query.hits import python_values, shown_value
from sif_batch.query.image_table import PLAIN
from sif_batch.query.index import Index

OWN = ("source", "folder", "width", "height")  # columns that have a place of their own


def about_facts(facts: Facts) -> str:
    """The head of the page, as HTML."""
    recall = "not measured" if facts.recall is None else f"{facts.recall:.1%}".replace("100.0%", "100%")
    shown = [
        (f"{facts.rows:,}", "images"),
        (facts.encoder, f"encoder, {facts.dimension:,}-d"),
        (recall, f"recall@10, {facts.family}"),
        (facts.published[:10] if facts.published else "unknown", "published"),
        (facts.release[:12], "release"),
    ]
    return facts_html(shown)


def facts_html(shown: Sequence[tuple[str, str]]) -> str:
    """Values, each with what it is."""
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in shown)
    return f'<div class="facts">{cells}</div>'


def about_card(card: Card) -> dict[str, Any]:
    folder, _, name = card.hit.key.partition("/")[2].rpartition("/")
    return {
        "key": card.hit.key,
        "similarity": f"{card.hit.similarity:.3f}",
        "folder": f"{folder}/" if folder else "",
        "name": name,
        "copies": card.copies,
        "about": "\n".join([card.hit.key, *column_lines(card.hit.columns)]),
    }


def describe_key(index: Index, key: str, copies: int) -> tuple[str, list[str]]:
    """A title and lines about an image of the release."""
    row = index.row_of(key)
    columns = {name: python_values(index.column(name).slice(row, 1))[0] for name in index.columns if name not in PLAIN}
    lines = [key, f"{columns['width']} × {columns['height']} pixels"]
    if copies:
        lines.append(f"{copies} exact {'copies' if copies > 1 else 'copy'} beside it")
    return key.rpartition("/")[2], [*lines, *column_lines(columns)]


def column_lines(columns: dict[str, Any]) -> list[str]:
    return [f"{name}: {shown_value(value)}" for name, value in columns.items() if name not in OWN and value is not None]


def readable_error(error: BaseException, name: str = "") -> str:
    """An error and what to do, as Markdown that shows as plain text. name: of the upload that it is about."""
    told, remedy = str(error), error.remedy if isinstance(error, SifBatchError) else ""
    if isinstance(error, ImageError):
        means = (PERMANENT | TRANSIENT)[error.kind][0]
        told, remedy = f"{means} ({told})", "upload another image"
    return plain(": ".join(filter(None, (name, told))) + (f"; {remedy}" if remedy else ""))


def about_usage(summary: dict[str, Any]) -> str:
    """What visitors asked, as HTML."""
    seconds = summary["seconds"] or {"median": None, "p95": None}
    shown = [
        (f"{summary['queries']:,}", "questions"),
        (f"{summary['clicks']:,}", "clicks"),
        (_share(summary["click_share"]), "of questions led to a click"),
        (_number(summary["mean_rank"], 1), "mean rank of a click"),
        (_number(seconds["median"], 3), f"s, median; 95th percentile {_number(seconds['p95'], 3)}"),
    ]
    days = [(day["day"], f"{day['queries']:,} asked, {day['clicks']:,} clicked") for day in summary["days"][-14:]]
    asked = [(row["key"], f"{row['times']:,} ×") for row in summary["most_asked"]]
    clicked = [(row["key"], f"{row['times']:,} ×") for row in summary["most_clicked"]]
    lists = _list("Days", days) + _list("Asked with most", asked) + _list("Clicked most", clicked)
    return facts_html(shown) + f'<div class="lists">{lists}</div>'


def _list(title: str, rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<section><h3>{escape(title)}</h3><table>{body}</table></section>" if rows else ""


def _share(value: float | None) -> str:
    return "none yet" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int) -> str:
    return "none yet" if value is None else f"{value:.{digits}f}"


def plain(text: str) -> str:
    """Text that Streamlit's Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!$:<>|~" else c for c in text)


@functools.cache
def icon() -> str:
    """The picture of the browser's tab, as a data URL."""
    drawn = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(drawn)
    for i, colour in enumerate(("#2563eb", "#60a5fa", "#60a5fa", "#bfdbfe")):
        x, y = 4 + i % 2 * 30, 4 + i // 2 * 30
        draw.rounded_rectangle((x, y, x + 26, y + 26), 7, colour)
    return "data:image/png;base64," + base64.b64encode(png_bytes(drawn)).decode()


@functools.cache
def read_asset(name: str) -> str:
    """A file beside this module, as text."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

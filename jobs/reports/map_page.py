"""The map as a picture, and as what its page needs. Needs the extra `report`."""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw

from sif_batch.errors import SifBatchError
from sif_batch.images.contact_sheet import PAPER
from sif_batch.images.thumbnails import png_bytes
from sif_batch.jobs.reports.html import check_extra, data_url, render
from sif_batch.jobs.reports.map_places import MANY, SMALL_TILE, TILE, Map, make_map, open_tile
from sif_batch.jobs.result_files import write_file
from sif_batch.jobs.run_record import read_runs
from sif_batch.query.index import Index
from sif_batch.storage.store import Store

COLOURS = (
    "#2563eb", "#ea7a0b", "#16a34a", "#dc2626", "#9333ea", "#0891b2", "#ca8a04", "#db2777", "#4d7c0f", "#7c3aed",
)  # fmt: skip
INKS = (*COLOURS, "#9aa3b0")  # the last for no label
ACROSS = 32  # tiles across and down a sheet
WIDTH, HEIGHT, MARGIN, SHOWN = 1600, 1200, 48, 56  # pixels of the picture; of an image in it
RANGE = 65_535  # a place on the page is a uint16
LINKED = ("http://", "https://", "/")  # uris that a browser opens

Say = Callable[[str], None]


def map_release(place: str, size: int, label: str, out: str | None, say: Say) -> dict[str, str]:
    """Make the map of a release: map.html, map.png and map.parquet in `out`, by default beside the run that made the
    release. Returns where they are by name. Raises SifBatchError."""
    check_extra()
    index = Index.open(place)
    store = Store(place)
    run = None if out else next((r for r in read_runs(store) if r["result"].get("release") == index.release), None)
    if not out and run is None:
        raise SifBatchError(f"{place}: no run of it is known to put the map beside", remedy="--out DIR")
    files = map_files(make_map(index, size, label, say=say), index)
    for name, data in files.items():
        write_file(f"{out}/{name}", data) if out else store.replace(f"runs/{run['id']}/{name}", data)  # type: ignore[index]
    folder = out or store.path(f"runs/{run['id']}")  # type: ignore[index]
    return {name: f"{folder}/{name}" for name in files}


def map_files(found: Map, index: Index, values: dict[str, Any] | None = None) -> dict[str, bytes]:
    """map.html, map.png and map.parquet. values: `page_values` of the map, where they are there already."""
    values = values or page_values(found, index.column("uri").slice(0, len(found)).to_pylist())
    page = render("map.html", values=values, release=index.release, rows=len(index))
    return {"map.html": page, "map.png": png_bytes(draw_map(found)), "map.parquet": found.encode()}


def colour_numbers(found: Map) -> tuple[list[str], np.ndarray]:
    """The labels, most frequent first, and for each point the number of its colour, the last one for no label.

    Of many labels every tenth has the same colour: neighbours seldom share it.
    """
    labels = found.points["label"].to_pylist()
    names = [name for name, _ in Counter(label for label in labels if label is not None).most_common()]
    number = {name: i % len(COLOURS) for i, name in enumerate(names)}
    return names, np.array([number.get(label, len(COLOURS)) for label in labels], np.uint8)


def scaled(places: np.ndarray) -> np.ndarray:
    """Places in the unit square, (n, 2) float64, the longer side filling it."""
    low, high = places.min(axis=0), places.max(axis=0)
    size = max(float((high - low).max()), 1e-9)
    return (places - (low + high) / 2) / size + 0.5


def draw_map(found: Map) -> Image.Image:
    """Each point as a dot in the colour of its label, and as many images as find room, each over its dot."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    at = scaled(found.places("tsne"))
    low, high = at.min(axis=0), at.max(axis=0)
    at = (at - low) / np.maximum(high - low, 1e-9) * (WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN) + MARGIN
    _, colour = colour_numbers(found)
    size = 3 if len(found) <= 3000 else 1.5
    for (x, y), number in zip(at, colour, strict=True):
        draw.ellipse((x - size, y - size, x + size, y + size), fill=INKS[number])
    taken = np.zeros((HEIGHT // SHOWN + 1, WIDTH // SHOWN + 1), bool)
    for (x, y), tile, number in zip(at, found.points["tile"], colour, strict=True):
        cell = int(y) // SHOWN, int(x) // SHOWN
        image = None if taken[cell] else open_tile(tile.as_py())
        if image is not None:
            taken[cell] = True
            image.thumbnail((SHOWN - 8, SHOWN - 8))
            left, top = cell[1] * SHOWN + (SHOWN - image.width) // 2, cell[0] * SHOWN + (SHOWN - image.height) // 2
            picture.paste(image, (left, top))
            frame = (left - 2, top - 2, left + image.width + 1, top + image.height + 1)
            draw.rectangle(frame, outline=INKS[number], width=2)
    return picture


def page_values(found: Map, uris: Sequence[str]) -> dict[str, Any]:
    """What templates/map.js takes: places, colours, keys, and the images as sheets of square tiles."""
    names, colour = colour_numbers(found)
    side = TILE if len(found) <= MANY else SMALL_TILE
    return {
        "count": len(found),
        "places": {way: _packed(np.rint(scaled(found.places(way)) * RANGE).astype("<u2")) for way in ("tsne", "pca")},
        "colour": _packed(colour),
        "colours": INKS,
        "labels": [name or "(none)" for name in names],
        "label": found.points["label"].to_pylist(),
        "keys": found.points["key"].to_pylist(),
        "links": [_link(uri) for uri in uris],
        "side": side,
        "across": ACROSS,
        "sheets": [data_url(sheet, 60) for sheet in _sheets(found, side)],
    }


def _link(uri: str) -> str | None:
    """What opens the image in a browser, if anything does."""
    if not uri.startswith(LINKED) or "#row=" in uri:
        return None
    return "file://" + quote(uri) if uri.startswith("/") else uri


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _sheets(found: Map, side: int) -> list[Image.Image]:
    sheets = []
    for start in range(0, len(found), ACROSS * ACROSS):
        tiles = found.points["tile"].slice(start, ACROSS * ACROSS)
        sheet = Image.new("RGB", (ACROSS * side, -(-len(tiles) // ACROSS) * side), "#eceef1")
        for i, tile in enumerate(tiles):
            image = open_tile(tile.as_py())
            if image is not None:
                x, y = i % ACROSS * side, i // ACROSS * side
                sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
        sheets.append(sheet)
    return sheets

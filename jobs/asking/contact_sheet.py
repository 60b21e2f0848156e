"""Contact sheets: queries and their hits as one picture."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sif_batch.errors import SifBatchError
from sif_batch.images.contact_sheet import Strip, Tile, contact_sheet
from sif_batch.jobs.asking.search import Answer
from sif_batch.jobs.result_files import write_file
from sif_batch.query.hits import Hit
from sif_batch.sources.originals import find_thumbnail

SIDE = 144
MOST_PIXELS = 60_000  # a side of the picture


def write_contact_sheet(path: str, found: Sequence[Answer]) -> None:
    """The queries and their hits as a picture in the format that the name ends with. Raises SifBatchError."""
    check_name(path)
    strips = [Strip(answer.query, [*_query(answer), *map(_tile, answer.hits)]) for answer in found]
    sheet = contact_sheet(strips, SIDE)
    if max(sheet.size) > MOST_PIXELS:
        raise SifBatchError(
            f"a contact sheet of {len(found)} queries would be {sheet.width} x {sheet.height} pixels",
            remedy="ask with fewer images at once, or for fewer hits",
        )
    write_picture(path, sheet)


def check_name(path: str) -> None:
    """Raise SifBatchError unless the name says a format that Pillow writes."""
    suffix = Path(path).suffix.lower()
    if Image.registered_extensions().get(suffix) not in ("PNG", "JPEG", "WEBP"):
        raise SifBatchError(f"{path}: no picture ends with {suffix!r}", remedy="end it with .png, .jpg or .webp")


def write_picture(path: str, picture: Image.Image) -> None:
    """A local picture file, whole. Raises SifBatchError."""
    sink = io.BytesIO()
    picture.save(sink, Image.registered_extensions()[Path(path).suffix.lower()], quality=90)
    write_file(path, sink.getvalue())


def _query(answer: Answer) -> list[Tile]:
    return [Tile(find_thumbnail(answer.picture, SIDE), ["query"])] if answer.picture else []


def _tile(hit: Hit) -> Tile:
    return Tile(find_thumbnail(hit.uri, SIDE), [f"{hit.similarity:.4f}", hit.key])

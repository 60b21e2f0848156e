"""Pictures of images that a release names: bytes by uri, thumbnails, and sheets of them. Needs Pillow alone."""

import functools
import io
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError, telling_io
from sif_batch.images.decode import MAX_BYTES, decode
from sif_batch.sources.names import local_of, text_of
from sif_batch.sources.parquet import choose_columns
from sif_batch.storage.urls import is_local, open_filesystem

TAR, ROW = "tar://", "#row="  # what the uri of an image in an archive or in Parquet holds
PAPER, INK, MUTED, EMPTY = "#ffffff", "#1d2129", "#6b7280", "#e5e7eb"
GOOD, BAD = "#16a34a", "#dc2626"
GAP, FRAME, CAPTION = 8, 4, 14  # pixels

_one_reads_archives = threading.Lock()  # an open archive has one place that it reads at


def read_uri(uri: str, image_column: str | None = None) -> bytes:
    """The bytes of an image by its uri as a release has it: a path or URL, tar://member::archive, table#row=number.

    image_column: of Parquet, the only one that holds bytes by default. Raises ImageError.
    """
    try:
        with telling_io():
            if ROW in uri:
                table, _, row = uri.rpartition(ROW)
                return _read_row(table, int(row), image_column)
            if uri.startswith(TAR):
                member, _, archive = uri.removeprefix(TAR).partition("::")
                return _read_member(archive, member)
            fs, path = _filesystem(uri)
            if fs.size(path) > MAX_BYTES:
                raise ImageError("too_large", f"{fs.size(path)} bytes")
            return bytes(fs.cat_file(path))
    except SifBatchError as error:
        raise ImageError("unreadable", str(error)) from error


def _filesystem(uri: str) -> tuple[Any, str]:
    fs, path = open_filesystem(uri)
    return fs, local_of(path) if is_local(fs) else path


@functools.lru_cache(maxsize=8)
def _open_archive(archive: str) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
    fs, path = _filesystem(archive)
    opened = tarfile.open(fileobj=fs.open(path, "rb"), mode="r:*")  # noqa: SIM115 (kept open, by lru_cache)
    return opened, {text_of(member.name): member for member in opened if member.isfile()}


def _read_member(archive: str, name: str) -> bytes:
    try:
        with _one_reads_archives:
            opened, members = _open_archive(archive)
            if name not in members:
                raise ImageError("missing", "the archive has no such member any more")
            file = opened.extractfile(members[name])
            return file.read(MAX_BYTES) if file else b""
    except tarfile.TarError as error:
        raise ImageError("corrupt", str(error)[:200]) from error


def _read_row(table: str, row: int, image_column: str | None) -> bytes:
    fs, path = _filesystem(table)
    with fs.open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            column, _ = choose_columns(parquet.schema_arrow, image_column, ())
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if row < rows:
                    value = parquet.read_row_group(group, [column])[column][row].as_py()
                    data = value["bytes"] if isinstance(value, dict) else value
                    return bytes(data or b"")
                row -= rows
        except pa.ArrowException as error:
            raise ImageError("corrupt", str(error)[:200]) from error
    raise ImageError("missing", "the table has no such row any more")


def thumbnail(data: bytes, side: int) -> Image.Image:
    """The image upright as RGB, its longer side `side` pixels at most. Raises ImageError."""
    pixels = decode(data, at_least=side, side=max).pixels
    pixels.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    return pixels


def find_thumbnail(uri: str, side: int) -> Image.Image | None:
    """The thumbnail of a release's image; None where it cannot be had any more."""
    try:
        return thumbnail(read_uri(uri), side)
    except (ImageError, OSError):
        return None


@dataclass(frozen=True)
class Tile:
    """A picture of a sheet. image: None: it cannot be read; frame: a colour, None for none."""

    image: Image.Image | None
    captions: Sequence[str] = ()
    frame: str | None = None


@dataclass(frozen=True)
class Strip:
    """A line of a sheet: what stands above it, and its tiles."""

    title: str
    tiles: Sequence[Tile]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def contact_sheet(strips: Sequence[Strip], side: int = 128) -> Image.Image:
    """Strips of tiles, one below the other, as an RGB image."""
    lines = max((len(tile.captions) for strip in strips for tile in strip.tiles), default=0)
    cell = (side + 2 * FRAME, side + 2 * FRAME + lines * CAPTION)
    across = max((len(strip.tiles) for strip in strips), default=1)
    title = CAPTION + GAP
    height = sum(title + cell[1] + GAP for _ in strips) + GAP
    sheet = Image.new("RGB", (GAP + across * (cell[0] + GAP), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for strip in strips:
        draw.text((GAP, top), _cut(strip.title, sheet.width - 2 * GAP, 13), fill=INK, font=_font(13))
        for i, tile in enumerate(strip.tiles):
            _paste(sheet, draw, tile, (GAP + i * (cell[0] + GAP), top + title), side)
        top += title + cell[1] + GAP
    return sheet


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, at: tuple[int, int], side: int) -> None:
    x, y = at
    box = (x, y, x + side + 2 * FRAME - 1, y + side + 2 * FRAME - 1)
    if tile.image is None:
        draw.rectangle(box, fill=EMPTY)
        draw.text((x + FRAME, y + side // 2), "cannot be read", fill=MUTED, font=_font(11))
    else:
        image = tile.image
        if max(image.size) > side:
            image = image.copy()
            image.thumbnail((side, side))
        sheet.paste(image, (x + FRAME + (side - image.width) // 2, y + FRAME + (side - image.height) // 2))
    if tile.frame:
        draw.rectangle(box, outline=tile.frame, width=FRAME - 1)
    for line, caption in enumerate(tile.captions):
        place = (x + FRAME, y + side + 2 * FRAME + line * CAPTION)
        draw.text(place, _cut(caption, side, 11), fill=MUTED if line else INK, font=_font(11))


def _cut(text: str, width: int, size: int) -> str:
    """The text's end, as much as fits: the end of a key tells most."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def jpeg_bytes(image: Image.Image, quality: int = 80) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()

"""A contact sheet: strips of captioned tiles, drawn as one picture."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, MUTED, EMPTY = "#ffffff", "#1d2129", "#6b7280", "#e5e7eb"
GOOD, BAD = "#16a34a", "#dc2626"
GAP, FRAME, CAPTION = 8, 4, 14  # pixels


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

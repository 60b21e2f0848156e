"""The original of an indexed image: opened by its uri, as bytes or as a thumbnail."""

import functools
import os
import re
from typing import Any

from PIL import Image

from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError, telling_io
from sif_batch.images.decode import MAX_BYTES
from sif_batch.images.thumbnails import thumbnail
from sif_batch.sources.archives import OpenArchive
from sif_batch.sources.names import local_of, path_in
from sif_batch.sources.parquet import read_table
from sif_batch.storage.urls import open_filesystem

MEMBER = ("tar://", "zip://")  # of an image in an archive: tar://member::archive
ROW = re.compile(r"(.*\.parquet)#row=(\d+)", re.IGNORECASE | re.DOTALL)  # of one in Parquet
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")


def read_uri(uri: str, image_column: str | None = None) -> bytes:
    """The bytes of an image by its uri as a release has it: a path or URL, tar://member::archive (zip:// too),
    table#row=number.

    image_column: of Parquet, the only one that holds bytes by default. Raises ImageError.
    """
    try:
        with telling_io():
            if row := ROW.match(uri):
                return _read_row(row[1], int(row[2]), image_column)
            if uri.startswith(MEMBER):
                archive, member = split_member(uri)
                return _open_archive(archive).read(member, MAX_BYTES)
            fs, path = _filesystem(uri)
            if fs.size(path) > MAX_BYTES:
                raise ImageError("too_large", f"{fs.size(path)} bytes")
            return bytes(fs.cat_file(path))
    except SifBatchError as error:
        raise ImageError("unreadable", str(error)) from error


def split_member(uri: str) -> tuple[str, str]:
    """The archive of tar://member::archive and the member, whatever more `::` they hold: (archive, member)."""
    text = uri[len(MEMBER[0]) :]
    for place in re.finditer("(?=::)", text):
        member, archive = text[: place.start()], text[place.start() + 2 :]
        if SCHEME.match(archive) or (archive.startswith("/") and os.path.lexists(local_of(archive))):
            return archive, member
    member, _, archive = text.partition("::")
    return archive, member


def _filesystem(uri: str) -> tuple[Any, str]:
    fs, path = open_filesystem(uri)
    return fs, path_in(fs, path)


@functools.lru_cache(maxsize=8)
def _open_archive(archive: str) -> OpenArchive:
    fs, path = _filesystem(archive)
    return OpenArchive(fs.open(path, "rb"))


def _read_row(table: str, row: int, image_column: str | None) -> bytes:
    fs, path = _filesystem(table)
    with fs.open(path, "rb") as file:
        for piece in read_table(file, row, image_column, (), MAX_BYTES):
            data = piece.members[0].data
            if isinstance(data, ImageError):
                raise data
            return data
    raise ImageError("missing", "the table has no such row any more")


def find_thumbnail(uri: str, side: int) -> Image.Image | None:
    """The thumbnail of a release's image; None where it cannot be had any more."""
    try:
        return thumbnail(read_uri(uri), side)
    except (ImageError, OSError):
        return None

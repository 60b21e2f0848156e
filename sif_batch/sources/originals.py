"""The original of an indexed image: opened by its uri, as bytes or as a thumbnail."""

import functools
import os
import re
import tarfile
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError, telling_io
from sif_batch.images.decode import MAX_BYTES
from sif_batch.images.thumbnails import thumbnail
from sif_batch.sources.names import local_of, text_of
from sif_batch.sources.parquet import choose_columns
from sif_batch.storage.urls import is_local, open_filesystem

TAR, ROW = "tar://", re.compile(r"(.*\.parquet)#row=(\d+)", re.IGNORECASE | re.DOTALL)  # in an archive, in Parquet
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_one_reads_archives = threading.Lock()  # an open archive has one place that it reads at


def read_uri(uri: str, image_column: str | None = None) -> bytes:
    """The bytes of an image by its uri as a release has it: a path or URL, tar://member::archive, table#row=number.

    image_column: of Parquet, the only one that holds bytes by default. Raises ImageError.
    """
    try:
        with telling_io():
            if row := ROW.match(uri):
                return _read_row(row[1], int(row[2]), image_column)
            if uri.startswith(TAR):
                return _read_member(*split_member(uri))
            fs, path = _filesystem(uri)
            if fs.size(path) > MAX_BYTES:
                raise ImageError("too_large", f"{fs.size(path)} bytes")
            return bytes(fs.cat_file(path))
    except SifBatchError as error:
        raise ImageError("unreadable", str(error)) from error


def split_member(uri: str) -> tuple[str, str]:
    """The archive of tar://member::archive and the member, whatever more `::` they hold: (archive, member)."""
    text = uri.removeprefix(TAR)
    for place in re.finditer("(?=::)", text):
        member, archive = text[: place.start()], text[place.start() + 2 :]
        if SCHEME.match(archive) or (archive.startswith("/") and os.path.lexists(local_of(archive))):
            return archive, member
    member, _, archive = text.partition("::")
    return archive, member


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


def find_thumbnail(uri: str, side: int) -> Image.Image | None:
    """The thumbnail of a release's image; None where it cannot be had any more."""
    try:
        return thumbnail(read_uri(uri), side)
    except (ImageError, OSError):
        return None

"""Zip archives, as tar archives are read; one whose directory is lost or damaged by the headers before each member."""

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from sif_batch.failures import ImageError
from sif_batch.sources.containers import IsEntry, Pieces
from sif_batch.sources.names import text_of
from sif_batch.sources.tars import MAX_SIDECAR_BYTES, STEM, UPWARDS, Content, fields_of, pieces_of

MEMBER, END, DESCRIPTOR = b"PK\3\4", b"PK\5\6", b"PK\7\x08"  # what stands before members, at the end, behind a member
EMPTY = END + bytes(18)
END_BYTES = len(EMPTY) + 2**16  # the end record with the longest comment
HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7, before the name and the extra field
ENCRYPTED, SIZES_BEHIND, UTF_8 = 0x1, 0x8, 0x800  # general purpose flags
STEP = {zipfile.ZIP_STORED: 2**20, zipfile.ZIP_DEFLATED: 2**20}
OTHER_STEP = 2**12  # compressed bytes that zipfile hands to bz2 and lzma at once: they inflate to 80 MB at most
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, struct.error)

Found = list[tuple[str, zipfile.ZipInfo]]  # names and members, in order


def is_zip(file: BinaryIO) -> bool:
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    return start in (MEMBER, END)


def read_zip(file: BinaryIO, first: int, is_entry: IsEntry, max_bytes: int) -> Pieces:
    """The archive's images from member number `first` on, which must begin a piece. Raises ImageError at the end if it
    was damaged: `truncated` without its directory, which stands at its end, else `corrupt`."""
    archive, infos, damage = open_zip(file)

    def read() -> Iterator[tuple[int, tuple[str, Content]]]:
        for number, (name, info) in enumerate(infos):
            yield number, (name, None if number < first else _content(archive, name, info, is_entry, max_bytes))

    yield from pieces_of(read(), first)
    if damage:
        raise damage


def open_zip(file: BinaryIO) -> tuple[zipfile.ZipFile, Found, ImageError | None]:
    """The archive, its members, and what is wrong with it."""
    try:
        archive = zipfile.ZipFile(file)
        found = [(text_of(info.filename), info) for info in archive.infolist()]
        return archive, found, _bytes_around(file, archive)
    except ImageError:
        raise
    except (*DAMAGE, NotImplementedError) as error:
        end = _end_record(file)
        kind, why = ("corrupt", f"its directory cannot be read ({error})") if end else ("truncated", "it has no end")
        archive = zipfile.ZipFile(io.BytesIO(EMPTY))
        archive.fp = file  # type: ignore[assignment]  # members are read where their ZipInfo says
        found = list(_scan(file))
        return archive, found, ImageError(kind, why if found else f"no zip archive that can be read: {why}")


def _content(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, is_entry: IsEntry, max_bytes: int) -> Content:
    if info.is_dir():
        return None
    if is_entry(UPWARDS.sub("", name)):
        return data_of(archive, info, max_bytes)
    data = data_of(archive, info, MAX_SIDECAR_BYTES)
    return fields_of(STEM.sub(r"\g<extension>", name), data) if isinstance(data, bytes) else None


def data_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes | ImageError:
    """A member's bytes, of which zipfile gives no more than its header says, or why there are none."""
    if stat.S_ISLNK(info.external_attr >> 16):
        return ImageError("unsupported", "a link inside the archive")
    if info.flag_bits & ENCRYPTED:
        return ImageError("unsupported", "it is encrypted")
    if info.file_size > max_bytes:
        return ImageError("too_large", f"{info.file_size} bytes; the limit is {max_bytes}")
    step = STEP.get(info.compress_type, OTHER_STEP)
    try:
        with archive.open(info) as file:
            data = b"".join(iter(lambda: file.read(step), b""))
    except ImageError:  # of the disk
        raise
    except NotImplementedError as error:
        return ImageError("unsupported", str(error))
    except DAMAGE as error:
        kind = "truncated" if isinstance(error, EOFError) else "corrupt"
        return ImageError(kind, f"the archive is damaged here ({error})"[:500])
    if len(data) < info.file_size:
        return ImageError("truncated", f"the archive has {len(data)} of its {info.file_size} bytes")
    return data


def _end_record(file: BinaryIO) -> int | None:
    """Where the archive ends: behind its end record and the comment in it; None: it has none near its end."""
    size = file.seek(0, 2)
    file.seek(start := max(0, size - END_BYTES))
    tail = file.read(END_BYTES)
    at = tail.rfind(END)
    if at < 0 or at + len(EMPTY) > len(tail):
        return None
    return start + at + len(EMPTY) + int.from_bytes(tail[at + 20 : at + 22], "little")


def _bytes_around(file: BinaryIO, archive: zipfile.ZipFile) -> ImageError | None:
    """That another archive stands before this one, or bytes behind it, of which its directory says nothing."""
    first = min((info.header_offset for info in archive.infolist()), default=archive.start_dir)
    file.seek(0)
    if first > 0 and file.read(4) in (MEMBER, END):
        return ImageError("corrupt", f"bytes 0 to {first} are of another archive, which was not read")
    file.seek(_end_record(file) or 0)
    if any(rest := file.read(END_BYTES)):
        return ImageError("corrupt", f"{len(rest)} bytes follow its end record")
    return None


def _scan(file: BinaryIO) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The members that stand one after the other from the start on, by their own headers."""
    at = 0
    while True:
        file.seek(at)
        if len(block := file.read(HEADER.size)) < HEADER.size or not block.startswith(MEMBER):
            return
        _, _, flags, method, _, _, checksum, packed, size, name_length, extra_length = HEADER.unpack(block)
        raw, extra = file.read(name_length), file.read(extra_length)
        data = at + HEADER.size + name_length + extra_length
        if 0xFFFFFFFF in (packed, size):
            size, packed = _zip64(extra, size, packed)
        if flags & SIZES_BEHIND and not packed:
            if (found := _measure(file, data, method)) is None:
                return
            packed, size, checksum = found
        info = zipfile.ZipInfo(raw.decode("cp437"))
        info.header_offset, info.compress_type, info.flag_bits = at, method, flags & ~(UTF_8 | SIZES_BEHIND)
        info.compress_size, info.file_size, info.CRC = packed, size, checksum
        name = raw.decode("utf-8", "surrogateescape") if flags & UTF_8 else info.filename
        yield text_of(name), info
        at = data + packed
        if flags & SIZES_BEHIND:
            file.seek(at)
            near = file.read(28)
            at += max(0, near.find(b"PK", 4 if near.startswith(DESCRIPTOR) else 0))


def _zip64(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    """The sizes that the extra field has where the header has no room for them."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1 and len(extra) >= 20:
            size, packed = struct.unpack_from("<2Q", extra, 4)
            break
        extra = extra[4 + length :]
    return size, packed


def _measure(file: BinaryIO, start: int, method: int) -> tuple[int, int, int] | None:
    """A deflated member's size in the archive, its own and its checksum, where its header does not say; None: it does
    not end, or it is packed in another way."""
    if method != zipfile.ZIP_DEFLATED:
        return None
    file.seek(start)
    stream, packed, size, checksum = zlib.decompressobj(-15), 0, 0, 0
    data: Any = b""
    while not stream.eof:
        if not stream.unconsumed_tail:
            data = file.read(2**16)
            packed += len(data)
        try:
            out = stream.decompress(stream.unconsumed_tail or data, 2**20)
        except zlib.error:
            return None
        if not data and not out:
            return None
        size, checksum = size + len(out), zlib.crc32(out, checksum)
    return packed - len(stream.unused_data), size, checksum

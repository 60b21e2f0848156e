"""Tar archives, as WebDataset writes them: members with one name before the first dot belong together."""

import codecs
import contextlib
import itertools
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from sif_batch.failures import ImageError
from sif_batch.sources.containers import IsEntry, Member, Piece, Pieces
from sif_batch.sources.fields import number_of, parse_json
from sif_batch.sources.inflation import StreamDamage
from sif_batch.sources.names import text_of

BLOCK = tarfile.BLOCKSIZE
MAX_SIDECAR_BYTES = 2**20
MAX_PIECE = 64  # members: an archive whose names all begin alike must not be one piece
SCAN_BLOCKS = 2048  # read at once when looking for the next header
NUMBERS = ("cls", "cls2", "class", "count", "index", "inx", "id")  # sidecars that WebDataset reads as integers
UPWARDS = re.compile(r"(?:(?<=/)|^)(?:\.\.?/)+")  # ./ and ../ make no name a hidden one
STEM = re.compile(r"^(?P<stem>(?:.*/)?[^/.]*)\.?(?P<extension>[^/]*)$", re.DOTALL)
MAX_HEADER_BYTES = 2**20  # of a member: its long name, its pax records
MAGIC, MAGIC_AT = b"ustar", 257  # in a header
Content = bytes | ImageError | dict[str, Any] | None  # of an image, of a sidecar, of neither
BINARY = ("bin", "cbor", "mp", "msg", "npy", "npz", "pickle", "pkl", "pt", "pth", "pyd", "tb", "ten")  # none is text
WHOLE = re.compile(r"0|-?[1-9]\d{0,75}", re.ASCII)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
MARKS = {  # the longer ones first: UTF-32's begins as UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def read_tar(archive: Any, first: int, is_entry: IsEntry, max_bytes: int) -> Pieces:
    """The images of an archive, inflated if need be, from member number `first` on, which must begin a piece.

    A damaged header is passed over to the next good one, and so is the end mark of an archive that another one follows.
    Raises ImageError at the end if the archive was damaged: `corrupt` for a bad header or bytes behind the end mark,
    `truncated` if it does not end as a tar file does.
    """
    damage: list[ImageError] = []
    members = enumerate(members_of(archive, damage))
    # Read as it comes: going back in a compressed archive would begin anew.
    yield from pieces_of(
        ((number, _read_member(archive, info, is_entry, max_bytes, number < first)) for number, info in members), first
    )
    if damage:
        raise damage[0]


def pieces_of(read: Iterator[tuple[int, tuple[str, Content]]], first: int) -> Pieces:
    """Numbered names and what they are, in an archive's order, as pieces: all but those before member `first`."""
    for _, group in itertools.groupby(read, lambda numbered: STEM.sub(r"\g<stem>", numbered[1][0])):
        while piece := list(itertools.islice(group, MAX_PIECE)):
            if piece[-1][0] >= first:
                yield _piece_of(piece)


def members_of(archive: Any, damage: list[ImageError]) -> Iterator[tarfile.TarInfo]:
    """All members in order; notes what is wrong. Holds one at a time: an archive may have millions."""
    start: int | None = 0
    found = False
    headers = _Headers(archive)
    try:
        while start is not None:
            stop = start
            with contextlib.suppress(tarfile.TarError):
                headers.seek(start)
                headers.left = MAX_HEADER_BYTES
                tar = tarfile.TarFile(fileobj=headers, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
                while (member := tar.next()) is not None and tar.offset > stop:
                    found, stop = True, tar.offset
                    tar.members.clear()  # type: ignore[attr-defined]
                    yield member
                    headers.left = MAX_HEADER_BYTES
                stop = max(stop, tar.offset)
            start = _next_header(archive, stop, damage)
    except StreamDamage as error:
        damage.append(error)
    if not found and damage:
        damage.insert(0, ImageError(damage[0].kind, f"no tar archive that can be read: {damage[0]}"))


class _Headers:
    """An archive of which tarfile may read so many bytes for one member's headers: they say themselves how many."""

    def __init__(self, archive: Any):
        self._archive = archive
        self.seek, self.tell = archive.seek, archive.tell
        self.left = MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("a header of more than 1 MB")
        return bytes(self._archive.read(size))


def _next_header(archive: Any, stop: int, damage: list[ImageError]) -> int | None:
    """Where the next good header is, after reading stopped at `stop`; None at the end."""
    archive.seek(stop)
    block = archive.read(BLOCK)
    if len(block) < BLOCK:
        damage.append(ImageError("truncated", "it ends without the end mark of a tar archive"))
        return None
    if any(block):
        damage.append(ImageError("corrupt", f"bad header at byte {stop}"))
        return _scan(archive, stop + BLOCK, b"")
    # An end mark. Behind it may be zeros, another archive, or what should not be there.
    start = stop + BLOCK
    while chunk := archive.read(BLOCK * SCAN_BLOCKS):
        if rest := chunk.lstrip(b"\0"):
            start += (len(chunk) - len(rest)) // BLOCK * BLOCK
            archive.seek(start)
            if _is_header(archive.read(BLOCK)):
                return start
            damage.append(ImageError("corrupt", f"bytes follow its end mark, from byte {start} on"))
            archive.seek(start)
            return _scan(archive, start, b"")
        start += len(chunk)
    return None


def _scan(archive: Any, start: int, kept: bytes) -> int | None:
    """Where the next header is at or behind byte `start`, where the archive stands; at whatever distance."""
    while chunk := archive.read(BLOCK * SCAN_BLOCKS):
        chunk = kept + chunk
        at = chunk.find(MAGIC)
        while at >= 0:
            begin = at - MAGIC_AT
            if begin >= 0 and _is_header(chunk[begin : begin + BLOCK]):
                return start + begin
            at = chunk.find(MAGIC, at + 1)
        kept = chunk[-BLOCK + 1 :]
        start += len(chunk) - len(kept)
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _read_member(
    archive: Any, info: tarfile.TarInfo, is_entry: IsEntry, max_bytes: int, skip: bool
) -> tuple[str, Content]:
    """The member's name, and what it is."""
    name = text_of(info.name)
    if skip or info.isdir() or info.isdev():
        return name, None
    if is_entry(UPWARDS.sub("", name)):
        return name, data_of(archive, info, max_bytes)
    if info.isfile() and info.size <= MAX_SIDECAR_BYTES:
        data = data_of(archive, info, MAX_SIDECAR_BYTES)
        return name, fields_of(STEM.sub(r"\g<extension>", name), data) if isinstance(data, bytes) else None
    return name, None


def _piece_of(piece: list[tuple[int, tuple[str, Content]]]) -> Piece:
    fields: dict[str, Any] = {}
    for _, (_, content) in piece:
        fields |= content if isinstance(content, dict) else {}
    images = [
        Member(number, name, content, fields)
        for number, (name, content) in piece
        if isinstance(content, bytes | ImageError)
    ]
    return Piece(piece[-1][0], images)


def data_of(archive: Any, info: tarfile.TarInfo, max_bytes: int) -> bytes | ImageError:
    if not info.isfile() or info.issparse():
        return ImageError("unsupported", f"a link to {info.linkname} inside the archive" if info.linkname else "sparse")
    if info.size < 0:
        return ImageError("corrupt", f"a size of {info.size} bytes")
    if info.size > max_bytes:
        return ImageError("too_large", f"{info.size} bytes; the limit is {max_bytes}")
    try:
        archive.seek(info.offset_data)
        data = archive.read(info.size)
    except StreamDamage as error:
        return ImageError(error.kind, f"the archive is damaged here ({error})")
    if len(data) < info.size:
        return ImageError("truncated", f"the archive ends after {len(data)} of its {info.size} bytes")
    return data


def fields_of(extension: str, data: bytes) -> dict[str, Any]:
    """What a sidecar says: the fields of a JSON object, the text or number of another file; nothing if binary.

    Text is what its byte order mark says, else UTF-8, else Windows' Latin-1. JSON that is none is kept as text.
    """
    text = None if extension.lower().rpartition(".")[2] in BINARY else _text_in(data)
    if text is None:
        return {}
    if extension.lower().endswith("json"):
        with contextlib.suppress(ValueError, RecursionError):
            return parse_json(text, extension)
    text = text.strip()
    # 007 is a code: only what is written as a number is one.
    return {extension: number_of(text) if extension in NUMBERS and WHOLE.fullmatch(text) else text}


def _text_in(data: bytes) -> str | None:
    """The text in a sidecar; None where its control characters say that it is none."""
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    for encoding in (marked,) if marked else ("utf-8", "cp1252", "latin-1"):
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            return None if CONTROL.search(text) else text
    return None

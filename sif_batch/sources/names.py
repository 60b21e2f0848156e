"""Keys, paths and uris: how an image is named, whatever bytes its file name holds."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from sif_batch.storage.urls import is_local

ESCAPED = re.compile(r"%([89A-F][0-9A-F])")
COLONS = "%3A%3A"  # `::` in a name, since it stands before a member


def text_of(path: str) -> str:
    """A local path as Unicode text: bytes that are not UTF-8 (surrogates here) become %XX."""
    if path.isascii():
        return path
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in path)


def local_of(text: str) -> str:
    """The local path that `text_of` was given: %XX of a byte that is not ASCII is undone if that file exists."""
    if not ESCAPED.search(text) or os.path.lexists(text):
        return text
    raw = ESCAPED.sub(lambda match: chr(0xDC00 + int(match[1], 16)), text)
    if os.path.lexists(raw):
        return raw
    folder, *names = os.path.abspath(text).split("/")
    return next(_on_disk(f"{folder}/", names), text)


def _on_disk(folder: str, names: Sequence[str]) -> Iterator[str]:
    """The paths below a folder whose names, one after the other, are these as text: some escaped, some spelled so."""
    if not names:
        yield folder
        return
    try:
        listed = os.listdir(folder) if ESCAPED.search(names[0]) else [names[0]]
    except OSError:
        return
    for name in sorted(name for name in listed if text_of(name) == names[0]):
        if os.path.lexists(path := os.path.join(folder, name)):
            yield from _on_disk(path, names[1:])


def keys_by(name: str) -> list[str]:
    """The keys that a name may stand for, as it is or as it stands on disk: not UTF-8, in NFD, with `::` in it."""
    text = unicodedata.normalize("NFC", text_of(name))
    pieces = text.split("::")
    tried = [text, COLONS.join(pieces)]
    for cut in range(1, len(pieces)):  # which of them stands before the member
        tried.append(f"{COLONS.join(pieces[:cut])}::{member_name(COLONS.join(pieces[cut:]))}")
    return list(dict.fromkeys(tried))


def key_of(source: str, path: str) -> str:
    """The identity of an entry: source name / path in it, in NFC, a literal `::` escaped."""
    return unicodedata.normalize("NFC", f"{source}/{path}").replace("::", COLONS)


def path_in(fs: Any, path: str) -> str:
    """A recorded path as its filesystem has it: on a disk as `local_of` finds it, in a bucket as it is."""
    return local_of(path) if is_local(fs) else path


def member_key(source: str, path: str, member: str) -> str:
    """The identity of an image in a container: the container's key, `::` and the member without its ./"""
    name = unicodedata.normalize("NFC", member_name(member)).replace("::", COLONS)
    return f"{key_of(source, path)}::{name}"


def member_name(name: str) -> str:
    """A member's name without the ./ that tar puts before it."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def hash_of(key: str) -> int:
    """The 64-bit hash whose order is the order of rows: blake2b-8 of the key, big-endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def folder_of(path: str) -> str:
    """The parent path inside the source; empty at its top."""
    return path.rpartition("/")[0]

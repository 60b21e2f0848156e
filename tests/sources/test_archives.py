"""Archives of every kind and name, whole, one behind the other, damaged and hostile: no image vanishes."""

import bz2
import gzip
import io
import itertools
import lzma
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked
from test_tars import MAX, images, is_image, read, tar_bytes

from sif_batch.failures import ImageError
from sif_batch.sources import inflation, zips
from sif_batch.sources.archives import OpenArchive, read_archive

SOME = [(f"{n}.jpg", random.Random(n).randbytes(3000)) for n in range(4)]
MORE = [(f"{n}.jpg", random.Random(n).randbytes(3000)) for n in range(4, 7)]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}
packed = pytest.mark.parametrize("codec", list(PACK))
compressed = pytest.mark.parametrize("codec", [codec for codec in PACK if codec != "plain"])


def zip_bytes(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED, streamed: bool = False) -> bytes:
    sink = io.BytesIO()

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return sink.write(data)

    with zipfile.ZipFile(Pipe() if streamed else sink, "w", method) as archive:  # type: ignore[arg-type]
        for name, data in members:
            archive.writestr(name, data)
    return sink.getvalue()


@packed
def test_an_archive_is_what_its_bytes_say(codec: str) -> None:
    data = PACK[codec](tar_bytes(SOME))
    found, damage = read(data)
    assert (images(found), damage) == (dict(SOME), None)
    for before, piece in itertools.pairwise(found):
        assert read(data, before.last + 1)[0][0] == piece
    opened = OpenArchive(io.BytesIO(data))
    assert [opened.read(name, MAX) for name, _ in reversed(SOME)] == [content for _, content in reversed(SOME)]


@packed
@pytest.mark.parametrize("zeros", [0, 512, 512 * 5000])
def test_archives_one_behind_the_other_are_all_read(codec: str, zeros: int) -> None:
    """As `cat a.tar b.tar` has it, packed before or after."""
    both = tar_bytes(SOME) + bytes(zeros) + tar_bytes(MORE)
    found, damage = read(PACK[codec](both))
    assert (images(found), damage) == (dict(SOME + MORE), None)
    found, damage = read(PACK[codec](tar_bytes(SOME)) + PACK[codec](tar_bytes(MORE)))
    assert (images(found), damage) == (dict(SOME + MORE), None)
    assert OpenArchive(io.BytesIO(PACK[codec](both))).read(MORE[-1][0], MAX) == MORE[-1][1]
    for piece, after in itertools.pairwise(found):
        assert read(PACK[codec](both), piece.last + 1)[0][0] == after


@packed
@pytest.mark.parametrize("junk", [b"junk", b"x" * 3000, b"\0" * 700 + b"x"])
def test_bytes_behind_the_end_mark_are_told(codec: str, junk: bytes) -> None:
    found, damage = read(PACK[codec](tar_bytes(SOME) + junk))
    assert (images(found), damage) == (dict(SOME), "corrupt")
    found, damage = read(PACK[codec](tar_bytes(SOME)) + junk)
    assert (images(found), damage) == (dict(SOME), "corrupt")


def test_an_archive_behind_others_bytes_is_found() -> None:
    found, damage = read(tar_bytes(SOME) + b"x" * 777 + tar_bytes(MORE))
    assert (images(found), damage) == (dict(SOME + MORE), "corrupt")
    found, damage = read(tar_bytes(SOME)[: 512 * 7 * 3] + tar_bytes(MORE))  # the first one cut between two members
    assert images(found).items() >= dict(SOME[:3] + MORE).items()


@compressed
def test_other_data_behind_compressed_are_told(codec: str) -> None:
    found, damage = read(PACK[codec](tar_bytes(SOME)) + tar_bytes(MORE))
    assert (images(found), damage) == (dict(SOME), "corrupt")


@compressed
def test_a_compressed_archive_cut_anywhere_gives_what_it_has(codec: str) -> None:
    members = [(name, random.Random(name).randbytes(500_000)) for name in ("a.jpg", "b.jpg", "c.jpg")]
    data = PACK[codec](tar_bytes(members))
    for end in range(8, len(data), len(data) // 9):
        found, damage = read(data[:end])
        assert damage == "truncated"
        got = images(found)
        assert {n: content for n, content in got.items() if content != "truncated"}.items() <= dict(members).items()
        assert len(got) >= (end - 900_000) // 500_000  # bzip2 packs so much at once


@compressed
@checked
@given(st.integers(0, 2**30), st.binary(min_size=1, max_size=40))
def test_damaged_compressed_bytes_never_raise_anything_else(codec: str, place: int, junk: bytes) -> None:
    data = bytearray(PACK[codec](tar_bytes(SOME)))
    at = place % len(data)
    data[at : at + len(junk)] = junk
    found, damage = read(bytes(data))
    assert damage in (None, "corrupt", "truncated")
    if damage is None and codec != "zstd":  # which has no checksum unless asked for
        assert images(found) == dict(SOME)


def inflating(codec: str, size: int) -> bytes:
    """A tar with one member of so many zeros, without building it."""
    info = tarfile.TarInfo("0.jpg")
    info.size = size
    head = io.BytesIO()
    with tarfile.open(fileobj=head, mode="w") as archive:
        archive.addfile(info)
    block = PACK[codec](bytes(2**24))
    return PACK[codec](head.getvalue()[:512]) + block * (size // 2**24) + PACK[codec](tar_bytes([("1.jpg", b"one")]))


@compressed
def test_what_inflates_beyond_all_measure_is_told(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = inflating(codec, 2**26)
    found, damage = read(data)
    assert (images(found), damage) == ({"0.jpg": "too_large", "1.jpg": b"one"}, None)
    monkeypatch.setattr(inflation, "GRACE", 2**25)
    found, damage = read(data)
    assert (images(found), damage) == ({"0.jpg": "too_large"}, "too_large")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_of_many_megabytes_is_a_bad_header(form: int) -> None:
    data = tar_bytes([("x" * 2**22 + ".jpg", b"1")], form) + tar_bytes(SOME)
    found, damage = read(data)
    assert images(found).items() >= dict(SOME).items() and damage == "corrupt"


def test_members_above_the_folder_and_in_its_own_are_no_hidden_ones() -> None:
    names = ["../a.jpg", "x/./b.jpg", "x/../c.jpg", "./../d.jpg", "/e.jpg", "....jpg"]
    seen: list[str] = []
    list(read_archive(io.BytesIO(tar_bytes([(name, b"1") for name in names])), 0, lambda n: not seen.append(n), MAX))  # type: ignore[func-returns-value]
    assert seen == ["a.jpg", "x/b.jpg", "x/c.jpg", "d.jpg", "/e.jpg", "....jpg"]


def test_a_pax_name_that_is_not_utf_8() -> None:
    raw = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        archive.addfile(tarfile.TarInfo(raw))
    assert list(images(read(sink.getvalue())[0])) == ["caf%E9.jpg"]


# Zip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_zip_is_read_as_a_tar(method: int, streamed: bool) -> None:
    members = [("a/1.json", b'{"n": 1}'), ("a/1.jpg", b"one" * 99), ("a/2.cls", b"7"), ("a/2.jpg", b"two"), ("x", b"")]
    data = zip_bytes([("a/", b""), *members], method, streamed)
    found, damage = read(data)
    assert damage is None
    assert [(m.ordinal, m.name, m.data, m.fields) for piece in found for m in piece.members] == [
        (2, "a/1.jpg", b"one" * 99, {"n": 1}),
        (4, "a/2.jpg", b"two", {"cls": 7}),
    ]
    for number, piece in enumerate(found):
        assert read(data, piece.last + 1) == (found[number + 1 :], None)
    assert OpenArchive(io.BytesIO(data)).read("a/2.jpg", MAX) == b"two"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_zip_cut_anywhere_gives_what_it_has(method: int, streamed: bool) -> None:
    data = zip_bytes(SOME, method, streamed)
    known = streamed and method != zipfile.ZIP_DEFLATED
    for end in range(4, len(data), 101):
        found, damage = read(data[:end])
        assert damage in (("truncated",) if zips.END not in data[:end] else ("truncated", "corrupt"))
        good = {name: content for name, content in images(found).items() if isinstance(content, bytes)}
        assert good.items() <= dict(SOME).items() and (known or len(good) >= end // 3200 - 1 or method > 8)


@checked
@given(st.sampled_from(METHODS), st.booleans(), st.integers(0, 2**30), st.binary(min_size=1, max_size=40))
def test_a_damaged_zip_never_loses_an_image_silently(method: int, streamed: bool, place: int, junk: bytes) -> None:
    data = bytearray(zip_bytes(SOME, method, streamed))
    at = place % len(data)
    data[at : at + len(junk)] = junk
    found, damage = read(bytes(data))
    assert damage in (None, "corrupt", "truncated")
    if damage is None:
        assert len([m for piece in found for m in piece.members]) >= 3


def test_zips_one_behind_the_other_are_told() -> None:
    found, damage = read(zip_bytes(SOME) + zip_bytes(MORE))
    assert (images(found), damage) == (dict(MORE), "corrupt")
    for junk in (b"x", b"x" * 100_000, zip_bytes(MORE)[:500]):
        found, damage = read(zip_bytes(SOME) + junk)
        assert (images(found), damage) == (dict(SOME), "corrupt" if len(junk) < 2**16 else "truncated")
    stub = b"#!/bin/sh\n" * 9 + zip_bytes(SOME)  # what unpacks itself
    with pytest.raises(ImageError):
        list(read_archive(io.BytesIO(stub), 0, is_image, MAX))
    assert read(zip_bytes([])) == ([], None)


def test_members_of_a_zip_that_are_not_read_are_rows() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in SOME:
            archive.writestr(name, data)
        archive.writestr("big.jpg", bytes(2**21), zipfile.ZIP_DEFLATED)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "0.jpg")
    data = bytearray(sink.getvalue())
    for at, method in ((0, None), (1, 9)):  # encrypted; deflate64
        place = -1
        for _ in range(at + 1):
            place = data.find(b"PK\1\2", place + 1)
        if method is None:
            data[place + 8] |= 1
        else:
            data[place + 10 : place + 12] = struct.pack("<H", method)
    found, damage = read(bytes(data), max_bytes=2**20)
    assert damage is None
    assert images(found) == {
        "0.jpg": "unsupported",
        "1.jpg": "unsupported",
        "2.jpg": SOME[2][1],
        "3.jpg": SOME[3][1],
        "big.jpg": "too_large",
        "link.jpg": "unsupported",
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_zip_member_that_holds_more_than_it_says_is_corrupt(method: int) -> None:
    data = bytearray(zip_bytes([("zeros.jpg", bytes(2**24)), *SOME], method))
    place = data.find(b"PK\1\2")
    data[place + 24 : place + 28] = struct.pack("<I", 1000)
    found, _ = read(bytes(data))
    assert images(found) == {"zeros.jpg": "corrupt", **dict(SOME)}


def test_names_in_a_zip() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("é/日.jpg", b"1")
        archive.writestr("a.jpg", b"2")
    whole = sink.getvalue()
    assert images(read(whole)[0]) == {"é/日.jpg": b"1", "a.jpg": b"2"}
    broken = whole.replace("é".encode(), b"\xff\xfe")  # said to be UTF-8
    found, damage = read(broken)
    assert images(found) == {"%FF%FE/日.jpg": "corrupt", "a.jpg": b"2"} and damage == "corrupt"


def test_a_large_zip_has_sizes_of_64_bits(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in SOME:
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    for end in (None, -30):
        found, damage = read(sink.getvalue()[:end])
        assert images(found) == dict(SOME) and damage == (None if end is None else "truncated")

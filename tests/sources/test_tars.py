"""Tar archives against Python's own tarfile, whole and damaged."""

import gzip
import io
import json
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.failures import ImageError
from sif_batch.sources.archives import read_archive
from sif_batch.sources.containers import Piece
from sif_batch.sources.tars import MAX_PIECE, fields_of

MAX = 2**20


def is_image(name: str) -> bool:
    return name.rpartition(".")[2] in ("jpg", "png", "JPG")


def tar_bytes(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def read(data: bytes, first: int = 0, max_bytes: int = MAX) -> tuple[list[Piece], str | None]:
    """The pieces, and the kind of damage."""
    pieces = []
    try:
        for piece in read_archive(io.BytesIO(data), first, is_image, max_bytes):
            pieces.append(piece)
    except ImageError as error:
        return pieces, error.kind
    return pieces, None


def images(pieces: list[Piece]) -> dict[str, Any]:
    return {m.name: m.data if isinstance(m.data, bytes) else m.data.kind for piece in pieces for m in piece.members}


names = st.lists(
    st.sampled_from(["a.jpg", "a.json", "a.png", "b.jpg", "b.txt", "x/a.jpg", "x/a.cls", "dir.v1/a.jpg", "LICENSE"]),
    max_size=12,
)


@checked
@given(names, st.booleans(), st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_every_image_comes_once_in_order_and_any_piece_can_be_the_first(
    given: list[str], gzipped: bool, form: int
) -> None:
    members = [(name, f"{i} {name}".encode() * 50) for i, name in enumerate(given)]
    data = tar_bytes(members, form)
    data = gzip.compress(data) if gzipped else data
    pieces, damage = read(data)
    assert damage is None
    found = [(m.ordinal, m.name, m.data) for piece in pieces for m in piece.members]
    assert found == [(i, name, content) for i, (name, content) in enumerate(members) if is_image(name)]
    assert [piece.last for piece in pieces] == sorted({piece.last for piece in pieces})
    assert not given or pieces[-1].last == len(given) - 1
    for number, piece in enumerate(pieces):
        assert read(data, piece.last + 1) == (pieces[number + 1 :], None)


def test_members_of_one_key_share_its_fields() -> None:
    data = tar_bytes(
        [
            ("./cat/1.json", json.dumps({"n": 1, "x": 1.5, "ok": True, "tags": ["a"], "none": None}).encode()),
            ("./cat/1.jpg", b"one"),
            ("./cat/1.cls", b"7\n"),
            ("./cat/1.seg.png", b"mask"),
            ("./cat/2.jpg", b"two"),
            ("./cat/2.txt", "schön\n".encode()),
            ("./cat/2.npy", b"\x93NUMPY\xff"),
        ]
    )
    pieces, damage = read(data)
    assert damage is None and [piece.last for piece in pieces] == [3, 6]
    shared = {"n": 1, "x": 1.5, "ok": True, "tags": ["a"], "none": None, "cls": 7}
    assert [(m.name, m.fields) for m in pieces[0].members] == [("./cat/1.jpg", shared), ("./cat/1.seg.png", shared)]
    assert [(m.name, m.fields) for m in pieces[1].members] == [("./cat/2.jpg", {"txt": "schön"})]


SURROGATES = {"a\ufffd": "b \ufffd", "c": ["\U0001f600", {"\ufffd": "\ufffd"}]}
NUMBERS = {"a": {"@decimal": "1E+999"}, "b": {"@decimal": "12345678901234567890.5"}, "c": 9.5, "d": {"@double": "-inf"}}


@pytest.mark.parametrize(
    ("extension", "data", "fields"),
    [
        ("json", b'{"a": NaN, "b": 1}', {"a": None, "b": 1}),
        ("meta.json", b"[1, 2]", {"meta.json": [1, 2]}),
        ("json", b"{broken", {"json": "{broken"}),
        ("json", b"[" * 100_000, {"json": "[" * 100_000}),
        ("json", b"[" * 300 + b"]" * 300, {"json": "[" * 300 + "]" * 300}),
        ("json", rb'{"a\ud83d": "b \udc00", "c": ["\ud83d\ude00", {"\udfff": "\ud800"}]}', SURROGATES),
        ("json", b'{"a": 1e999, "b": 12345678901234567890.5, "c": 9.50, "d": -Infinity}', NUMBERS),
        ("json", b'{"a": ' + b"9" * 5000 + b"}", {"a": {"@decimal": "9" * 5000}}),
        ("json", b'{"a": {"@decimal": "x"}}', {"a": '{"@decimal": "x"}'}),
        ("json", b'{"@decimal": "x"}', {"@decimal": "x"}),
        ("json", '{"caf\xe9": "\xfc"}'.encode("latin-1"), {"caf\xe9": "\xfc"}),
        ("json", '{"caf\xe9": "\xfc"}'.encode("utf-16"), {"caf\xe9": "\xfc"}),
        ("txt", "caf\xe9".encode("latin-1"), {"txt": "caf\xe9"}),
        ("txt", "caf\xe9".encode("utf-16"), {"txt": "caf\xe9"}),
        ("txt", b"\xff\xfe" + "caf\xe9".encode("utf-16-le"), {"txt": "caf\xe9"}),
        ("txt", b"\xfe\xff" + "caf\xe9".encode("utf-16-be"), {"txt": "caf\xe9"}),
        ("txt", "10 €".encode("cp1252"), {"txt": "10 €"}),
        ("npy", b"\x93NUMPY\xff", {}),
        ("depth", b"\x93\x01\xff", {}),
        ("id", b"0012345678905", {"id": "0012345678905"}),
        ("id", b"-7", {"id": -7}),
        ("json", "\ufeff{}".encode(), {}),
        ("cls", b"12", {"cls": 12}),
        ("cls", b"cat", {"cls": "cat"}),
        ("txt", b"12", {"txt": "12"}),
        ("bin", b"\x00\x01", {}),
        ("bin", b"\xff\xfe", {}),
        ("id", b"9" * 30, {"id": int("9" * 30)}),
    ],
)
def test_fields_of_a_sidecar(extension: str, data: bytes, fields: dict[str, Any]) -> None:
    assert fields_of(extension, data) == fields


def test_many_images_of_one_key_come_in_bounded_pieces() -> None:
    data = tar_bytes([(f"frame.{i:04d}.jpg", b"x") for i in range(3 * MAX_PIECE + 1)])
    pieces, _ = read(data)
    assert [len(piece.members) for piece in pieces] == [MAX_PIECE] * 3 + [1]
    assert read(data, pieces[0].last + 1)[0] == pieces[1:]


def test_links_folders_and_large_members() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "" if kind == tarfile.DIRTYPE else "a.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("big.jpg")
        info.size = 100
        tar.addfile(info, io.BytesIO(b"x" * 100))
    found, damage = read(sink.getvalue(), max_bytes=99)
    assert images(found) == {"l.jpg": "unsupported", "h.jpg": "unsupported", "big.jpg": "too_large"}
    assert damage is None


def test_names_that_are_long_or_not_utf_8() -> None:
    long, raw = "x/" * 200 + "a.jpg", b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name in (long, raw):
            tar.addfile(tarfile.TarInfo(name))
    assert list(images(read(sink.getvalue())[0])) == [long, "caf%E9.jpg"]


MEMBERS = [(f"{i}.jpg", bytes([i]) * 700) for i in range(5)]  # a header and two blocks each
SPAN = 3 * 512


def test_an_archive_cut_anywhere_gives_what_it_has_and_says_so() -> None:
    whole = tar_bytes(MEMBERS)
    for end in [*range(0, 5 * SPAN, 100), *range(0, 5 * SPAN, 512)]:
        found, damage = read(whole[:end])
        complete = {name: data for i, (name, data) in enumerate(MEMBERS) if i * SPAN + 512 + 700 <= end}
        assert damage == "truncated"
        got = images(found)
        assert {name: data for name, data in got.items() if isinstance(data, bytes)} == complete
        assert set(got.values()) - set(complete.values()) <= {"truncated"}
    assert read(whole[: 5 * SPAN + 512])[1] is None  # one block of zeros is an end


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("position", [0, 150, 156])
def test_a_damaged_header_costs_its_own_image_alone(number: int, position: int) -> None:
    data = bytearray(tar_bytes(MEMBERS))
    data[number * SPAN + position] ^= 0xFF
    found, damage = read(bytes(data))
    assert damage == "corrupt"
    assert images(found) == {name: content for i, (name, content) in enumerate(MEMBERS) if i != number}


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"x" * 5000, b"\x1f\x8b" + b"x" * 2000])
def test_what_is_no_archive_is_damage_alone(data: bytes) -> None:
    found, damage = read(data)
    assert found == [] and damage in ("corrupt", "truncated")


def test_a_compressed_archive_that_is_cut_or_damaged() -> None:
    random = bytes((i * i * 31 + i // 7) % 251 for i in range(60_000))
    members = [(f"{i}.jpg", random[i * 5000 : (i + 1) * 5000]) for i in range(12)]
    packed = gzip.compress(tar_bytes(members))
    found, damage = read(packed[: len(packed) // 2])
    good = {name: data for name, data in images(found).items() if isinstance(data, bytes)}
    assert damage == "truncated" and good.items() <= dict(members).items()
    broken = bytearray(packed)
    broken[len(broken) // 2] ^= 0xFF
    _, damage = read(bytes(broken))
    assert damage is not None


@checked
@given(st.integers(0, 2**30), st.binary(min_size=1, max_size=40))
def test_damaged_bytes_never_raise_anything_else(place: int, junk: bytes) -> None:
    data = bytearray(tar_bytes(MEMBERS, tarfile.PAX_FORMAT))
    at = place % len(data)
    data[at : at + len(junk)] = junk
    found, damage = read(bytes(data))
    assert damage in (None, "corrupt", "truncated")
    assert len(images(found)) >= 3

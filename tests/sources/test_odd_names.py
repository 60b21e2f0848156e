"""Names that no key can hold as they are: not UTF-8, in NFD, with `::`; each is found by what stands on disk."""

import io
import os
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Finished
from PIL import Image

from sif_batch.config import Source
from sif_batch.query.index import Index
from sif_batch.release.metadata import join_metadata, read_metadata
from sif_batch.sources.listing import list_sources
from sif_batch.sources.names import keys_by, local_of, text_of
from sif_batch.sources.originals import read_uri, split_member

Run = Callable[..., Finished]
RAW, SPELLED = b"lat\xe9.png", b"lat%E9.png"
NFD = unicodedata.normalize("NFD", "né.png").encode()


def picture(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(data := io.BytesIO(), "PNG")
    return data.getvalue()


def put(folder: Path, *names: bytes) -> Path:
    """Different images of these names, all of the same time and of about the same size."""
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(picture(number))
        os.utime(path, ns=(0, number))
    return folder


@pytest.mark.parametrize("names", [(RAW, SPELLED), (SPELLED, RAW), (b"caf\xe9/1.png", b"caf%E9/1.png")])
def test_of_two_names_that_become_one_the_spelled_one_is_embedded(
    sif_batch: Run, tmp_path: Path, names: tuple[bytes, bytes]
) -> None:
    source, root = put(tmp_path / "s", *names, b"plain.png"), tmp_path / "root"
    night = sif_batch("run", source, root, "--no-gate", "--json")
    assert night.code == 0, night.err
    assert [night.json[n] for n in ("listed", "embedded", "failed_by_kind")] == [3, 2, {"duplicate_key": 1}]
    spelled = next(name for name in names if b"%" in name).decode()
    index = Index.open(root)
    uri = index.roster.take(index.rows_of([f"s/{spelled}"]), ["uri"])["uri"][0].as_py()
    assert read_uri(uri) == (source / spelled).read_bytes()
    again = sif_batch("run", root, "--json").json
    assert [again[n] for n in ("outcome", "unchanged", "embedded")] == ["unchanged", 2, 0]
    (source / spelled).unlink()
    alone = sif_batch("run", root, "--no-gate", "--json").json
    assert [alone[n] for n in ("listed", "embedded", "failed")] == [2, 1, 0]


def test_twins_stay_in_order_whatever_their_times(tmp_path: Path) -> None:
    put(tmp_path, b"\xe9\xe9.png", b"%E9\xe9.png", b"\xe9%E9.png", b"%E9%E9.png", b"a.png", b"z.png")
    entries = list_sources([Source(name="s", url=str(tmp_path))]).entries.to_pylist()
    assert [entry["path"] for entry in entries] == ["%E9%E9.png"] * 4 + ["a.png", "z.png"]
    assert [entry["version"].partition("#")[2] for entry in entries] == ["", "2", "3", "4", "", ""]
    size = (tmp_path / "%E9%E9.png").stat().st_size
    assert entries[0]["version"] == f"{size}-3"


@pytest.mark.parametrize("name", [b"\xe9%E9.png", b"caf\xe9/x%E9.png", b"caf\xe9%/x\xff.png", b"%E9/\xe9/%e9.png"])
def test_a_file_is_found_whose_name_is_escaped_in_part(tmp_path: Path, name: bytes) -> None:
    put(tmp_path, name, b"caf%E9/other.png")
    path = os.path.join(tmp_path, os.fsdecode(name))
    assert local_of(text_of(path)) == path


def test_an_image_is_found_by_the_name_that_stands_on_disk(sif_batch: Run, tmp_path: Path) -> None:
    names = (RAW, NFD, b"a::b.png", b"50%E9.png")
    source, root = put(tmp_path / "s", *names), tmp_path / "root"
    with tarfile.open(tmp_path / "s/t::u.tar", "w") as tar:
        for number, member in enumerate(("m::n.png", "./m" + NFD.decode())):
            info = tarfile.TarInfo(member)
            info.size = len(data := picture(10 + number))
            tar.addfile(info, io.BytesIO(data))
    table = pa.table({"key": [os.fsdecode(b"s/" + name).encode(errors="surrogateescape") for name in names]})
    pq.write_table(table.append_column("x", pa.array(range(4))), tmp_path / "table.parquet")
    more = ("--include", "*.tar", "--metadata", tmp_path / "table.parquet", "--no-gate", "--json")
    night = sif_batch("run", source, root, *more)
    assert (night.code, night.json["embedded"], night.json["failed"]) == (0, 6, 0), night.err
    index = Index.open(root)
    for number, name in enumerate(names):
        on_disk = os.fsdecode(name)
        key = keys_by(f"s/{on_disk}")[1 if "::" in on_disk else 0]
        hit = index.search(key=f"s/{on_disk}", k=5)[0]
        assert hit.key != key
        row = index.roster.take(np.array([index.row_of(f"s/{on_disk}")]), ["key", "uri", "x"]).to_pylist()[0]
        assert (row["key"], row["x"]) == (key, number)
        assert read_uri(row["uri"]) == Path(source, on_disk).read_bytes()
        for spelled in (f"s/{on_disk}", on_disk, f"{source}/{on_disk}", row["uri"], key):
            assert sif_batch("explain", root, spelled, "--json").json["key"] == key
        assert sif_batch("search", root, "--key", f"s/{on_disk}", "--json").code == 0
    for member in ("m::n.png", "./m" + NFD.decode()):
        row = index.roster.take(np.array([index.row_of(f"s/t::u.tar::{member}")]), ["key", "uri"]).to_pylist()[0]
        assert row["key"].startswith("s/t%3A%3Au.tar::m") and read_uri(row["uri"])
        assert sif_batch("explain", root, row["uri"], "--json").json["key"] == row["key"]
    for name in names:
        assert len(sif_batch("erase", root, os.fsdecode(name), "--json").json["images"]) == 1


def test_a_row_of_metadata_stands_for_one_key_alone(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "s/é.png")
    keys = ["s/é.png", "s/a%3A%3Ab.png", "s/a::b.png", "s/t::m.png"]
    live = pa.table({"key": keys, "fields": pa.nulls(4, pa.large_string())})
    (tmp_path / "t.csv").write_text(f"key,x\n{nfd},1\ns/a::b.png,2\ns/t::m.png,3\n")
    joined, _ = join_metadata(live, read_metadata(str(tmp_path / "t.csv")))
    assert joined["fields"].to_pylist() == ['{"x":1}', '{"x":2}', '{"x":2}', '{"x":3}']


@pytest.mark.parametrize(
    ("uri", "archive", "member"),
    [
        ("tar://m.png::/a.tar", "/a.tar", "m.png"),
        ("tar://m::n.png::HERE/a::b.tar", "HERE/a::b.tar", "m::n.png"),
        ("tar://m:::HERE/a::b.tar", "HERE/a::b.tar", "m:"),
        ("tar://m::n.png::s3://bucket/a::b.tar", "s3://bucket/a::b.tar", "m::n.png"),
    ],
)
def test_the_uri_of_a_member_is_told_apart(tmp_path: Path, uri: str, archive: str, member: str) -> None:
    (tmp_path / "a::b.tar").touch()
    here = str(tmp_path)
    assert split_member(uri.replace("HERE", here)) == (archive.replace("HERE", here), member)

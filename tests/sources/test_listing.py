import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.sources.listing import LISTING_SCHEMA, Listing, list_sources, listing_names, parse_sources
from sif_batch.storage.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources: `cats` of two images and a text, `dogs` of one image."""
    for name in ("cats/b.jpg", "cats/a/z.jpg", "cats/notes.txt", "dogs/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/test-listing/Summer Photos/1.jpg", b"image")
    yield fs
    fs.rm("/test-listing", recursive=True)


def test_a_listing_is_in_order_of_source_and_path(folder: Path) -> None:
    listing = list_sources(parse_sources([str(folder / "dogs"), str(folder / "cats")]))
    assert listing.entries.schema == LISTING_SCHEMA
    rows = [(row["source"], row["path"], row["size"]) for row in listing.entries.to_pylist()]
    assert rows == [("cats", "a/z.jpg", 5), ("cats", "b.jpg", 5), ("dogs", "1.jpg", 5)]
    assert listing.ignored == {"cats": 1, "dogs": 0}


def test_the_order_of_paths_is_that_of_their_utf_8_bytes(tmp_path: Path) -> None:
    names = ["Z.jpg", "a.jpg", "a/b.jpg", "a-b.jpg", "é.jpg", "e\u0301.jpg", "日本.jpg", "\U0001f600.jpg", "\uffe6.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if not (tmp_path / name).is_dir():
            (tmp_path / name).write_bytes(b"image")
    listed = list_sources(parse_sources([f"s={tmp_path}"])).entries["path"].to_pylist()
    assert listed == sorted(names, key=str.encode)


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("/data/cats", "cats", "/data/cats"),
        ("/data/cats/", "cats", "/data/cats"),
        ("/data/My Cats (2024)", "my-cats-2024", "/data/My Cats (2024)"),
        ("/data/cats/*.jpg", "cats", "/data/cats/*.jpg"),
        ("/data/cats/**/*.jpg", "cats", "/data/cats/**/*.jpg"),
        ("pets=/data/cats", "pets", "/data/cats"),
        ("/data/猫", "source", "/data/猫"),
        ("/", "source", "/"),
        ("memory://bucket/Dogs", "dogs", "memory:///bucket/Dogs"),
        ("file:///data/cats", "cats", "/data/cats"),
    ],
)
def test_a_source_is_named_by_its_last_component_unless_named(text: str, name: str, url: str) -> None:
    assert parse_sources([text]) == (Source(name=name, url=url),)


def test_a_relative_path_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [source.url for source in parse_sources(["cats", "./dogs/"])] == [f"{folder}/cats", f"{folder}/dogs"]
    assert parse_sources(["."])[0].url == str(folder)


def test_the_home_folder_is_known(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert parse_sources(["~/cats", "d=~/dogs"])[0].url == f"{folder}/cats"


def test_two_sources_of_one_name_are_an_error() -> None:
    with pytest.raises(SifBatchError, match="two sources are named 'cats': /a/cats and /b/cats") as raised:
        parse_sources(["/a/cats", "/b/cats"])
    assert "other=/b/cats" in raised.value.remedy
    assert [source.name for source in parse_sources(["/a/cats", "other=/b/cats"])] == ["cats", "other"]


def test_globs_of_include_and_exclude_hold_for_each_source() -> None:
    for source in parse_sources(["/a", "/b"], include=("*.dat",), exclude=("x/*",)):
        assert (source.include, source.exclude) == (("*.dat",), ("x/*",))


def test_an_unknown_store_says_what_is_missing() -> None:
    with pytest.raises(SifBatchError) as raised:
        parse_sources(["nosuchstore://bucket/cats"])
    assert "nosuchstore" in str(raised.value) and raised.value.remedy


def test_a_source_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    place = os.path.join(tmp_path, os.fsdecode(b"caf\xe9"))
    os.mkdir(place)
    for refused in (lambda: parse_sources([place]), lambda: Store(place)):
        with pytest.raises(SifBatchError, match="is not UTF-8") as raised:
            refused()
        str(raised.value).encode()
        assert "link" in raised.value.remedy
    os.symlink(place, tmp_path / "cafe")
    assert parse_sources([str(tmp_path / "cafe")])[0].name == "cafe"


def test_a_source_that_is_not_there_stops_the_listing(folder: Path) -> None:
    with pytest.raises(SifBatchError, match=f"{folder}/birds: cannot be listed") as raised:
        list_sources(parse_sources([str(folder / "cats"), str(folder / "birds")]))
    assert raised.value.remedy


def test_an_empty_source_stops_the_listing(folder: Path) -> None:
    (folder / "birds").mkdir()
    with pytest.raises(SifBatchError, match="birds: no images found$") as raised:
        list_sources(parse_sources([str(folder / "cats"), str(folder / "birds")]))
    assert "check the path" in raised.value.remedy
    (folder / "birds/notes.txt").touch()
    with pytest.raises(SifBatchError, match="no images found .*ignored"):
        list_sources(parse_sources([str(folder / "birds")]))


def test_a_store_is_listed_like_a_folder(memory: fsspec.AbstractFileSystem) -> None:
    sources = parse_sources(["memory://test-listing/Summer Photos"])
    listing = list_sources(sources)
    assert sources[0].name == "summer-photos"
    assert listing.entries["path"].to_pylist() == ["1.jpg"]
    again = list_sources(sources)
    assert again.entries.equals(listing.entries)
    memory.pipe_file("/test-listing/Summer Photos/1.jpg", b"other")
    assert not list_sources(sources).entries.equals(listing.entries)


def test_a_listing_is_saved_once_while_it_stays_equal(folder: Path) -> None:
    store = Store(str(folder / "root"))
    sources = parse_sources([str(folder / "cats")])
    first = list_sources(sources)
    name = first.save(store)
    assert list_sources(sources).save(store) == name
    assert listing_names(store) == [name]
    os.utime(folder / "cats/b.jpg", ns=(0, 0))
    changed = list_sources(sources)
    assert changed.save(store) != name
    assert len(listing_names(store)) == 2
    assert Listing.load(store, name).entries.equals(first.entries)
    (folder / "cats/more.txt").touch()
    assert list_sources(sources).ignored == {"cats": 2}


def test_a_listing_comes_back_as_it_was_saved(folder: Path) -> None:
    store = Store(str(folder / "root"))
    listing = list_sources(parse_sources([str(folder / "cats"), str(folder / "dogs")]))
    name = listing.save(store)
    loaded = Listing.load(store, name)
    assert loaded.entries.equals(listing.entries) and loaded.ignored == listing.ignored
    assert pq.read_table(store.path(name)).num_rows == 3


def test_the_newest_listing_comes_first(folder: Path) -> None:
    store = Store(str(folder / "root"))
    for name in ("20260101T000000Z-bb.parquet", "20260102T000000Z-aa.parquet", "20251231T235959Z-cc.parquet"):
        store.create(f"listings/{name}", b"")
    assert [name[9:17] for name in listing_names(store)] == ["20260102", "20260101", "20251231"]
    assert listing_names(Store(str(folder / "no root"))) == []


def test_listings_of_one_second_come_in_the_order_they_were_saved(folder: Path) -> None:
    store, saved = Store(str(folder / "root")), []
    for number in range(3):
        (folder / f"dogs/{number}0.jpg").write_bytes(b"image")
        saved.insert(0, list_sources(parse_sources([str(folder / "dogs")])).save(store))
    assert listing_names(store) == saved

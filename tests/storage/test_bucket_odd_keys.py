"""Keys of buckets that no path can be, and the markers that consoles make for folders."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Finished
from odd_stores import serving
from PIL import Image

from scripts.engines import fetch
from scripts.engines.stores import azure_server, put_to_azure
from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.sources.files import open_source
from sif_batch.sources.listing import list_sources
from sif_batch.sources.originals import read_uri
from sif_batch.sources.reading import read_container, read_file
from sif_batch.storage import bucket_clients, bucket_filesystem, bucket_odd_keys
from sif_batch.storage.root import check_new
from sif_batch.storage.store import Store
from sif_batch.storage.urls import open_filesystem

Run = Callable[..., Finished]
ODD = ["a//b.png", "./x.png", "a/../x.png", "tab\t.png", "/x.png", "del\x7f.png"]


def picture(number: int) -> bytes:
    Image.new("RGB", (48, 48), (37 * number % 255, 200, 90)).save(data := io.BytesIO(), "PNG")
    return data.getvalue()


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A bucket's URL, and its objects."""
    for known in (bucket_clients.open_bucket, bucket_odd_keys.open_exactly, open_source):
        known.cache_clear()
    bucket_filesystem._digests.clear()
    objects: dict[str, bytes] = {}
    with serving(objects) as endpoint:
        said = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "STORAGE_EMULATOR_HOST": endpoint}
        said |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_CONFIG_FILE": os.devnull}
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        yield f"{request.param}://bucket", objects


@pytest.mark.engines
def test_odd_names_in_azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        server = azure_server(tmp_path)
        with server as said:
            for name, value in said.items():
                monkeypatch.setenv(name, value)
            for known in (bucket_clients.open_bucket, bucket_odd_keys.open_exactly, open_source):
                known.cache_clear()
            host = said["AZURE_STORAGE_CONNECTION_STRING"].partition("http://")[2].partition("/")[0]
            names = ["s/good.png", "s/a//b.png", "s/z/1.png", "s//x.png", "s/day/"]
            for number, name in enumerate(names):
                data = b"" if name.endswith("/") else picture(number)
                put_to_azure(host, f"bucket/{name}", {}, data, x_ms_blob_type="BlockBlob")
            source = Source(name="s", url="az://bucket/s")
            listing = list_sources([source])
            assert {f"s/{path}" for path in listing.entries["path"].to_pylist()} == set(names[:4])
            assert listing.ignored == {"s": 1}
            for entry in listing.entries.to_pylist():
                data = read_file(source, entry["path"], entry["size"], entry["version"], 2**20)
                assert data == picture(names.index(f"s/{entry['path']}"))
            piece = bucket_odd_keys.open_exactly("az", "bucket").get("s//x.png", {"range": (1, 4)})
            assert piece.to_bytes() == b"PNG" and piece.meta["size"] == len(picture(3))
    except fetch.Unavailable as reason:
        pytest.skip(f"no Azurite: {reason}")


def listed(url: str) -> tuple[list[str], int]:
    listing = list_sources([Source(name="s", url=url)])
    return listing.entries["path"].to_pylist(), listing.ignored["s"]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_key_is_listed_and_read_like_any_other(store: tuple[str, dict[str, bytes]], odd: str) -> None:
    url, objects = store
    objects |= {f"s/{name}": picture(number) for number, name in enumerate(["good.png", "z/1.png", odd])}
    source = Source(name="s", url=f"{url}/s")
    entries = list_sources([source]).entries.to_pylist()
    assert {entry["path"] for entry in entries} == {"good.png", "z/1.png", odd}
    for entry in entries:
        data = read_file(source, entry["path"], entry["size"], entry["version"], 2**20)
        assert data == objects[f"s/{entry['path']}"] == read_uri(f"{url}/s/{entry['path']}")


def test_a_key_that_is_odd_far_behind_costs_none_of_those_before(store: tuple[str, dict[str, bytes]]) -> None:
    url, objects = store
    objects |= {f"s/{number:05d}.png": b"image" for number in range(2500)} | {"s/01500//z.png": b"odd", "t.png": b"t"}
    paths, ignored = listed(f"{url}/s")
    assert len(paths) == len(set(paths)) == 2501 and ignored == 0
    assert len(listed(url)[0]) == 2502
    assert "01500//z.png" in paths
    assert {info["name"] for info in open_filesystem(url)[0].ls("bucket/s/01500")} == {"bucket/s/01500/"}


def test_markers_of_folders_are_ignored(store: tuple[str, dict[str, bytes]]) -> None:
    url, objects = store
    objects |= {"m/": b"", "m/empty/": b"", "m/empty.png": b"", "m/none": b"", "m/day/": b"", "m/day/x.png": b"image"}
    assert listed(f"{url}/m") == (["day/x.png", "empty.png", "none"], 3)
    objects["m/a//b.png"] = b"image"
    assert listed(f"{url}/m") == (["a//b.png", "day/x.png", "empty.png", "none"], 3)


def test_an_archive_of_an_odd_key_is_read(store: tuple[str, dict[str, bytes]]) -> None:
    url, objects = store
    with tarfile.open(fileobj=(data := io.BytesIO()), mode="w") as tar:
        info = tarfile.TarInfo("1.png")
        info.size = len(picture(1))
        tar.addfile(info, io.BytesIO(picture(1)))
    objects["s/a//b.tar"] = data.getvalue()
    source = Source(name="s", url=f"{url}/s", include=("*.tar",))
    (entry,) = list_sources([source]).entries.to_pylist()
    (piece,) = read_container(source, entry["path"], entry["version"], 0, 2**20)
    assert piece.members[0].data == picture(1)


def test_a_bucket_of_photos_is_no_root_and_one_with_a_marker_is(store: tuple[str, dict[str, bytes]]) -> None:
    url, objects = store
    objects |= {"root/": b"", "photos/a//b.png": b"image", "other/lease.json": b"{}", "other/runs/1/events.jsonl": b""}
    for name in ("root", "other", "absent"):
        check_new(Store(f"{url}/{name}"), "")
    with pytest.raises(SifBatchError, match="is not a ROOT and not empty"):
        check_new(Store(f"{url}/photos"), "")


def test_a_night_of_odd_keys(sif_batch: Run, store: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    url, objects = store
    objects |= {f"s/{name}": picture(number) for number, name in enumerate(["good.png", *ODD])} | {"s/": b""}
    for outcome in ("published", "unchanged"):
        night = sif_batch("run", f"n={url}/s", tmp_path / "root", "--no-gate", "--json").json
        assert [night[n] for n in ("outcome", "listed", "in_index", "ignored")] == [outcome, 7, 7, 1]

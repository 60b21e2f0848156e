import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from synthetic import listed

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.sources.files import base_of, local_version, open_source, remote_version, uri_prefix


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")


def found(url: object, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """The paths, in order, and how many files were ignored."""
    source = Source(name="s", url=str(url), include=include, exclude=exclude)
    paths, sizes, versions, ignored = listed(source)
    assert len(paths) == len(sizes) == len(versions) == len(set(paths))
    return sorted(paths), ignored


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    if fs.exists("/test-files"):
        fs.rm("/test-files", recursive=True)


def test_a_directory_is_listed_recursively(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "a/2.jpg", "a/b/c/3.jpg")
    assert found(tmp_path) == (["1.jpg", "a/2.jpg", "a/b/c/3.jpg"], 0)


def test_an_entry_has_its_size_and_version(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    os.utime(tmp_path / "1.jpg", ns=(0, 1_700_000_000_123_456_789))
    assert listed(Source(name="s", url=str(tmp_path))) == (["1.jpg"], [5], ["5-1700000000123456789"], 0)


def test_hidden_files_are_ignored_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", ".2.jpg", ".git/3.jpg", "a/.b/c/4.jpg", "a/.5.jpg", "a.b/6.jpg", "a./7.jpg")
    assert found(tmp_path) == (["1.jpg", "a./7.jpg", "a.b/6.jpg"], 4)


def test_entries_have_no_extension_or_one_that_pillow_registers(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.JPEG", "c", "d.WebP", "e.txt", "f.jpg.part", "g.", "README.md", "h.tar.gz", "i.tiff")
    assert found(tmp_path) == (["a.jpg", "b.JPEG", "c", "d.WebP", "i.tiff"], 5)


def test_every_extension_of_pillow_is_taken(tmp_path: Path) -> None:
    extensions = sorted(Image.registered_extensions())
    touch(tmp_path, *(f"x{extension}" for extension in extensions))
    assert found(tmp_path) == (sorted(f"x{extension}" for extension in extensions), 0)


def test_include_takes_in_what_its_name_leaves_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.dat", "a/3.dat", ".hidden/4.jpg", "5.txt")
    assert found(tmp_path, include=("*.dat",)) == (["1.jpg", "2.dat", "a/3.dat"], 2)
    assert found(tmp_path, include=("*.dat", ".hidden/*")) == ([".hidden/4.jpg", "1.jpg", "2.dat", "a/3.dat"], 1)


def test_exclude_leaves_out_and_is_stronger_than_include(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "thumbs/2.jpg", "a/thumbs/3.jpg", "4.dat", "thumbs/5.dat")
    assert found(tmp_path, exclude=("thumbs/*",)) == (["1.jpg", "a/thumbs/3.jpg"], 3)
    assert found(tmp_path, include=("*.dat",), exclude=("*thumbs/*",)) == (["1.jpg", "4.dat"], 3)


@pytest.mark.parametrize(
    ("glob", "paths"),
    [
        ("*.jpg", ["1.jpg", "12.jpg"]),
        ("?.jpg", ["1.jpg"]),
        ("[0-9]*.jpg", ["1.jpg", "12.jpg"]),
        ("**/*.jpg", ["1.jpg", "12.jpg", "a/3.jpg", "a/b/4.jpg"]),
        ("a/**", ["a/3.jpg", "a/5.png", "a/b/4.jpg"]),
    ],
)
def test_a_glob_takes_the_files_that_match(tmp_path: Path, glob: str, paths: list[str]) -> None:
    touch(tmp_path, "1.jpg", "12.jpg", "2.png", "a/3.jpg", "a/5.png", "a/b/4.jpg")
    base = base_of(f"{tmp_path}/{glob}")
    full = [os.path.join(base, path) for path in found(f"{tmp_path}/{glob}")[0]]
    assert full == [f"{tmp_path}/{path}" for path in paths]


def test_a_folder_in_the_glob_stands_in_the_uri_and_not_in_the_path(tmp_path: Path) -> None:
    touch(tmp_path, "2024/1.jpg", "2025/2.jpg", "2025/3.png")
    source = Source(name="s", url=f"{tmp_path}/2025/*.jpg")
    assert found(source.url) == (["2.jpg"], 0)
    assert uri_prefix(source) == f"{tmp_path}/2025/"


def test_a_glob_leaves_hidden_files_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", ".2.jpg")
    assert found(f"{tmp_path}/*.jpg")[0] == ["1.jpg"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "[2024] cats*/1.jpg")
    source = Source(name="s", url=f"{tmp_path}/[2024] cats*")
    assert found(source.url) == (["1.jpg"], 0)
    assert uri_prefix(source) == f"{tmp_path}/[2024] cats*/"


def test_a_single_file_is_a_source_of_one(tmp_path: Path) -> None:
    touch(tmp_path, "cats/1.jpg", "cats/2.jpg")
    source = Source(name="s", url=str(tmp_path / "cats/1.jpg"))
    assert found(source.url) == (["1.jpg"], 0)
    assert uri_prefix(source) == f"{tmp_path}/cats/"


def test_links_are_followed_and_a_loop_ends(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "a/there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a/3.jpg").symlink_to(tmp_path / "a/1.jpg")
    assert found(tmp_path / "a") == (
        # `up` leads to a folder above the source, in which ROOT may lie.
        ["1.jpg", "3.jpg", "there/2.jpg"],
        0,
    )


def test_a_dangling_link_is_listed(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    paths, sizes, versions, _ = listed(Source(name="s", url=str(tmp_path)))
    assert (sorted(paths), sizes, versions) == (["circle.jpg", "gone.jpg"], [0, 0], ["0-0", "0-0"])


def test_what_is_neither_file_nor_folder_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found(tmp_path) == (["1.jpg"], 0)


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"image")
    assert found(tmp_path) == (["caf%E9.jpg"], 0)


@pytest.mark.parametrize("url", ["/no/such/folder", "/no/such/*.jpg", "memory://test-files/no/such/folder"])
def test_a_source_that_is_not_there_says_so(url: str) -> None:
    with pytest.raises(SifBatchError, match="cannot be listed") as raised:
        found(url)
    assert url in str(raised.value) and "check the path" in raised.value.remedy


def test_a_memory_file_system_is_listed_like_a_folder(memory: fsspec.AbstractFileSystem) -> None:
    for path in ("1.jpg", "a/2.jpg", "a/.3.jpg", "a/b/4.txt"):
        memory.pipe_file(f"/test-files/{path}", b"image")
    url = "memory://test-files"
    assert found(url) == (["1.jpg", "a/2.jpg"], 2)
    assert found(f"{url}/**/*.jpg")[0] == ["1.jpg", "a/2.jpg"]
    assert found(f"{url}/a/*.jpg")[0] == ["2.jpg"]
    fs, base = open_source(Source(name="s", url=url))
    assert fs.cat_file(f"{base}/a/2.jpg") == b"image"
    with fsspec.open(uri_prefix(Source(name="s", url=url)) + "a/2.jpg") as file:
        assert file.read() == b"image"


def test_a_listing_of_a_store_is_never_an_old_one(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/test-files/1.jpg", b"image")
    assert found("memory://test-files")[0] == ["1.jpg"]
    memory.pipe_file("/test-files/2.jpg", b"image")
    assert found("memory://test-files")[0] == ["1.jpg", "2.jpg"]


def test_the_version_of_an_object_is_the_stores_digest_else_size_and_time() -> None:
    assert remote_version({"ETag": '"abc"', "size": 3, "mtime": 5}) == "abc"
    assert remote_version({"size": 3, "LastModified": "2026-01-01"}) == "3-2026-01-01"
    assert remote_version({"size": 3}) == "3-0"


def test_the_version_of_a_file_changes_with_its_content_or_time(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    first = local_version(os.stat(tmp_path / "1.jpg"))
    os.utime(tmp_path / "1.jpg", ns=(0, 1))
    assert local_version(os.stat(tmp_path / "1.jpg")) == "5-1" != first


def test_progress_is_told_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sif_batch.sources.files.REPORT_EVERY", 2)
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    told: list[int] = []
    listed(Source(name="s", url=str(tmp_path)), told.append)
    assert told == [2, 4]


def test_zero_byte_objects_that_stand_for_folders_are_no_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As consoles of object stores make them; s3fs and gcsfs name them with a slash at the end."""
    objects = {"a/": 0, "a/1.jpg": 3, "a/b/": 0, "a/empty.jpg": 0}

    class Bucket(MemoryFileSystem):
        def find(self, path: str, **options: object) -> dict[str, dict[str, object]]:
            return {f"{path}/{name}": {"size": size, "ETag": f'"{name}"'} for name, size in objects.items()}

        def exists(self, path: str, **options: object) -> bool:
            return True

    monkeypatch.setattr("sif_batch.sources.files.open_filesystem", lambda url: (Bucket(), "/bucket"))
    paths, sizes, versions, ignored = listed(Source(name="s", url="memory://bucket"))
    assert (paths, sizes, versions, ignored) == (["a/1.jpg", "a/empty.jpg"], [3, 0], ["a/1.jpg", "a/empty.jpg"], 2)

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from paths import REPOSITORY

from sif_batch.digests import digest, sha256_of
from sif_batch.errors import SifBatchError
from sif_batch.storage.store import Store
from sif_batch.storage.temporary_files import HOST, SWEEP_AFTER_S, TEMPORARY, temporary_name
from sif_batch.storage.urls import open_filesystem


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "root") if request.param == "local" else "memory://test-storage/root")
    yield made
    if request.param == "memory" and made.exists():
        made.fs.rm(made.base, recursive=True)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY}*"))


def a_dead_process() -> int:
    return int(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout)


def test_a_local_file_is_read_without_python(local: Store) -> None:
    """Or a thread of Arrow's that still reads as the process ends would abort it, as damaged files once showed."""
    local.create("a/file", b"0123456789")
    with local.open("a/file") as file:
        assert isinstance(file, pa.NativeFile) and not isinstance(file, pa.PythonFile)
        assert (file.read(3), file.seek(5), file.read()) == (b"012", 5, b"56789")
    with pytest.raises(FileNotFoundError):
        local.open("a/other")


# Names.


def test_a_local_path_in_any_form_is_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in (f"{tmp_path}/root", f"{tmp_path}/root/", "root", "./x/../root", f"file://{tmp_path}/root", "~/root"):
        assert Store(url).base == Store(url).url == f"{tmp_path}/root" and Store(url).local


def test_a_store_has_a_url_that_opens_it_again() -> None:
    store = Store("memory://test-storage/a b/")
    assert not store.local and Store(store.url).base == store.base and store.path("x/y") == f"{store.base}/x/y"


@pytest.mark.parametrize("url", ["nosuchstore://bucket/x", "gs9://x"])
def test_an_unknown_store_is_a_clear_error(url: str) -> None:
    with pytest.raises(SifBatchError) as raised:
        open_filesystem(url)
    assert url in str(raised.value) and raised.value.remedy


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest() and digest(b"abc", 12) == digest(b"abc")[:12]


# Reading and writing.


def test_what_is_created_is_read_back(store: Store) -> None:
    assert store.create("a/b/c.bin", b"content") and store.create("empty", b"")
    assert store.read("a/b/c.bin") == b"content" and store.read("empty") == b""
    assert store.exists("a/b/c.bin") and not store.exists("a/b/d.bin")
    with store.open("a/b/c.bin") as file:
        file.seek(3)
        assert file.read() == b"tent"
    with pytest.raises(FileNotFoundError):
        store.read("nothing")


def test_create_never_replaces(store: Store) -> None:
    assert store.create("x", b"first")
    assert not store.create("x", b"second")
    assert store.read("x") == b"first"


def test_replace_puts_the_new_in_place_of_the_old(store: Store) -> None:
    store.replace("x", b"first")
    store.replace("x", b"second, and longer")
    assert store.read("x") == b"second, and longer"


def test_replace_if_replaces_only_the_version_that_was_read(store: Store) -> None:
    store.create("x", b"first")
    data, version = store.read_versioned("x")
    assert data == b"first"
    assert store.replace_if("x", b"second", version)
    assert not store.replace_if("x", b"third", version)
    assert store.read_versioned("x")[0] == b"second"
    assert not store.replace_if("nothing", b"x", version) and not store.exists("nothing")


def test_of_many_that_replace_one_version_one_wins(store: Store) -> None:
    store.create("folder/x", b"first")
    version = store.read_versioned("folder/x")[1]
    start = threading.Barrier(8)
    won: list[int] = []

    def work(number: int) -> None:
        start.wait()
        if store.replace_if("folder/x", bytes([number]) * 1000, version):
            won.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("folder/x") == bytes(won) * 1000


@pytest.mark.parametrize("url", ["ftp://me:hush@host/x", "https://host/x?sv=1&sig=hush", "s3://key:hush@bucket/x"])
def test_a_url_with_a_credential_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SifBatchError, match="credential") as raised:
        Store(url)
    assert "hush" not in f"{raised.value}{raised.value.remedy}"


def test_of_many_writers_at_once_one_wins_whole(store: Store) -> None:
    start = threading.Barrier(8)
    won: list[int] = []

    def work(number: int) -> None:
        start.wait()
        if store.create("folder/x", bytes([number]) * 200_000):
            won.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("folder/x") == bytes(won) * 200_000
    assert list(store.sizes("folder")) == ["x"]


def test_sizes_are_those_of_the_files_in_the_folder_alone(store: Store) -> None:
    assert store.sizes("nothing") == {}
    for name, size in (("f/b", 3), ("f/a", 0), ("f/Z", 7), ("f/deep/c", 9), ("g", 1)):
        store.create(name, bytes(size))
    sizes = store.sizes("f")
    assert list(sizes) == ["Z", "a", "b", "deep"]
    assert {name: sizes[name] for name in ("Z", "a", "b")} == {"Z": 7, "a": 0, "b": 3}


def test_a_reader_never_sees_a_file_in_part(local: Store) -> None:
    """One thread replaces, another reads: every reading is one of the two whole contents."""
    contents = {b"a" * 300_000, b"b" * 500_000}
    local.replace("x", b"a" * 300_000)
    ended = threading.Event()

    def write() -> None:
        for _ in range(20):
            for content in contents:
                local.replace("x", content)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not ended.is_set():
        assert local.read("x") in contents
    writer.join()


def test_a_listing_is_whole_while_temporary_files_come_and_go(local: Store) -> None:
    for number in range(50):
        local.create(f"f/{number:02d}", b"x")
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            local.create("f/00", b"again")  # makes a temporary file, and loses

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            assert len(local.sizes("f")) == 50
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert temporaries(Path(local.base)) == []


def test_a_failed_write_leaves_nothing(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    local.create("f/old", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (local.create, local.replace):
        with pytest.raises(OSError, match="No space"):
            write("f/new", b"new")
        with pytest.raises(OSError, match="No space"):
            write("f/old", b"new")
    assert os.listdir(local.path("f")) == ["old"] and local.read("f/old") == b"old"


# Folders.


def make_folder(at: Path, content: bytes) -> Path:
    (at / "deep").mkdir(parents=True)
    (at / "deep/a.bin").write_bytes(content)
    (at / "last.json").write_bytes(content)
    return at


def test_a_folder_is_published_once(store: Store, tmp_path: Path) -> None:
    store.create("releases/other", b"")
    assert store.create_folder("releases/x", make_folder(tmp_path / "one", b"one"), "last.json")
    assert not store.create_folder("releases/x", make_folder(tmp_path / "two", b"two"), "last.json")
    assert store.read("releases/x/deep/a.bin") == store.read("releases/x/last.json") == b"one"


def test_scratch_is_gone_afterwards(store: Store) -> None:
    with store.scratch("releases") as folder:
        make_folder(folder / "x", b"content")
        assert list(store.sizes("releases")) == []
    assert not folder.exists()
    with pytest.raises(RuntimeError), store.scratch("releases") as folder:
        raise RuntimeError
    assert not folder.exists()


def test_scratch_can_be_published(store: Store) -> None:
    with store.scratch("releases") as folder:
        assert store.create_folder("releases/x", make_folder(folder / "made", b"content"), "last.json")
    assert store.read("releases/x/deep/a.bin") == b"content"
    assert list(store.sizes("releases")) == ["x"]


def test_a_file_is_fetched_once(store: Store, tmp_path: Path) -> None:
    store.create("a/x", b"content")
    fetched = store.fetch("a/x", tmp_path / "copies")
    assert fetched.read_bytes() == b"content"
    assert store.local == (str(fetched) == store.path("a/x"))
    assert store.fetch("a/x", tmp_path / "copies") == fetched


# Refusing early, and sweeping up.


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("/proc/nothing/root", f"{tmp_path}/file/root"):
        with pytest.raises(SifBatchError, match="cannot be written") as raised:
            Store(place).check_writable()
        assert place in str(raised.value) and raised.value.remedy
    Store(f"{tmp_path}/new/deep/root").check_writable()
    assert sorted(os.listdir(tmp_path)) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(SifBatchError, match="cannot be written"):
        Store(f"{tmp_path}/locked/root").check_writable()


def test_what_a_dead_process_left_is_swept(local: Store) -> None:
    local.create("parts/x", b"kept")
    base = Path(local.base)
    dead = f"{TEMPORARY}{HOST}-{a_dead_process()}-0123456789ab"
    for place in ("", "parts", "parts/encoder", "releases"):
        (base / place).mkdir(exist_ok=True, parents=True)
        (base / place / dead).write_bytes(b"half")
    make_folder(base / "catalog" / dead, b"half")
    (base / "catalog" / dead / dead).write_bytes(b"half")
    local.sweep()
    assert temporaries(base) == [] and local.read("parts/x") == b"kept"


def test_what_may_be_in_use_is_not_swept(local: Store) -> None:
    base = Path(local.base)
    base.mkdir()
    (base / temporary_name()).write_bytes(b"mine")
    elsewhere = base / f"{TEMPORARY}elsewhere-1-0123456789ab"
    elsewhere.write_bytes(b"of another machine")
    odd = base / f"{TEMPORARY}odd"
    odd.write_bytes(b"of nobody knows whom")
    (base / f"{TEMPORARY}{HOST}-x-y").symlink_to(base / "nowhere")
    local.sweep()
    assert len(temporaries(base)) == 4
    old = time.time() - SWEEP_AFTER_S - 60
    os.utime(elsewhere, (old, old))
    os.utime(odd, (old, old))
    local.sweep()
    assert len(temporaries(base)) == 2


def test_a_process_killed_while_it_writes_leaves_no_file(local: Store) -> None:
    code = f"""
import os, signal
from sif_batch.storage.store import Store
os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
Store({local.url!r}).create("f/x", b"content")
"""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=900, check=False)
    assert done.returncode == -9
    assert len(temporaries(Path(local.base))) == 1 and local.sizes("f") == {} and not local.exists("f/x")
    local.sweep()
    assert temporaries(Path(local.base)) == []
    assert local.create("f/x", b"content")

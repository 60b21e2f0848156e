"""Sources and ROOT in buckets of a real S3 server, and what becomes of each thing that a store does wrong."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Finished, run_command
from paths import PHOTOS, REPOSITORY
from synthetic import listed

from scripts.engines import fetch
from scripts.engines.proxy import Fault, Proxy, faulty
from scripts.engines.stores import Bucket, s3_server
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.query.index import Index
from sif_batch.sources.files import open_source
from sif_batch.sources.listing import parse_sources
from sif_batch.sources.reading import read_container, read_file
from sif_batch.storage import bucket_clients, bucket_filesystem
from sif_batch.storage.store import Store
from sif_batch.storage.temporary_files import TEMPORARY

pytestmark = pytest.mark.engines
MEBI = 2**20


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    try:
        with s3_server(tmp_path_factory.mktemp("s3")) as served:
            yield served
    except fetch.Unavailable as reason:
        pytest.skip(f"no S3 server: {reason}")


@pytest.fixture(autouse=True)
def fresh(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients know the server; each test begins with none, and with an empty bucket."""
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    for known in (bucket_clients.open_bucket, open_source):
        known.cache_clear()
    bucket_filesystem._digests.clear()
    yield
    for inside in bucket.folder.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with faulty(bucket.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same patience, in fewer seconds."""
    monkeypatch.setitem(bucket_clients.TIMEOUTS, "read_timeout", "2s")
    monkeypatch.setitem(bucket_clients.RETRIES, "max_retries", 3)


@pytest.fixture
def store() -> Store:
    return Store("s3://bucket/root")


def put_photos(count: int, folder: str = "photos") -> None:
    store = Store(f"s3://bucket/{folder}")
    for photo in sorted(PHOTOS.rglob("*.jpg"))[:count]:
        store.create(photo.relative_to(PHOTOS).as_posix(), photo.read_bytes())


def run_night(folder: Path, *arguments: str) -> Finished:
    return run_command(folder, "run", *arguments, "--json")


# A store.


def test_what_is_created_is_read_back_listed_and_never_replaced(store: Store) -> None:
    odd = "a/ü ä+b%20c#d?e[x]*::f&g=h~^`|<>.jpg"
    assert store.create("x/one", b"content") and store.create(odd, b"odd") and store.create("empty", b"")
    assert not store.create("x/one", b"another")
    assert store.read("x/one") == b"content" and store.read(odd) == b"odd" and store.read("empty") == b""
    assert store.sizes("x") == {"one": 7} and store.sizes("nothing") == {}
    assert store.exists("x") and store.exists("x/one") and not store.exists("x/two")
    assert sorted(store.fs.find(store.path())) == sorted(store.path(name) for name in ("x/one", odd, "empty"))
    with store.open("x/one") as file:
        assert (file.read(3), file.read(), file.seek(-4, os.SEEK_END), file.read(9)) == (b"con", b"tent", 3, b"tent")
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    with pytest.raises(FileNotFoundError):
        Store("s3://no-such-bucket/x").create("y", b"")


def test_of_many_writers_at_once_one_wins(store: Store) -> None:
    assert len(winners(lambda data: store.create("x", data))) == 1


def test_replace_if_replaces_only_the_version_that_was_read(store: Store) -> None:
    store.create("x", b"first")
    data, version = store.read_versioned("x")
    assert data == b"first" and store.replace_if("x", b"second", version)
    assert not store.replace_if("x", b"late", version) and not store.replace_if("nothing", b"late", version)
    assert store.read("x") == b"second"


def winners(write: Callable[[bytes], bool]) -> list[int]:
    start, won = threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait()
        if write(bytes([number]) * 1000):
            won.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_a_folder_appears_with_its_last_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "made/deep").mkdir(parents=True)
    (tmp_path / "made/deep/large").write_bytes(os.urandom(20 * MEBI))
    (tmp_path / "made/last").write_bytes(b"end")
    assert store.create_folder("folder", tmp_path / "made", "last")
    assert not store.create_folder("folder", tmp_path / "made", "last")
    fetched = store.fetch("folder/deep/large", tmp_path / "copy")
    assert fetched.read_bytes() == (tmp_path / "made/deep/large").read_bytes()


def test_a_store_that_ignores_conditions_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.check_writable()
    assert not store.fs.find("bucket")
    monkeypatch.setattr(bucket_filesystem.Objects, "create", lambda self, path, data: True)
    with pytest.raises(SifBatchError, match="If-None-Match"):
        store.check_writable()


def test_a_file_that_is_replaced_while_it_is_read_is_no_mixture(store: Store) -> None:
    store.replace("x", b"a" * (20 * MEBI))
    with store.open("x") as file:
        file.read(10)
        store.replace("x", b"b" * (20 * MEBI))
        with pytest.raises(OSError, match="changed"):
            file.read()


# Credentials.


def test_wrong_credentials_are_a_clear_error_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    done = run_night(tmp_path, "s3://bucket/photos", "s3://bucket/root")
    assert done.code == 1 and "refuses" in done.json["error"] and done.json["remedy"]
    assert "hush" not in done.out + done.err and "testkey" not in done.out + done.err


def test_no_credentials_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    done = run_night(tmp_path, "s3://bucket/photos", "s3://bucket/root")
    assert done.code == 1 and "no credentials for S3" in done.json["error"] and "AWS_PROFILE" in done.json["error"]


def test_a_profile_is_found_where_aws_looks_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: Bucket
) -> None:
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id=testkey\naws_secret_access_key=testsecret\n")
    (tmp_path / "config").write_text(f"[profile mine]\nendpoint_url={bucket.endpoint}\nregion=us-east-1\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert Store("s3://bucket/root").create("x", b"1")


# A whole night.


def test_a_night_in_buckets_and_what_it_leaves(bucket: Bucket, tmp_path: Path) -> None:
    put_photos(40)
    url = ("s3://bucket/photos", "s3://bucket/root")
    first = run_night(tmp_path, *url, "--shard-images", "8")
    assert first.code == 0 and first.json["outcome"] == "published" and first.json["embedded"] == 40, first.err
    assert run_night(tmp_path, *url).json["outcome"] == "unchanged"
    found = run_command(tmp_path, "search", "s3://bucket/root", PHOTOS / "pizza/image_0003.jpg", "--json")
    assert found.code == 0 and found.json["release"] == first.json["release"]
    assert run_command(tmp_path, "verify", "s3://bucket/root", "--json").json["ok"]
    (bucket.folder / "photos" / sorted(p.relative_to(PHOTOS) for p in PHOTOS.rglob("*.jpg"))[0]).unlink()
    put_photos(41)
    third = run_night(tmp_path, "s3://bucket/root").json
    assert (third["outcome"], third["embedded"], third["unchanged"]) == ("published", 1, 40)
    written = b"".join(path.read_bytes() for path in bucket.folder.rglob("root/**/*") if path.is_file())
    assert b"testsecret" not in written and b"testkey" not in written


@pytest.mark.slow
def test_the_same_photos_give_the_same_vectors_from_a_bucket_as_from_a_folder(tmp_path: Path) -> None:
    put_photos(24)
    for photo in sorted(PHOTOS.rglob("*.jpg"))[:24]:
        target = tmp_path / "photos" / photo.relative_to(PHOTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, target)
    assert run_night(tmp_path, "s3://bucket/photos", "s3://bucket/root").code == 0
    assert run_night(tmp_path, "photos", "here").code == 0
    rows = []
    for place in ("s3://bucket/root", str(tmp_path / "here")):
        store = Store(place)
        release = store.read("LATEST").decode().strip()
        rows.append(store.read(f"releases/{release}/segments/000/rows.npy"))
    assert rows[0] == rows[1]


def test_a_remote_release_is_copied_once_checked_and_by_several_at_once(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_photos(80)
    assert run_night(tmp_path, "s3://bucket/photos", "s3://bucket/root", "--family", "ivf-pq").code == 0
    monkeypatch.setenv("SIF_BATCH_CACHE", str(tmp_path / "cache"))
    ask = "from sif_batch.query import Index; i = Index.open('s3://bucket/root'); print(len(i), i.release)"
    asking = [subprocess.Popen([sys.executable, "-c", ask], stdout=subprocess.PIPE, cwd=REPOSITORY) for _ in range(4)]
    answers = {process.communicate(timeout=900)[0] for process in asking}
    assert len(answers) == 1 and answers.pop().startswith(b"80 ")
    (copy,) = (tmp_path / "cache/releases").iterdir()
    assert not [path for path in copy.rglob("*") if path.name.startswith(TEMPORARY)]
    before = sum("index.faiss" in line and line.startswith("GET") for line in proxy.requests)
    assert len(Index.open("s3://bucket/root")) == 80
    assert sum("index.faiss" in line and line.startswith("GET") for line in proxy.requests) == before
    index = copy / "segments/000/index.faiss"
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    assert len(Index.open("s3://bucket/root")) == 80  # fetched anew
    index.unlink()
    proxy.faults.append(Fault("flip", "^GET .*index.faiss", None))
    with pytest.raises(SifBatchError, match="damaged"):
        Index.open("s3://bucket/root")
    assert not index.exists()


# What stores do wrong. Each fault meets a client that must give the right bytes, or say that it cannot.

TIMES = {"503": 5, "429": 5, "500": 2, "reset": 3, "cut": 1, "stall": 1, "short": 1, "flip": 1}


@pytest.mark.parametrize("kind", TIMES)
def test_a_passing_fault_costs_nothing_but_time(kind: str, proxy: Proxy) -> None:
    put_photos(6)
    source = parse_sources(["s3://bucket/photos"])[0]
    proxy.faults.append(Fault(kind, "^GET /bucket/photos/.*jpg", TIMES[kind]))
    paths, sizes, versions, _ = listed(source)
    for path, size, version in zip(paths, sizes, versions, strict=True):
        assert read_file(source, path, size, version, MEBI) == (PHOTOS / path).read_bytes()
    assert proxy.faults[0].happened == TIMES[kind]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["503", "cut", "short", "flip"])
def test_what_stays_wrong_is_a_passing_failure_of_that_image(kind: str, proxy: Proxy) -> None:
    put_photos(6)
    source = parse_sources(["s3://bucket/photos"])[0]
    paths, sizes, versions, _ = listed(source)
    proxy.faults.append(Fault(kind, f"^GET /bucket/photos/{paths[3]}", None))
    for number, (path, size, version) in enumerate(zip(paths, sizes, versions, strict=True)):
        if number == 3:
            with pytest.raises(ImageError) as raised:
                read_file(source, path, size, version, MEBI)
            assert raised.value.kind in ("unreadable", "short_read")
        else:
            assert read_file(source, path, size, version, MEBI) == (PHOTOS / path).read_bytes()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_away_is_no_images_fault(proxy: Proxy) -> None:
    put_photos(2)
    source = parse_sources(["s3://bucket/photos"])[0]
    paths, sizes, versions, _ = listed(source)
    proxy.faults.append(Fault("away", "", None))
    before = len(proxy.requests)
    with pytest.raises(SifBatchError, match="does not answer"):
        read_file(source, paths[0], sizes[0], versions[0], MEBI)
    each = 1 + bucket_clients.RETRIES["max_retries"]
    assert len(proxy.requests) - before <= 4 * each  # patience has an end: the object, its HEAD, its folder


@pytest.mark.parametrize("kind", ["503", "reset", "cut", "short"])
def test_containers_are_read_to_their_end_or_not_at_all(kind: str, proxy: Proxy, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "photos"), "tar", PHOTOS)
    Store("s3://bucket/tars").replace("photos.tar", Path(archive).read_bytes())
    (source,) = parse_sources(["s3://bucket/tars/*.tar"])
    ((path,), _, (version,), _) = listed(source)
    proxy.faults.append(Fault(kind, "^GET /bucket/tars/photos.tar", 2))
    pieces = list(read_container(source, path, version, 0, MEBI))
    read = {m.name.removeprefix("./"): m.data for piece in pieces for m in piece.members}
    assert read == {p.relative_to(PHOTOS).as_posix(): p.read_bytes() for p in PHOTOS.rglob("*.jpg")}
    assert proxy.faults[0].happened == 2


@pytest.mark.parametrize("kind", ["503", "reset", "cut"])
def test_a_write_whose_answer_is_lost_is_ours_and_not_a_rivals(kind: str, proxy: Proxy, store: Store) -> None:
    """cut and reset: whether the object stands is unknown to the client, which must find out."""
    proxy.faults.append(Fault(kind, "^PUT /bucket/root/history", 1))
    assert store.create("history/1", b"mine")
    assert proxy.faults[0].happened == 1 and store.read("history/1") == b"mine"
    assert not store.create("history/1", b"another")


def test_a_night_through_a_bad_network_is_the_same_night(proxy: Proxy, bucket: Bucket, tmp_path: Path) -> None:
    put_photos(60)
    url = "s3://bucket/photos"
    good = run_night(tmp_path, url, "s3://bucket/root1", "--shard-images", "10")
    for kind, matching, times, after in (
        ("503", "^GET /bucket/photos", 8, 20),
        ("429", "^(GET|PUT) ", 8, 60),
        ("reset", "^(GET|PUT|HEAD) ", 8, 80),
        ("cut", "^GET ", 5, 90),
        ("short", "^GET .*jpg", 3, 30),
        ("flip", "^GET .*jpg", 3, 40),
    ):
        proxy.faults.append(Fault(kind, matching, times, after))
    bad = run_night(tmp_path, url, "s3://bucket/root2", "--shard-images", "10")
    assert good.code == bad.code == 0, bad.err
    assert good.json["release"] == bad.json["release"] and bad.json["failed"] == 0
    assert all(fault.happened for fault in proxy.faults)
    assert not any(secret in bad.out + bad.err for secret in ("testkey", "testsecret"))


@pytest.mark.slow
def test_a_store_that_goes_away_ends_the_run_clearly_and_nothing_is_lost(proxy: Proxy, tmp_path: Path) -> None:
    put_photos(60)
    proxy.faults.append(Fault("away", "", None, after=120))
    url = ("s3://bucket/photos", "s3://bucket/root", "--shard-images", "6")
    done = run_night(tmp_path, *url)
    assert done.code == 1 and done.json["outcome"] == "error" and len(done.json["error"]) < 400, done.out
    assert "Traceback" not in done.err
    proxy.faults.clear()
    again = run_night(tmp_path, *url)
    assert again.code == 0, again.err
    assert again.json["embedded"] + again.json["unchanged"] == 60 and again.json["failed"] == 0
    assert json.loads(run_command(tmp_path, "verify", "s3://bucket/root", "--json").out)["ok"]

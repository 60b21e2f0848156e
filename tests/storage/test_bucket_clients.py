"""The whole life of a ROOT in a bucket of each vendor, by servers that speak their APIs."""

import contextlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Quiet
from paths import PHOTOS, REPOSITORY
from test_lease import HOLD, Clock, of_another_machine

from scripts.engines import fetch
from scripts.engines.stores import KEY, azure_server, gcs_server, s3_server
from sif_batch.errors import BusyError
from sif_batch.jobs.asking.bulk import search_in_bulk
from sif_batch.jobs.asking.duplicates import find_duplicates
from sif_batch.jobs.asking.search import Asking
from sif_batch.jobs.nightly.run import run
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.upkeep.compact import compact
from sif_batch.jobs.upkeep.erase import erase
from sif_batch.jobs.upkeep.gc import collect_garbage
from sif_batch.jobs.upkeep.releases import publish_by_hand, releases, rollback
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.ledger.plan import Limits
from sif_batch.machine.child import close_shared_children
from sif_batch.query.index import Index
from sif_batch.release.history import read_top
from sif_batch.release.manifest import read_manifest
from sif_batch.sources.files import open_source
from sif_batch.storage import bucket_clients, bucket_filesystem
from sif_batch.storage.lease import NAME, TTL_S, Lease, holding
from sif_batch.storage.store import Store

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("children")]
SECRETS = (b"testkey", b"testsecret", KEY.encode())
PICTURES = sorted(PHOTOS.rglob("*.jpg"))


@contextlib.contextmanager
def s3_environment(folder: Path) -> Iterator[dict[str, str]]:
    with s3_server(folder) as served:
        yield served.env


SERVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[dict[str, str]]]] = {
    "s3": s3_environment,
    "gs": gcs_server,
    "az": azure_server,
}


@pytest.fixture(scope="module", params=list(SERVERS))
def vendor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vendor's bucket, which is there to all tests of it."""
    folder = tmp_path_factory.mktemp(request.param)
    try:
        with SERVERS[request.param](folder) as env, pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            for known in (bucket_clients.open_bucket, open_source):
                known.cache_clear()
            bucket_filesystem._digests.clear()
            close_shared_children()  # they have another environment
            yield f"{request.param}://bucket"
    except fetch.Unavailable as reason:
        pytest.skip(f"cannot be had here: {reason}")


@pytest.fixture
def url(vendor: str, request: pytest.FixtureRequest) -> str:
    """A place of the test's own in the bucket."""
    return f"{vendor}/{request.node.originalname}"


def put_photos(url: str, photos: list[Path]) -> None:
    for photo in photos:
        Store(url).create(photo.relative_to(PHOTOS).as_posix(), photo.read_bytes())


def night(root: str, *sources: str) -> dict[str, Any]:
    return run(RunSettings(sources=sources, root=root, limits=Limits(shard_images=8)), Quiet())


def contents(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {path: store.fs.cat_file(path) for path in store.fs.find(store.path())}


def test_a_night_is_published_and_asked_and_holds_no_secret(url: str) -> None:
    put_photos(f"{url}/photos", PICTURES[:24])
    first = night(f"{url}/root", f"{url}/photos")
    assert first["outcome"] == "published" and first["embedded"] == 24 and first["failed"] == 0
    assert night(f"{url}/root")["outcome"] == "unchanged"
    index = Index.open(f"{url}/root")
    hit = index.search(image=PICTURES[3], k=1)[0]
    assert hit.key == f"photos/{PICTURES[3].relative_to(PHOTOS).as_posix()}" and hit.similarity > 0.999
    assert hit.uri == f"{url}/photos/{PICTURES[3].relative_to(PHOTOS).as_posix()}"
    assert verify(f"{url}/root")["ok"]
    written = contents(f"{url}/root")
    assert len(written) > 20 and not [path for path, data in written.items() if any(s in data for s in SECRETS)]


def test_of_many_that_want_the_lease_one_gets_it(url: str) -> None:
    store, start = Store(url), threading.Barrier(8)
    got: list[Lease] = []
    busy: list[BusyError] = []

    def want() -> None:
        lease = Lease(store, "run")
        start.wait()
        try:
            lease.take()
            got.append(lease)
        except BusyError as error:
            busy.append(error)

    # Where none was, and where one was given back; the S3 server of these tests compares and puts in two steps.
    for _ in range(1 if url.startswith("s3") else 2):
        threads = [threading.Thread(target=want) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(busy)) == (1, 7)
        got.pop().release()
        busy.clear()


def test_the_lease_of_a_dead_holder_is_taken_over_and_a_late_one_finds_it_gone(url: str) -> None:
    store, clock = Store(url), Clock()
    command = [sys.executable, "-c", HOLD, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {other.pid}"):
            Lease(store, "run").take()
        other.kill()
        other.wait(900)
    with holding(store, "run") as mine:
        mine.renew()
        mine.check()
    late, new = Lease(store, "run", clock), Lease(store, "gc", clock)
    late.take()
    of_another_machine(store)
    with pytest.raises(BusyError):
        new.take()
    clock.now += TTL_S + 1
    assert (new.take() or {})["machine"] == "elsewhere"
    with pytest.raises(BusyError):
        late.check()
    late.release()
    new.check()
    new.release()
    assert b'"holder":null' in store.read(NAME)


def test_a_root_is_rolled_back_published_erased_compacted_and_cleared(url: str) -> None:
    root, store = f"{url}/root", Store(f"{url}/root")
    put_photos(f"{url}/photos", PICTURES[:16])
    first = night(root, f"{url}/photos")["release"]
    put_photos(f"{url}/photos", PICTURES[16:24])
    second = night(root)["release"]
    assert rollback(root)["release"] == first
    put_photos(f"{url}/photos", PICTURES[24:32])
    held = night(root)
    assert held["outcome"] == "held" and (read_top(store) or {})["release"] == first
    assert publish_by_hand(root)["release"] == held["release"]
    assert [entry["id"] for entry in releases(root)] == [first, second, first, held["release"]]

    gone = f"photos/{PICTURES[5].relative_to(PHOTOS).as_posix()}"
    (image,) = erase(root, [gone], True, Quiet())["images"]
    assert verify(root)["ok"]
    found = contents(root)
    assert not [path for path, data in found.items() if gone.encode() in data and "/erased/" not in path]
    assert not [path for path, data in found.items() if bytes.fromhex(image["sha256"]) in data]

    current = (read_top(store) or {})["release"]
    assert len(Index.open(root)) == read_manifest(store, f"releases/{current}")["rows"] == 31
    assert compact(root, True, Quiet())["merged"] > 1
    kept = collect_garbage(root, 1, 1.0, True, Quiet())
    assert kept["garbage"] == [] and set(contents(root)) >= set(found) - {f"{store.base}/{NAME}"}  # all is young
    cleared = collect_garbage(root, 1, 0.0, True, Quiet())
    assert cleared["bytes"] == sum(one["bytes"] for one in cleared["garbage"]) > 0
    assert all(one["bytes"] > 0 for one in cleared["garbage"] if not one["file"].endswith(".done"))
    left = contents(root)
    assert not [p for p in left if any(p.startswith(f"{store.base}/{one['file']}") for one in cleared["garbage"])]
    assert collect_garbage(root, 1, 0.0, False, Quiet())["garbage"] == []
    assert verify(root)["ok"] and len(Index.open(root)) == 31
    last = night(root)
    assert last["outcome"] == "unchanged" and last["release"] == current and last["embedded"] == 0


def test_bulk_search_and_duplicates_of_a_bucket_are_those_of_a_folder(url: str, tmp_path: Path) -> None:
    for photo in PICTURES[:24]:
        (tmp_path / "photos" / photo.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, tmp_path / "photos" / photo.parent.name / photo.name)
    put_photos(f"{url}/photos", PICTURES[:24])
    vectors = np.random.default_rng(1).normal(size=(30, 1280)).astype(np.float32)
    asked = pa.table({"embedding": pa.array(list(vectors), pa.list_(pa.float32()))})
    pq.write_table(asked, tmp_path / "v.parquet", row_group_size=2)  # more pieces than are done without Beam
    Store(url).create("v.parquet", (tmp_path / "v.parquet").read_bytes())
    tables = []
    for place in (url, str(tmp_path)):
        night(f"{place}/root", f"{place}/photos")
        asking = Asking(k=3)
        search_in_bulk(f"{place}/root", f"{place}/photos", f"{place}/hits.parquet", asking, Quiet())
        search_in_bulk(f"{place}/root", f"{place}/v.parquet", f"{place}/by-vector.parquet", asking, Quiet())
        found = find_duplicates(f"{place}/root", 0.5, f"{place}/duplicates.parquet", None, Quiet())
        assert found["groups"] > 0
        store = Store(place)
        assert not [name for name in store.sizes("") if name.endswith(".parts")]
        names = ("hits", "by-vector", "duplicates")
        read = [pq.read_table(pa.BufferReader(store.read(f"{name}.parquet"))) for name in names]
        tables.append([[without_place(row, place) for row in table.to_pylist()] for table in read])
    assert len(tables[0][0]) == 72 and len(tables[0][1]) == 90
    assert tables[0] == tables[1]


def without_place(row: dict[str, Any], place: str) -> dict[str, Any]:
    return {name: value.replace(place, "") if isinstance(value, str) else value for name, value in row.items()}

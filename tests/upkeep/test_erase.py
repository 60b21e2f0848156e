"""A takedown: nothing below ROOT names, shows or holds what was erased, and it never comes back."""

import contextlib
import hashlib
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Quiet
from paths import PHOTOS

from sif_batch.config import GateSettings
from sif_batch.errors import BusyError, SifBatchError
from sif_batch.gate.checks import judge
from sif_batch.jobs.nightly.run import run
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.upkeep import erase as jobs_erase
from sif_batch.jobs.upkeep.erase import erase
from sif_batch.jobs.upkeep.explain import explain_image
from sif_batch.jobs.upkeep.releases import releases, rollback
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.ledger.plan import Limits
from sif_batch.ledger.tombstones import Erased, add_erased, entry_hash, read_erased
from sif_batch.query.index import Index
from sif_batch.release.manifest import read_manifest
from sif_batch.sources.listing import LISTING_SCHEMA, Listing
from sif_batch.sources.names import hash_of
from sif_batch.storage.lease import Lease
from sif_batch.storage.store import Store

Photos = Callable[[int], Path]


def texts_of(path: Path) -> Iterator[bytes]:
    """All that a file holds: its own bytes, and of a table the columns, whatever they are packed by."""
    yield path.read_bytes()
    if path.suffix in (".parquet", ".arrow"):
        table = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path.read_bytes()).read_all()
        yield repr(table.schema.metadata).encode()
        for column in table.columns:
            kind = column.type
            if pa.types.is_list(kind):
                kind = kind.value_type
                column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], kind)
            if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
                yield "\n".join(map(str, column.to_pylist())).encode()
                yield b"\n".join(v for v in column.to_pylist() if isinstance(v, bytes))
            elif len(column) and not column.null_count and not pa.types.is_boolean(kind):
                yield np.asarray(column.to_numpy()).tobytes()


def holders(root: Path, *needles: bytes) -> set[str]:
    """The files below ROOT that hold one of these."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)) for path in files if any(n in text for text in texts_of(path) for n in needles)}


def vectors_of(root: Path, key: str) -> list[bytes]:
    """The vectors of a key, as parts have them."""
    tables = [pq.read_table(path) for path in root.glob("parts/*/*.parquet")]
    rows = [row for table in tables for row in table.to_pylist() if row["key"] == key and row["embedding"]]
    return [np.array(row["embedding"], np.float16).tobytes() for row in rows]


def kept_bytes(root: Path, key: str) -> bytes:
    """The row of an image as the release keeps it for re-ranking."""
    index = Index.open(root)
    return np.ascontiguousarray(index.kept_rows()[0][index.row_of(key)]).tobytes()


pytestmark = pytest.mark.usefixtures("children")


def night(root: Path, *sources: Path, **options: Any) -> dict[str, Any]:
    given = {"sources": tuple(map(str, sources)), "root": str(root), "workers": 1, "report": False}
    gate = {"gate": GateSettings(enabled=False), "limits": Limits(shard_images=16)}
    return run(RunSettings.model_validate(given | gate | options), Quiet())


def files_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lease.json"}


def check_takedown(source: Path, root: Path, family: str) -> None:
    """Two nights, a takedown of a held-out query and of another image, and a third night."""
    first = night(root, source, index={"family": family})["release"]
    shutil.copyfile(PHOTOS / "pizza/image_0003.jpg", source / "late.jpg")
    second = night(root, report=True)["release"]
    queries = [k for path in root.glob("quantizers/*/queries.parquet") for k in pq.read_table(path)["key"].to_pylist()]
    keys = Index.open(root).column("key").to_pylist()
    asked, plain = queries[0], next(key for key in keys if key not in queries and key != "photos/late.jpg")
    log = sorted(root.glob("runs/*/events.jsonl"))[0]
    log.write_bytes(log.read_bytes() + json.dumps({"event": "said", "text": f"odd: {plain}"}).encode() + b"\n")
    needles = [key.removeprefix("photos/").encode() for key in (asked, plain)]
    needles += [held for key in (asked, plain) for held in (*vectors_of(root, key), kept_bytes(root, key))]
    told = {name.partition("/")[0] for name in holders(root, *needles)}
    assert told == {"parts", "releases", "quantizers", "listings", "plans", "catalog", "runs", "codes"}

    before = files_of(root)
    dry = erase(str(root), [asked, plain], False, Quiet())
    assert not dry["erased"] and dry["releases"] == sorted({first, second}) and len(dry["quantizers"]) == 1
    assert [image["key"] for image in dry["images"]] == sorted([asked, plain]) and files_of(root) == before

    reader = Index.open(root)
    done = erase(str(root), [asked, plain], True, Quiet())
    assert done["erased"] and set(done["replaced"]) == {first, second} and done["replaced"][second] == done["release"]
    assert holders(root, *needles) == set() and verify(str(root))["ok"]
    assert reader.row_of(asked) is not None and reader.refresh().release == done["release"]
    assert sorted(Index.open(root).column("key").to_pylist()) == sorted(set(keys) - {asked, plain})
    entries = releases(str(root))
    assert [entry["action"] for entry in entries] == ["publish", "publish", "erase"]
    assert [entry["id"] for entry in entries] == [done["replaced"][first], done["release"], done["release"]]
    assert not any(entry["gone"] for entry in entries)

    third = night(root)  # the files are still there
    assert (third["outcome"], third["release"]) == ("unchanged", done["release"])
    assert (third["listed"], third["ignored"]) == (len(keys) - 2, 2)
    assert holders(root, *needles) == set()
    assert rollback(str(root))["release"] == done["replaced"][first] and len(Index.open(root)) == len(keys) - 3
    assert explain_image(str(root), plain)["state"] == "erased, never indexed again"


def test_nothing_below_root_holds_what_was_erased(photos: Photos, tmp_path: Path) -> None:
    check_takedown(photos(40), tmp_path / "root", "flat")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ivf-pq", "ivf-flat", "ivf-rabitq", "hnsw"])
def test_nothing_below_root_holds_what_was_erased_from_any_index(photos: Photos, tmp_path: Path, family: str) -> None:
    check_takedown(photos(200), tmp_path / "root", family)


def test_erased_bytes_stay_out_under_any_name(photos: Photos, tmp_path: Path) -> None:
    source, root = photos(8), tmp_path / "root"
    images = sorted(source.rglob("*.jpg"))
    shutil.copyfile(images[0], source / "copy.jpg")
    night(root, source)
    sha256 = hashlib.sha256(images[0].read_bytes()).hexdigest()
    done = erase(str(root), [sha256], True, Quiet())
    assert {image["sha256"] for image in done["images"]} == {sha256} and len(done["images"]) == 2
    assert holders(root, b"copy.jpg") == set()
    again = night(root)
    assert (again["outcome"], again["listed"], again["ignored"]) == ("unchanged", 7, 2)

    shutil.copyfile(images[0], source / "new name.jpg")
    images[0].touch()
    shutil.copyfile(images[1], source / "copy.jpg")  # other bytes under that name are welcome
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        for name, image in (("x.jpg", images[0]), ("y.jpg", images[2])):
            tar.add(image, name)
    met = night(root, tmp_path / "more.tar")
    assert (met["listed"], met["failed"], met["failed_by_kind"], met["reused"]) == (12, 3, {"erased": 3}, 2)
    assert met["in_index"] == 9 and sha256 not in str(Index.open(root).column("sha256").to_pylist())
    assert judge_failures(root, met["release"])

    once_more = erase(str(root), [sha256], True, Quiet())  # what was met since goes as well
    assert len(once_more["images"]) == 3 and holders(root, b"new name.jpg") == set()
    last = night(root)
    assert (last["listed"], last["failed_before"], last["in_index"]) == (9, 0, 9)


def judge_failures(root: Path, release: str) -> bool:
    """Whether the gate, at its strictest, minds failures that are none."""
    return judge(GateSettings(max_failures=0), read_manifest(Store(str(root)), f"releases/{release}")) == []


def pack_tar(path: Path, images: Sequence[Path], first: int) -> None:
    """A tar of images, each with a sidecar that says its number."""
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images, first):
            tar.add(image, f"in/{number}.jpg")
            data = json.dumps({"n": number}).encode()
            (side := tarfile.TarInfo(f"in/{number}.json")).size = len(data)
            tar.addfile(side, io.BytesIO(data))


def test_members_and_whole_containers_are_erased(tmp_path: Path) -> None:
    pack, root = tmp_path / "pack", tmp_path / "root"
    pack.mkdir()
    images = sorted(PHOTOS.rglob("*.jpg"))
    pack_tar(pack / "0.tar", images[:5], 0)
    pack_tar(pack / "1.tar", images[5:8], 5)
    night(root, Path(f"{pack}/*.tar"), limits=Limits(shard_images=2))
    done = erase(str(root), ["pack/0.tar::in/3.jpg"], True, Quiet())
    assert holders(root, b"in/3.jpg") == set() and verify(str(root))["ok"]
    again = night(root)
    assert (again["outcome"], again["release"], again["unchanged"]) == ("unchanged", done["release"], 7)
    pack_tar(pack / "0.tar", [*images[:5], images[9]], 0)  # all of it is read once more
    more = night(root)
    assert (more["listed"], more["failed"], more["reused"], more["embedded"]) == (8, 0, 4, 1)
    assert Index.open(root).column("n").to_pylist().count(3) == 0 and holders(root, b"in/3.jpg") == set()

    gone = erase(str(root), ["1.tar"], True, Quiet())
    assert [image["key"] for image in gone["images"]] == [f"pack/1.tar::in/{number}.jpg" for number in (5, 6, 7)]
    assert holders(root, b"1.tar") == set() and verify(str(root))["ok"]
    last = night(root)
    assert (last["outcome"], last["release"], last["listed"]) == ("unchanged", gone["release"], 5)


@pytest.mark.slow
def test_labels_of_a_release_outlast_an_erasure(photos: Photos, tmp_path: Path) -> None:
    source, root, table = photos(6), tmp_path / "root", tmp_path / "labels.csv"
    keys = [f"photos/{path.relative_to(source)}" for path in sorted(source.rglob("*.jpg"))]
    table.write_text("key,animal,weight\n" + "".join(f"{key},leopard,{n}.5\n" for n, key in enumerate(keys)))
    night(root, source, metadata=str(table))
    done = erase(str(root), [keys[2]], True, Quiet())
    assert Index.open(root).column("weight").to_pylist().count(2.5) == 0
    assert set(Index.open(root).column("animal").to_pylist()) == {"leopard"}
    again = night(root)
    assert (again["outcome"], again["release"]) == ("unchanged", done["release"])


def test_what_cannot_be_erased_is_told_and_nothing_is_changed(photos: Photos, tmp_path: Path) -> None:
    source, root = photos(2), tmp_path / "root"
    night(root, source)
    keys = Index.open(root).column("key").to_pylist()
    before = files_of(root)
    for names, says in (
        ([*keys], "nothing would be left"),
        (["photos/none.jpg"], "nothing is known of photos/none.jpg"),
    ):
        with pytest.raises(SifBatchError, match=says):
            erase(str(root), names, True, Quiet())
    other = Lease(Store(str(root)), "run")
    other.take()
    for yes in (True, False):
        with pytest.raises(BusyError):
            erase(str(root), keys[:1], yes, Quiet())
    other.release()
    assert files_of(root) == before
    unknown = erase(str(root), ["ab" * 32], True, Quiet())  # bytes may be kept out before they come
    assert unknown["images"] == [] and unknown["replaced"] == {}
    assert erase(str(root), ["ab" * 32], True, Quiet())["erased"]
    assert [entry["action"] for entry in releases(str(root))] == ["publish", "erase"]


class Interrupted(BaseException):
    """What ends a command at one of its steps."""


@contextlib.contextmanager
def ending_at(step: int) -> Iterator[None]:
    """Whatever writes or removes something for the `step`-th time ends there."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Store, "create"), (Store, "replace"), (Store, "create_folder"), (jobs_erase, "remove")):
            plain = getattr(owner, name)

            def act(*arguments: Any, plain: Any = plain) -> Any:
                nonlocal count
                if arguments[1] != "lease.json":
                    count += 1
                    if count > step:
                        raise Interrupted
                return plain(*arguments)

            patch.setattr(owner, name, act)
        yield


def interrupt_everywhere(whole: Path, folder: Path, names: list[str]) -> int:
    """End an erasure at each step, with a night after it, and do it again. Returns how many steps it took."""
    for step in itertools.count(1):
        root = shutil.copytree(whole, folder / f"{step}")
        try:
            with ending_at(step):
                erase(str(root), names, True, Quiet())
            return step
        except Interrupted:
            pass
        between = night(root)
        assert between["outcome"] in ("published", "unchanged")
        assert not set(names) & set(Index.open(root).column("key").to_pylist())
        assert verify(str(root))["ok"]
        erase(str(root), names, True, Quiet())
        assert holders(root, *(name.removeprefix("photos/").encode() for name in names)) == set(), step
        assert verify(str(root))["ok"]
        again = night(root)
        assert again["outcome"] == "unchanged", step
        shutil.rmtree(root)
    raise AssertionError("it never ends")


def make_interruptible(photos: Photos, tmp_path: Path) -> tuple[Path, list[str]]:
    source, root = photos(12), tmp_path / "root"
    night(root, source, limits=Limits(shard_images=5))
    (source / "broken.jpg").write_text("no image")
    night(root)
    return root, Index.open(root).column("key").to_pylist()[-2:]


@pytest.mark.slow
def test_an_erasure_may_be_interrupted_anywhere(photos: Photos, tmp_path: Path) -> None:
    root, names = make_interruptible(photos, tmp_path)
    assert interrupt_everywhere(root, tmp_path, names) > 12


def test_erased_things_are_told_by_digests_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    key, member = "photos/a/caf\u00e9.jpg", "photos/b.tar::1.jpg"
    keys = frozenset((hash_of(name), len(name.encode())) for name in (key, "photos/b.tar"))
    entry = {"source": "photos", "path": "c.jpg", "version": "1"}
    erased = Erased(keys=keys, contents=frozenset({"ab" * 32}), entries=frozenset({(entry_hash(**entry), 5)}))
    add_erased(store, erased)
    add_erased(store, erased)
    (file,) = (tmp_path / "erased").iterdir()
    assert not any(name.encode() in file.read_bytes() for name in (key, "b.tar", "c.jpg"))
    assert read_erased(store) == erased and read_erased(Store(str(tmp_path / "none"))) == Erased()
    assert erased.has_key(key) and erased.has_key(member) and not erased.has_key("photos/a/cafe.jpg")
    paths = ["a/cafe\u0301.jpg", "a/other.jpg", "b.tar", "c.jpg", "d.jpg"]
    rows = [entry | {"path": path, "size": 1} for path in paths] + [entry | {"size": 1, "version": "2"}]
    listing = Listing(pa.Table.from_pylist(rows, schema=LISTING_SCHEMA), {"photos": 2})
    left = erased.leave_out(listing)
    assert left.entries["path"].to_pylist() == ["a/other.jpg", "d.jpg", "c.jpg"] and left.ignored == {"photos": 5}
    assert erased.leave_out(left) is left and Erased().leave_out(listing) is listing
    names = [key, member, "photos/d.jpg", "photos/e.jpg", "photos/f.jpg"]
    table = {"key": names, "hash": pa.array([hash_of(name) for name in names], pa.uint64())}
    table |= {"sha256": pa.array([None, None, b"\xab" * 32, b"\xab" * 32, bytes(32)], pa.binary(32))}
    table |= {"error_kind": [None, None, None, "erased", None]}
    assert erased.holds(pa.table(table)).tolist() == [True, True, True, False, False]
    file.write_bytes(b"{")
    with pytest.raises(SifBatchError, match="is damaged"):
        read_erased(store)

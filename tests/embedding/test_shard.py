import contextlib
import io
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paths import REPOSITORY

from sif_batch.config import Source
from sif_batch.embedding.child_cache import load_encoder
from sif_batch.embedding.shard import embed_shard
from sif_batch.embedding.supervision import SHARD_TRIES, STRIKES, embed_in_child
from sif_batch.embedding.threads import ShardStats
from sif_batch.encoders.installed import built_in_spec, install_encoder
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.images.decode import MAX_BYTES
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.parts import PART_SCHEMA, part_path
from sif_batch.ledger.plan import DEFAULT_LIMITS, Limits, make_plan, plan_shards, save_plan
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.machine.child import Child, ChildDied
from sif_batch.machine.devices import Lane
from sif_batch.sources.files import remote_version
from sif_batch.sources.listing import list_sources, parse_sources
from sif_batch.sources.reading import read_file
from sif_batch.storage.store import Store

SPEC = built_in_spec("efficientnet_lite0")
Row = dict[str, Any]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    # pyarrow imports pandas wherever it is installed, for nothing: more than half of a child's start.
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "pandas.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), str(REPOSITORY)]))
    child = Child()
    yield child
    child.close()


def make_root(root: Path, source: str, shard_images: int = 1000) -> tuple[Store, str]:
    """A new ROOT up to its plan, whose name comes with it."""
    store = Store(str(root))
    install_encoder(store, SPEC)
    sources = parse_sources([source])
    entries = list_sources(sources).entries
    return store, plan_again(store, entries, sources, Limits(shard_images=shard_images))


def plan_again(store: Store, entries: pa.Table, sources: Sequence[Source], limits: Limits = DEFAULT_LIMITS) -> str:
    """The plan of what is to do."""
    catalog = load_catalog(store, SPEC.id)
    plan = make_plan(SPEC.id, spans_to_do(entries, standing_rows(entries, catalog), catalog), limits)
    return save_plan(store, SPEC.id, plan, sources, limits)


def part_bytes(store: Store, plan: str) -> list[bytes]:
    names = dict.fromkeys(plan_shards(store, plan)["part"].to_pylist())
    return [store.read(part_path(SPEC.id, name)) for name in names]


def part_rows(store: Store, plan: str) -> dict[str, Row]:
    """The rows of all parts of a plan, by path."""
    rows = [row for data in part_bytes(store, plan) for row in pq.read_table(io.BytesIO(data)).to_pylist()]
    assert len(rows) == len(plan_shards(store, plan))
    return {row["path"]: row for row in rows}


def embed_here(store: Store, plan: str, threads: int = 2) -> list[ShardStats]:
    """Every shard of the plan, in this process."""
    shards = dict.fromkeys(plan_shards(store, plan)["shard"].to_pylist())
    return [embed_shard(lambda report: None, store.url, plan, shard, Lane("cpu", threads), {}, []) for shard in shards]


def vectors_of(rows: Mapping[str, Row]) -> dict[str, bytes]:
    """The bits of each row's float16 embedding."""
    return {path: np.array(row["embedding"], np.float16).tobytes() for path, row in rows.items()}


def embed_watched(child: Child, store: Store, plan: str, **seconds: float) -> tuple[ShardStats, list[int]]:
    """`embed_in_child` of shard 0 on one thread; with what its progress came to: images done, images failed."""
    progress = [0, 0]

    def add(done: int, failed: int) -> None:
        progress[0] += done
        progress[1] += failed

    return embed_in_child(child, store.url, plan, 0, Lane("cpu", 1), add, **seconds), progress


# A FIFO in an image's place is a meeting point: whoever opens it to read waits until somebody opens it to write.
# So a test can act at the very moment when an image is read, and an image can hang, without a product that knows it.


@contextlib.contextmanager
def when_opened(fifo: Path, act: Callable[[], None]) -> Iterator[None]:
    """Each time a process has opened this FIFO to read: `act`, after which it must end."""
    stop = threading.Event()

    def watch() -> None:
        while fifo.is_fifo() and not stop.is_set():
            try:
                descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # ENXIO: nobody reads
                time.sleep(0.005)
                continue
            act()
            gone = select.poll()
            gone.register(descriptor, 0)
            gone.poll(900_000)
            os.close(descriptor)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def replace_by_fifo(photo: Path) -> Path:
    """The FIFO in the photo's place; the photo itself is moved to the path that is returned."""
    aside = photo.parents[2] / photo.name
    photo.rename(aside)
    os.mkfifo(photo)
    return aside


def test_a_row_says_who_the_image_is_and_holds_its_vector(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    source = photos(3)
    store, plan = make_root(tmp_path / "root", str(source))
    stats = embed_here(store, plan)
    rows = part_rows(store, plan)
    paths = sorted(str(path.relative_to(source)) for path in source.rglob("*.jpg"))
    assert sorted(rows) == paths
    encoder = load_encoder(store.url, SPEC.id, "cpu")
    for path, row in rows.items():
        data = (source / path).read_bytes()
        pixels, width, height = encoder.read_image(data)
        expected = encoder.embed(pixels[None])[0].astype(np.float16)
        stat = (source / path).stat()
        assert vectors_of({path: row}) == {path: expected.tobytes()}
        assert (row["width"], row["height"]) == (width, height)
        assert row["version"] == f"{stat.st_size}-{stat.st_mtime_ns}"
        assert (row["key"], row["source"], row["attempt"]) == (f"photos/{path}", "photos", 1)
        assert (row["member"], row["fields"], row["error_kind"], row["error"]) == (None, None, None, None)
    assert [(s.images, s.failed, sorted(s.seconds)) for s in stats] == [(3, 0, ["decode", "network", "read", "write"])]


def test_bytes_are_the_same_for_any_number_of_threads(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    source = photos(20)
    made = []
    for threads in (1, 3):
        store, plan = make_root(tmp_path / f"root{threads}", str(source))
        embed_here(store, plan, threads)
        made.append(part_bytes(store, plan))
    assert made[0] == made[1]


def test_vectors_are_the_same_for_any_slicing(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    source = photos(20)
    made = []
    for shard_images in (1, 7, 20):
        store, plan = make_root(tmp_path / f"root{shard_images}", str(source), shard_images)
        embed_here(store, plan)
        made.append(vectors_of(part_rows(store, plan)))
    assert len(made[0]) == 20
    assert made[0] == made[1] == made[2]


def test_a_suspect_is_alone_in_work_and_changes_no_byte(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    source = photos(10)
    made = []
    for suspects in ([], [2, 7]):
        store, plan = make_root(tmp_path / f"root{len(suspects)}", str(source))
        reports: list[Any] = []
        embed_shard(reports.append, store.url, plan, 0, Lane("cpu", 2), {}, suspects)
        in_work: set[int] = set()
        started: list[int] = []
        for kind, value in reports:
            if kind == "start":
                image, _ = value
                started.append(image)
                assert not in_work & set(suspects) and (image not in suspects or not in_work)
                in_work.add(image)
            elif kind == "done":
                in_work -= set(value[0])
        assert sorted(started) == list(range(10)) and not in_work
        made.append(part_bytes(store, plan))
    assert made[0] == made[1]


def test_a_shard_whose_part_stands_is_not_made_again(
    tmp_path: Path, photos: Callable[[int], Path], child: Child
) -> None:
    source = photos(3)
    store, plan = make_root(tmp_path / "root", str(source))
    embed_here(store, plan)
    shutil.rmtree(source)
    stats, progress = embed_watched(child, store, plan)
    assert (stats, progress) == (ShardStats(), [3, 0])
    assert [row["error_kind"] for row in part_rows(store, plan).values()] == [None] * 3


def test_a_child_killed_once_changes_no_byte(tmp_path: Path, photos: Callable[[int], Path], child: Child) -> None:
    source = photos(10)
    undisturbed, same_plan = make_root(tmp_path / "undisturbed", str(source))
    embed_here(undisturbed, same_plan)
    store, plan = make_root(tmp_path / "root", str(source))
    photo = sorted(source.rglob("*.jpg"))[8]
    aside = replace_by_fifo(photo)
    killed: list[int] = []

    def put_back_and_kill() -> None:
        assert child.pid is not None
        killed.append(child.pid)
        aside.rename(photo)
        os.kill(child.pid, signal.SIGKILL)

    with when_opened(photo, put_back_and_kill):
        stats, progress = embed_watched(child, store, plan)
    assert len(killed) == 1
    assert ((stats.images, stats.failed), progress) == ((10, 0), [10, 0])
    assert part_bytes(store, plan) == part_bytes(undisturbed, same_plan)


def test_an_image_that_always_ends_the_child_is_one_row(
    tmp_path: Path, photos: Callable[[int], Path], child: Child
) -> None:
    source = photos(10)
    undisturbed, same_plan = make_root(tmp_path / "undisturbed", str(source))
    embed_here(undisturbed, same_plan)
    expected = vectors_of(part_rows(undisturbed, same_plan))
    store, plan = make_root(tmp_path / "root", str(source))
    photo = sorted(source.rglob("*.jpg"))[4]
    replace_by_fifo(photo)
    killed: list[int] = []

    def kill() -> None:
        assert child.pid is not None
        killed.append(child.pid)
        os.kill(child.pid, signal.SIGKILL)

    with when_opened(photo, kill):
        stats, progress = embed_watched(child, store, plan)
    rows = part_rows(store, plan)
    lost = rows.pop(str(photo.relative_to(source)))
    assert (lost["error_kind"], lost["error"]) == ("crashed", "the worker process ended (SIGKILL)")
    assert (lost["embedding"], lost["sha256"], lost["width"]) == (None, None, None)
    assert vectors_of(rows) == {path: expected[path] for path in rows}
    assert len(rows) == 9
    assert ((stats.images, stats.failed), progress) == ((10, 1), [10, 1])
    # Twice with the whole shard, then twice alone.
    assert len(set(killed)) == len(killed) == SHARD_TRIES + STRIKES


class Clock:
    """`time` for the parent. While an image hangs in a child, each look at it is minutes later; for no other child."""

    def __init__(self, child: Child) -> None:
        self.child, self.ahead_s = child, 0.0
        self.hung: list[int | None] = []  # the children in which it did

    def hang(self) -> None:
        self.hung.append(self.child.pid)

    def monotonic(self) -> float:
        if self.hung and self.hung[-1] == self.child.pid:
            self.ahead_s += 1000
        return time.monotonic() + self.ahead_s


def test_an_image_that_hangs_is_one_row(
    tmp_path: Path, photos: Callable[[int], Path], child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(child)
    monkeypatch.setattr("sif_batch.machine.child.time", clock)
    source = photos(3)
    store, plan = make_root(tmp_path / "root", str(source))
    photo = sorted(source.rglob("*.jpg"))[1]
    replace_by_fifo(photo)
    with when_opened(photo, clock.hang):
        stats, progress = embed_watched(child, store, plan, stall_s=200)
    rows = part_rows(store, plan)
    lost = rows.pop(str(photo.relative_to(source)))
    assert (lost["error_kind"], lost["error"]) == ("timeout", "the worker process reported nothing for 200 s")
    assert [row["error_kind"] for row in rows.values()] == [None, None]
    assert ((stats.images, stats.failed), progress) == ((3, 1), [3, 1])
    assert len(set(clock.hung)) == len(clock.hung) == SHARD_TRIES + STRIKES


def test_an_image_beyond_its_time_ends_the_child_once_and_is_one_row(
    tmp_path: Path, photos: Callable[[int], Path], child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(child)
    monkeypatch.setattr("sif_batch.machine.child.time", clock)
    monkeypatch.setattr("sif_batch.embedding.supervision.time", clock)
    source = photos(3)
    store, plan = make_root(tmp_path / "root", str(source))
    photo = sorted(source.rglob("*.jpg"))[1]
    replace_by_fifo(photo)
    with when_opened(photo, clock.hang):
        stats, progress = embed_watched(child, store, plan, stall_s=1e9, image_timeout_s=500)
    rows = part_rows(store, plan)
    lost = rows.pop(str(photo.relative_to(source)))
    assert (lost["error_kind"], lost["error"]) == ("timeout", "reading and decoding it took more than 500 s")
    assert [row["error_kind"] for row in rows.values()] == [None, None]
    assert ((stats.images, stats.failed), progress) == ((3, 1), [3, 1])
    assert len(clock.hung) == 1


def test_a_child_that_dies_without_an_image_in_work_stops_the_run(
    tmp_path: Path, photos: Callable[[int], Path], child: Child
) -> None:
    store, plan = make_root(tmp_path / "root", str(photos(3)))
    (tmp_path / "modules" / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SifBatchError, match=r"SIGKILL\), 3 times with no image in work") as caught:
        embed_watched(child, store, plan)
    assert "free memory" in caught.value.remedy
    assert not store.exists(f"parts/{SPEC.id}")


def test_a_container_that_ends_the_child_is_read_up_to_there(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    source = photos(6)
    shutil.make_archive(str(tmp_path / "photos"), "tar", source)
    for broken, images in (((-1, "crashed:it died"), 0), ((4, "timeout:it hung"), None)):
        store, plan = make_root(tmp_path / f"root{images}", f"{tmp_path}/*.tar")
        reports: list[Any] = []
        embed_shard(reports.append, store.url, plan, 0, Lane("cpu", 1), {}, [], broken)
        rows = [row for data in part_bytes(store, plan) for row in pq.read_table(io.BytesIO(data)).to_pylist()]
        own = [row for row in rows if row["member"] is None]
        assert [f"{row['error_kind']}:{row['error']}" for row in own] == [broken[1]]
        assert images is None or len(rows) == 1 + images
        assert all(row["embedding"] for row in rows if row["member"])
        read = [value for kind, value in reports if kind == "read"]
        assert read[-1] == broken[0] and read == list(range(-1, broken[0] + 1))


class Dying:
    """A child that dies of reading a container behind its image 6, unless it is told so."""

    pid = None

    def __init__(self) -> None:
        self.told: list[Any] = []

    def call(self, function: str, on_report: Callable[[Any], None], *_: Any, **arguments: Any) -> ShardStats:
        self.told.append(arguments["broken"])
        on_report(("read", 6))
        if arguments["broken"] is None:
            raise ChildDied("it ended", overdue=False)
        return ShardStats()


def test_a_container_that_ends_the_child_again_and_again_stops_no_run() -> None:
    child: Any = Dying()
    embed_in_child(child, "root", "plan", 0, Lane("cpu", 1), lambda done, failed: None)
    assert child.told == [None] * (SHARD_TRIES + 1) + [(6, "crashed:it ended while it was read")]


def test_files_that_went_away_or_changed_after_they_were_listed(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    source = photos(4)
    gone, grown, touched, kept = sorted(source.rglob("*.jpg"))
    stat = touched.stat()
    store, plan = make_root(tmp_path / "root", str(source))
    gone.unlink()
    grown.write_bytes(grown.read_bytes() + b"\0")
    os.utime(touched, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    (stats,) = embed_here(store, plan)
    rows = part_rows(store, plan)
    kinds = [rows[str(path.relative_to(source))]["error_kind"] for path in (gone, grown, touched, kept)]
    assert kinds == ["missing", "changed", "changed", None]
    assert (stats.images, stats.failed) == (4, 3)


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_source_that_is_away_is_no_images_fault(tmp_path: Path, photos: Callable[[int], Path], left: str) -> None:
    """As where a mount went away, or a node of a cluster never had it."""
    source = photos(3)
    store, plan = make_root(tmp_path / "root", str(source))
    source.rename(tmp_path / "elsewhere")
    if left == "an empty folder":
        source.mkdir()
    with pytest.raises(SifBatchError, match=f"does not see {source}") as caught:
        embed_here(store, plan)
    assert "mount" in caught.value.remedy and not store.exists(f"parts/{SPEC.id}")
    source.rmdir() if source.exists() else None
    (tmp_path / "elsewhere").rename(source)
    assert embed_here(store, plan)[0].failed == 0


def test_a_root_that_a_node_does_not_see_is_told(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    _, plan = make_root(tmp_path / "root", str(photos(1)))
    with pytest.raises(SifBatchError, match=f"does not see plan {plan} in {tmp_path}/elsewhere") as caught:
        embed_shard(lambda report: None, str(tmp_path / "elsewhere"), plan, 0, Lane("cpu", 1), {}, [])
    assert "bucket" in caught.value.remedy


def test_a_file_that_this_user_may_not_read(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    source = photos(1)
    (photo,) = source.rglob("*.jpg")
    stat = photo.stat()
    photo.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        with pytest.raises(ImageError) as caught:
            place = Source(name="photos", url=str(photo.parent))
            read_file(place, photo.name, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}", MAX_BYTES)
    finally:
        os.seteuid(user)
    assert caught.value.kind == "forbidden"


def test_a_remote_file_that_comes_short_or_changed() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/short_read/a.jpg", b"four")
    version = remote_version(fs.info("/short_read/a.jpg"))
    source = Source(name="short", url="memory://short_read")
    try:
        assert read_file(source, "a.jpg", 4, version, MAX_BYTES) == b"four"
        with pytest.raises(ImageError, match="4 bytes of 9") as caught:
            read_file(source, "a.jpg", 9, version, MAX_BYTES)
        assert caught.value.kind == "short_read"
        with pytest.raises(ImageError) as caught:
            read_file(source, "a.jpg", 4, "another etag", MAX_BYTES)
        assert caught.value.kind == "changed"
    finally:
        fs.rm("/short_read", recursive=True)


def test_a_file_beyond_the_limit_is_not_read() -> None:
    with pytest.raises(ImageError) as caught:
        read_file(Source(name="none", url="/nowhere"), "big.jpg", MAX_BYTES + 1, "", MAX_BYTES)
    assert caught.value.kind == "too_large"


def test_of_nfc_twins_the_second_is_a_row_that_says_so(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    (photo,) = photos(1).rglob("*.jpg")
    source = tmp_path / "twins"
    source.mkdir()
    for name in ("cafe\u0301.jpg", "caf\u00e9.jpg", "other.jpg"):
        shutil.copyfile(photo, source / name)
    store, plan = make_root(tmp_path / "root", str(source))
    embed_here(store, plan)
    rows = part_rows(store, plan)
    assert {path: row["error_kind"] for path, row in rows.items()} == {
        "cafe\u0301.jpg": None,
        "caf\u00e9.jpg": "duplicate_key",
        "other.jpg": None,
    }
    first, second = rows["cafe\u0301.jpg"], rows["caf\u00e9.jpg"]
    assert first["key"] == second["key"] == "twins/caf\u00e9.jpg"
    assert first["hash"] == second["hash"]
    assert (second["embedding"], second["sha256"]) == (None, None)


def test_a_vector_that_does_not_fit_float16_is_a_failure(
    tmp_path: Path, photos: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = make_root(tmp_path / "root", str(photos(2)))
    encoder = load_encoder(store.url, SPEC.id, "cpu")
    honest = encoder.embed

    def overflow(batch: np.ndarray) -> np.ndarray:
        vectors = honest(batch).copy()
        vectors[0, 5] = 70_000
        return vectors

    monkeypatch.setattr(encoder, "embed", overflow)
    embed_here(store, plan, threads=1)
    kinds = [row["error_kind"] for _, row in sorted(part_rows(store, plan).items())]
    assert kinds == ["not_finite", None]


def test_a_part_is_what_its_schema_says(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    store, plan = make_root(tmp_path / "root", str(photos(3)))
    embed_here(store, plan)
    (data,) = part_bytes(store, plan)
    table = pq.read_table(io.BytesIO(data))
    assert table.schema.remove_metadata() == PART_SCHEMA
    order = list(zip(table["hash"].to_pylist(), table["key"].to_pylist(), strict=True))
    assert order == sorted(order)

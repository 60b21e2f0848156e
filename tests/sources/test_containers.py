"""Containers from listing to release: the same vectors as the files, whatever happens on the way."""

import errno
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Finished
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic import ENCODER, Row, checked, entries_of

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError, telling_io
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.live import live_rows
from sif_batch.ledger.parts import encode_part, part_path
from sif_batch.ledger.plan import OPEN, Limits, part_name
from sif_batch.ledger.reconcile import stale_rows, standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.query.index import Index
from sif_batch.sources import reading
from sif_batch.sources.files import entry_rule
from sif_batch.sources.listing import list_sources, parse_sources
from sif_batch.sources.names import hash_of, member_key
from sif_batch.sources.originals import read_uri
from sif_batch.sources.reading import read_container
from sif_batch.storage.store import Store

# Many nights of a made-up container, with parts written one by one and runs that end in between.


@dataclass
class Container:
    """names: of its members in order; flaky: those that fail for now, until so many attempts; cut: the container
    itself fails for now after so many members, at its first attempts."""

    names: list[str]
    flaky: dict[int, int] = field(default_factory=dict)
    cut: int | None = None
    cut_attempts: int = 0
    path: str = "a.tar"
    version: str = "1-1"

    @property
    def entries(self) -> pa.Table:
        return entries_of([Row(self.path, self.version)])

    def row(self, ordinal: int | None, attempt: int, kind: str | None) -> dict[str, Any]:
        row = Row(self.path, self.version, attempt, kind).encoded()
        if ordinal is not None:
            key = member_key("photos", self.path, self.names[ordinal])
            row |= {"key": key, "hash": hash_of(key), "member": self.names[ordinal]}
            row["sha256"] = ordinal.to_bytes(32, "big")
        return row

    def embed(self, store: Store, span: dict[str, Any], size: int, parts: int) -> int:
        """As embedding does it, `size` members a part and so many parts at most; returns how many are left."""
        first = span["first"]
        while parts > 0:
            bounded = span["last"] != OPEN
            cut = self.cut is not None and span["attempt"] <= self.cut_attempts
            stop = min(self.cut, len(self.names)) if cut and self.cut is not None else len(self.names)
            last = span["last"] if bounded else min(first + size, stop) - 1
            end = not bounded and last + 1 == stop
            kept = {}
            for ordinal in range(first, last + 1):
                fails = self.flaky.get(ordinal, 0) >= span["attempt"]
                kept[self.names[ordinal]] = self.row(ordinal, span["attempt"], "timeout" if fails else None)
            rows = list(kept.values())
            if end and cut:
                rows.append(self.row(None, span["attempt"], "unreadable"))
            made = span | {"first": first, "last": last, "end": end}
            name = part_name(ENCODER, [span | {"first": first}], Limits(shard_images=size))
            data = encode_part(rows, [made], ENCODER, {"machine": "this"}, last + 1 - first - len(kept))
            store.create(part_path(ENCODER, name), data)
            parts -= 1
            if end or bounded:
                break
            first = last + 1
        return parts


names = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=14).map(lambda n: [f"{x}.jpg" for x in n])


@checked
@given(
    names,
    st.dictionaries(st.integers(0, 13), st.integers(1, 3), max_size=3),
    st.one_of(st.none(), st.integers(0, 14)),
    st.integers(1, 2),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=8),
)
def test_any_nights_end_with_each_member_once(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    flaky: dict[int, int],
    cut: int | None,
    cut_attempts: int,
    nights: list[tuple[int, int]],
) -> None:
    """nights: the size of parts and how many are written before the run is killed."""
    store = Store(str(tmp_path_factory.mktemp("nights")))
    container = Container(names, flaky, cut, cut_attempts)
    for size, parts in [*nights, *[(4, 99)] * 6]:
        catalog = load_catalog(store, ENCODER)
        assert catalog.spans.equals(load_catalog(store, ENCODER, keep=False).spans)
        standing = standing_rows(container.entries, catalog, max_attempts=10)
        for span in spans_to_do(container.entries, standing, catalog).to_pylist():
            parts = container.embed(store, span, size, parts)
    catalog = load_catalog(store, ENCODER)
    standing = standing_rows(container.entries, catalog, max_attempts=10)
    assert not len(spans_to_do(container.entries, standing, catalog)) and standing.first.tolist() == [-1]
    rows = catalog.rows.take(pa.array(standing.row)).to_pylist()
    last = {name: ordinal for ordinal, name in enumerate(names)}
    assert standing.good.all()
    assert {row["member"]: int.from_bytes(row["sha256"], "big") for row in rows} == last
    assert len(rows) == len(last)


@checked
@given(names, st.integers(1, 5))
def test_members_passed_over_are_counted(tmp_path_factory: pytest.TempPathFactory, names: list[str], size: int) -> None:
    store, container = Store(str(tmp_path_factory.mktemp("twice"))), Container(names)
    catalog = load_catalog(store, ENCODER)
    (span,) = spans_to_do(container.entries, standing_rows(container.entries, catalog), catalog).to_pylist()
    container.embed(store, span, size, 99)
    standing = standing_rows(container.entries, load_catalog(store, ENCODER))
    assert len(standing.row) + standing.superseded == len(names)


def test_a_new_version_that_fails_for_now_keeps_the_old_members(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old = Container(["a.jpg", "b.jpg", "c.jpg"], version="1-1")
    new = Container(["a.jpg", "d.jpg", "e.jpg"], flaky={0: 1}, cut=2, cut_attempts=1, version="2-2")
    for container in (old, new):
        catalog = load_catalog(store, ENCODER)
        (span,) = spans_to_do(container.entries, standing_rows(container.entries, catalog), catalog).to_pylist()
        container.embed(store, span, 2, 99)
    catalog = load_catalog(store, ENCODER)
    standing = standing_rows(new.entries, catalog)
    stale = stale_rows(new.entries, standing, catalog, [old.entries])
    rows = catalog.rows.select(["member", "version"]).take(pa.array(stale)).to_pylist()
    assert sorted((row["member"], row["version"]) for row in rows) == [
        ("a.jpg", "1-1"),
        ("b.jpg", "1-1"),
        ("c.jpg", "1-1"),
    ]
    good = catalog.rows["member"].take(pa.array(standing.row[standing.good])).to_pylist()
    assert good == ["d.jpg"]


def test_where_each_member_can_be_opened(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    for path, name in (("x/a.tar", "./cat/1.jpg"), ("b.parquet", "17"), ("c.zip", "cat/2.jpg")):
        container = Container([name], path=path)
        catalog = load_catalog(store, ENCODER)
        (span,) = spans_to_do(container.entries, standing_rows(container.entries, catalog), catalog).to_pylist()
        container.embed(store, span, 9, 9)
    catalog = load_catalog(store, ENCODER)
    table = live_rows(catalog, np.arange(3), [Source(name="photos", url="/data")])
    assert dict(zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True)) == {
        "photos/x/a.tar::cat/1.jpg": "tar://./cat/1.jpg::/data/x/a.tar",
        "photos/b.parquet::17": "/data/b.parquet#row=17",
        "photos/c.zip::cat/2.jpg": "zip://cat/2.jpg::/data/c.zip",
    }


# Which files are containers.


@pytest.mark.parametrize(
    ("url", "include", "path", "taken"),
    [
        ("/d", (), "a.tar", False),
        ("/d", ("*.tar",), "a.tar", True),
        ("/d/*.tar", (), "a.tar", True),
        ("/d/**/*.TAR.GZ", (), "x/a.tgz", True),
        ("/d/*.tar", (), "a.parquet", False),
        ("/d/*.ZIP", (), "x/a.zip", True),
        ("/d/*.tar.xz", (), "a.TAR.XZ", True),
        ("/d/*.zip", (), "a.tar", False),
        ("/d/*.parquet", (), "a.parquet", True),
        ("/d/a.parquet", (), "a.parquet", True),
        ("/d/*.tar", (), "1.jpg", True),
        ("/d/*.tar", (), "1.json", False),
    ],
)
def test_a_container_is_an_entry_where_the_source_names_it(
    url: str, include: tuple[str, ...], path: str, taken: bool
) -> None:
    assert entry_rule(Source(name="s", url=url, include=include))(path) == taken


# Real ones, by the command line.


def pack(photos: Path, tar: Path) -> list[Path]:
    files = sorted(photos.rglob("*.jpg"))
    with tarfile.open(tar, "w") as archive:
        for number, file in enumerate(files):
            name = f"./{file.relative_to(photos)}"
            archive.add(file, name)
            data = json.dumps({"number": number, "even": number % 2 == 0}).encode()
            info = tarfile.TarInfo(name.replace(".jpg", ".json"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return files


def vectors(root: Path) -> dict[bytes, bytes]:
    found = {}
    for part in root.glob("parts/*/*.parquet"):
        table = pq.read_table(part)
        for digest, vector in zip(table["sha256"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            if vector is not None:
                found[digest] = np.array(vector, np.float16).tobytes()
    return found


def test_a_tar_a_parquet_file_and_the_folder_give_the_same_vectors(
    sif_batch: Callable[..., Finished], photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = photos(30)
    files = pack(folder, tmp_path / "all.tar")
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet", row_group_size=7)
    runs = {
        "folder": [folder],
        "tar": [tmp_path / "all.tar", "--shard-images", 8],
        "parquet": [tmp_path / "all.parquet", "--keep", "label"],
    }
    for name, (source, *options) in runs.items():
        done = sif_batch("run", f"photos={source}", tmp_path / name, *options, "--json")
        assert done.code == 0, done.err
        counts = done.json
        assert (counts["listed"], counts["embedded"], counts["in_index"]) == (30, 30, 30)
        again = sif_batch("run", tmp_path / name, "--json").json
        assert (again["outcome"], again["unchanged"], again["release"]) == ("unchanged", 30, counts["release"])
    assert vectors(tmp_path / "folder") == vectors(tmp_path / "tar") == vectors(tmp_path / "parquet")
    assert len(list(tmp_path.glob("tar/parts/*/*.parquet"))) == 4

    index = Index.open(tmp_path / "tar")
    path = files[4].relative_to(folder)
    (hit, *_) = index.search(image=files[4], k=3)
    assert hit.key == f"photos/all.tar::{path}" and hit.uri == f"tar://./{path}::{tmp_path}/all.tar"
    assert hit.columns["number"] == 4 and hit.columns["even"] is True
    assert hit.columns["folder"] == f"all.tar/{path.parent}"
    (same, *_) = index.search(image=hit.uri, k=1)
    assert same.key == hit.key
    (row, *_) = Index.open(tmp_path / "parquet").search(image=files[4], k=1)
    assert (row.key, row.columns["label"]) == ("photos/all.parquet::4", files[4].parent.name)

    explained = sif_batch("explain", tmp_path / "tar", str(path), "--json").json
    assert (explained["key"], explained["state"]) == (hit.key, "embedded")
    assert explained["fields"] == {"number": 4, "even": True} and explained["release"] == index.release


def test_a_damaged_archive_gives_its_images_and_a_row_for_itself(
    sif_batch: Callable[..., Finished], photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, tar = photos(12), tmp_path / "cut.tar"
    files = pack(folder, tar)
    with tarfile.open(tar, "a") as archive:  # a member named twice: the last one wins
        archive.add(files[3], f"./{files[0].relative_to(folder)}")
    with tarfile.open(tar) as archive:
        end = archive.getmembers()[-1].offset_data + files[3].stat().st_size
    os.truncate(tar, -(-end // 512) * 512)
    done = sif_batch("run", tar, tmp_path / "root", "--max-failures", 1, "--shard-images", 5, "--json")
    counts = done.json
    assert (counts["listed"], counts["embedded"], counts["failed"], counts["superseded"]) == (13, 12, 1, 1)
    assert counts["failed_by_kind"] == {"truncated": 1}
    (failure,) = sif_batch("status", tmp_path / "root", "--kind", "truncated", "--json").json["failures"]
    assert failure["key"] == "cut-tar/cut.tar"
    assert sif_batch("status", tmp_path / "root", "--kind", "corrupt", "--json").json["failures"] == []
    twice = Index.open(tmp_path / "root").search(key=f"cut-tar/cut.tar::{files[3].relative_to(folder)}", k=1)
    assert twice[0].key == f"cut-tar/cut.tar::{files[0].relative_to(folder)}" and twice[0].similarity > 0.9999
    # Mended, it is a new version; nothing of the old one is left.
    pack(folder, tar)
    counts = sif_batch("run", tmp_path / "root", "--json").json
    assert (counts["reused"], counts["failed"], counts["failed_before"], counts["deleted"]) == (12, 0, 0, 0)


def test_archives_by_other_names_give_all_their_images(
    sif_batch: Callable[..., Finished], photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, archives = photos(12), tmp_path / "archives"
    archives.mkdir()
    files = pack(folder, tmp_path / "all.tar")
    tar = (tmp_path / "all.tar").read_bytes()
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        for file in files:
            archive.add(file, f"more/{file.name}")
    more = (tmp_path / "more.tar").read_bytes()
    (archives / "gz.tar").write_bytes(gzip.compress(tar))
    (archives / "plain.tar.gz").write_bytes(tar)
    (archives / "twice.tar.xz").write_bytes(lzma.compress(tar) + lzma.compress(more))
    shutil.make_archive(str(archives / "all"), "zip", folder)
    globs = [f"{kind}={archives}/*{suffix}" for kind, suffix in (("t", ".tar"), ("g", ".tar.gz"), ("x", ".tar.xz"))]
    counts = sif_batch("run", *globs, f"z={archives}/*.zip", tmp_path / "root", "--json").json
    assert counts["embedded"] + counts["reused"] == 5 * 12 and counts["failed"] == 0
    index = Index.open(tmp_path / "root")
    for row in range(0, 60, 7):
        uri = index.column("uri")[row].as_py()
        assert index.search(image=read_uri(uri), k=1)[0].similarity > 0.9999
    (zipped,) = [key for key in index.column("uri").to_pylist() if key.startswith("zip://")][:1]
    assert sif_batch("explain", tmp_path / "root", zipped, "--json").json["state"] == "embedded"
    assert sif_batch("run", tmp_path / "root", "--json").json["outcome"] == "unchanged"


def test_a_directory_of_archives_says_how_to_take_them_in(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(SifBatchError) as raised:
        list_sources(parse_sources([str(tmp_path)]))
    assert "--include '*.tar'" in raised.value.remedy
    (tmp_path / "a.7z").write_bytes(b"")
    with pytest.raises(SifBatchError, match=r"\.7z files are not read") as raised:
        list_sources(parse_sources([f"{tmp_path}/*.7z"]))
    assert ".zip" in raised.value.remedy


def test_all_failures_are_tried_again_on_demand(
    sif_batch: Callable[..., Finished], photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, root = photos(4), tmp_path / "root"
    (folder / "note.png").write_text("no image")
    Image.new("RGB", (9, 9)).save(folder / "tiny.png")
    first = sif_batch("run", folder, root, "--max-failures", 1, "--max-pixels", 100, "--json").json
    assert first["failed_by_kind"] == {"too_large": 4, "not_an_image": 1}
    again = sif_batch("run", root, "--max-failures", 1, "--json").json
    assert (again["failed"], again["failed_before"]) == (0, 5)
    taken_up = sif_batch("run", root, "--max-failures", 1, "--retry-failed", "--json").json
    assert (taken_up["embedded"], taken_up["failed"], taken_up["failed_by_kind"]) == (4, 1, {"not_an_image": 1})
    text = sif_batch("explain", root, "note.png").out
    assert "no format that is known" in text and "attempt 2" in text and "--exclude" in text
    unknown = sif_batch("explain", root, "nothing.jpg")
    assert unknown.code == 1 and "nothing is known of nothing.jpg" in unknown.err


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_container_in_an_object_store_is_read_and_a_change_is_noticed(name: str) -> None:
    fs = fsspec.filesystem("memory")
    sink = io.BytesIO()
    if name == "a.tar":
        with tarfile.open(fileobj=sink, mode="w") as archive:
            for member in ("0.jpg", "1.jpg"):
                info = tarfile.TarInfo(member)
                info.size = 3
                archive.addfile(info, io.BytesIO(b"abc"))
    else:
        pq.write_table(pa.table({"image": [b"abc", b"abc"]}), sink)
    fs.pipe_file(f"/containers/{name}", sink.getvalue())
    (source,) = parse_sources([f"memory://containers/*{Path(name).suffix}"])
    try:
        (entry,) = list_sources([source]).entries.to_pylist()
        pieces = list(read_container(source, entry["path"], entry["version"], 0, 100))
        assert [member.data for piece in pieces for member in piece.members] == [b"abc", b"abc"]
        with pytest.raises(ImageError) as raised:
            list(read_container(source, entry["path"], "another", 0, 100))
        assert raised.value.kind == "changed"
        with pytest.raises(ImageError) as raised:
            list(read_container(source, f"gone{name}", "another", 0, 100))
        assert raised.value.kind == "missing"
    finally:
        fs.rm("/containers", recursive=True)


def test_a_disk_that_fails_in_the_middle_of_a_container_is_unreadable_not_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(
        pa.table({"image": [bytes([i]) * 5000 for i in range(100)]}), tmp_path / "a.parquet", row_group_size=9
    )
    (source,) = parse_sources([str(tmp_path / "*.parquet")])
    (entry,) = list_sources([source]).entries.to_pylist()
    honest = reading._Telling.read
    reads = []

    def failing(self: Any, size: int = -1) -> bytes:
        reads.append(size)
        if len(reads) > 12:
            with telling_io():
                raise OSError(errno.EIO, "Input/output error")
        return honest(self, size)

    monkeypatch.setattr(reading._Telling, "read", failing)
    with pytest.raises(ImageError) as raised:
        list(read_container(source, entry["path"], entry["version"], 0, 10_000))
    assert raised.value.kind == "unreadable"


def test_other_options_make_another_version_of_a_container_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "n": [1]}), tmp_path / "t.parquet")
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    options: list[dict[str, Any]] = [
        {"image_column": "a"},
        {"image_column": "b"},
        {"image_column": "b", "keep": ("n",)},
        {"image_column": "b", "keep": ("n",), "exclude": ("x",)},
    ]
    found = []
    for some in options:
        entries = list_sources(
            parse_sources([str(tmp_path)], **{"include": ("*.parquet",), **some})
        ).entries.to_pylist()
        versions = {entry["path"]: entry["version"] for entry in entries}
        (source,) = parse_sources([str(tmp_path)], include=("*.parquet",), **some)
        (piece,) = read_container(source, "t.parquet", versions["t.parquet"], 0, 9)
        found.append((versions["t.parquet"], versions["1.png"], piece.members[0].data))
    assert len({version for version, _, _ in found}) == 3 and len({version for _, version, _ in found}) == 1
    assert [data for _, _, data in found] == [b"1", b"2", b"2", b"2"]

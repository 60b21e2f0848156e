import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import (
    DIMENSION,
    ENCODER,
    SOURCE,
    Live,
    Row,
    assemble,
    build_release,
    checked,
    entries_of,
    find_live,
    flip_bit,
    make_root,
    manifest_of,
    memory_copy,
    paths,
    quantize,
    vector_of,
    write_part,
    write_parts,
)

from sif_batch.errors import SifBatchError
from sif_batch.index.quantize_part import quantize_part
from sif_batch.query.index import Index
from sif_batch.release.history import publish, read_history, read_top
from sif_batch.release.manifest import describe_sources, find_damage, inputs_digest, read_manifest
from sif_batch.release.placement import segment_ends
from sif_batch.sources.names import hash_of
from sif_batch.storage.store import Store

COUNT = 700
ROWS = [Row(path) for path in paths(COUNT)]


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# Segments.


@checked
@given(st.sets(st.integers(0, 2**64 - 1), max_size=200), st.integers(1, 220))
def test_segments_are_the_fewest_equal_ranges_of_the_hash(hashes: set[int], max_rows: int) -> None:
    sorted_hashes = sorted(hashes)
    if max_rows < 20 and len(hashes) > max_rows:
        max_rows = 20  # the examples crowd: hashes near 0 need very many ranges to part them
    x = np.array(sorted_hashes, np.uint64)

    def sizes(count: int) -> list[int]:
        return [sum(i * 2**64 // count <= h < (i + 1) * 2**64 // count for h in sorted_hashes) for i in range(count)]

    needed = next(2**bits for bits in range(65) if bits > 12 or max(sizes(2**bits)) <= max_rows)
    if needed > 2**10:
        return
    ends = segment_ends(x, max_rows)
    assert len(ends) == needed
    assert np.diff(ends, prepend=0).tolist() == sizes(needed)
    assert ends[-1] == len(hashes)


def test_one_segment_holds_what_fits() -> None:
    hashes = np.sort(np.random.default_rng(0).integers(0, 2**64 - 1, 1000, np.uint64, endpoint=True))
    assert segment_ends(hashes, 1000).tolist() == [1000]
    assert len(segment_ends(hashes, 999)) == 2
    assert segment_ends(np.empty(0, np.uint64), 10).tolist() == [0]


# The id.


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_the_release_is_the_same_from_one_part_or_many(tmp_path: Path, family: str) -> None:
    made = {}
    for size in (COUNT, 90):
        rows = [ROWS[i] for i in np.random.default_rng(size).permutation(COUNT)]
        (tmp_path / str(size)).mkdir()
        store = make_root(tmp_path / str(size) / "root", rows, size)
        sealed = build_release(store, entries_of(ROWS), tmp_path / str(size), family)
        made[size] = (sealed, contents(Path(store.path(f"releases/{sealed}"))))
    assert made[COUNT] == made[90]
    names = {"release.json", "images.arrow", "encoder/model.onnx", "encoder/encoder.json", "segments/000/rows.npy"}
    ivf = {"segments/000/index.faiss", *(f"quantizer/{n}.npy" for n in ("mean", "components", "variances"))}
    assert set(made[COUNT][1]) == names | (ivf if family == "ivf-pq" else set())


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_update_by_update_gives_the_same_as_from_scratch(tmp_path: Path, family: str) -> None:
    """Images come, change and go over three nights; then the same collection is built at once elsewhere."""
    store = make_root(tmp_path / "nights", ROWS[:500], 170)
    record = quantize(store, find_live(store, entries_of(ROWS[:500])), family)
    changed = [replace(row, version="2-2", vector=vector_of(f"new {row.path}")) for row in ROWS[100:140]]
    write_parts(store, [*ROWS[500:], *changed], 90)
    now = [*ROWS[30:100], *changed, *ROWS[140:]]  # the first 30 are deleted
    live = find_live(store, entries_of(now))
    for part in live.used:
        quantize_part(lambda report: None, store.url, record.id, part)
    manifest, _ = assemble(store, live, record, tmp_path / "one")

    fresh = make_root(tmp_path / "scratch", now, 1000)
    shutil.copytree(store.path("quantizers"), fresh.path("quantizers"))
    again = find_live(fresh, entries_of(now))
    for part in again.used:
        quantize_part(lambda report: None, fresh.url, record.id, part)
    other, _ = assemble(fresh, again, record, tmp_path / "two")
    assert manifest == other and contents(tmp_path / "one") == contents(tmp_path / "two")
    keys = {f"photos/{row.path}" for row in now}
    assert set(live.keys) == keys and len(live.keys) == len(keys)


def test_rows_stand_in_order_of_hash_with_their_vectors(tmp_path: Path) -> None:
    store = make_root(tmp_path / "root", ROWS, 150)
    sealed = build_release(store, entries_of(ROWS), tmp_path)
    table = pa.ipc.open_file(store.path(f"releases/{sealed}/images.arrow")).read_all()
    order = sorted(ROWS, key=lambda row: hash_of(f"photos/{row.path}"))
    assert table.schema.names == ["key", "hash", "uri", "sha256", "source", "folder", "width", "height"]
    assert [str(table.schema.field(name).type) for name in ("key", "uri", "folder")] == ["large_string"] * 3
    assert table["key"].to_pylist() == [f"photos/{row.path}" for row in order]
    assert table["hash"].to_pylist() == [hash_of(f"photos/{row.path}") for row in order]
    assert table["uri"].to_pylist() == [f"/photos/{row.path}" for row in order]
    assert table["folder"].to_pylist() == [row.path.rpartition("/")[0] for row in order]
    assert table["sha256"].to_pylist() == [row.encoded()["sha256"] for row in order]
    kept = np.load(store.path(f"releases/{sealed}/segments/000/rows.npy"))
    vectors = np.stack([vector_of(row.path) for row in order]).astype(np.float64)
    assert np.array_equal(kept, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))


def test_an_image_at_the_top_of_its_source_has_an_empty_folder(tmp_path: Path) -> None:
    rows = [Row("1.jpg"), Row("a/2.jpg"), Row("a/b/3.jpg")]
    store = make_root(tmp_path / "root", rows)
    index = Index.open(store.path(f"releases/{build_release(store, entries_of(rows), tmp_path)}"))
    found = zip(index.column("key").to_pylist(), index.column("folder").to_pylist(), strict=True)
    assert dict(found) == {"photos/1.jpg": "", "photos/a/2.jpg": "a", "photos/a/b/3.jpg": "a/b"}


def test_the_digest_of_the_inputs_changes_with_what_decides_the_release(tmp_path: Path) -> None:
    def digest(rows: list[Row], fingerprint: str = "this", decided: dict[str, Any] | None = None, size: int = 9) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        store = Store(str(folder))
        for start in range(0, len(rows), size):
            write_part(store, rows[start : start + size], fingerprint=fingerprint)
        live = find_live(store, entries_of(rows))
        return inputs_digest(live.table, live.fingerprints, decided or {"rows": 1})

    some = ROWS[:30]
    same = digest(some)
    assert digest(some, size=30) == digest(list(reversed(some)), size=4) == same
    changed = [
        digest(some[:29]),
        digest([*some[:29], Row("other.jpg")]),
        digest([*some[:29], replace(some[29], version="2-2")]),
        digest(some, fingerprint="that"),
        digest(some, decided={"rows": 2}),
    ]
    assert len({same, *changed}) == 6


# Segments searched as one.


def indexes(tmp_path: Path, family: str, max_rows: int) -> tuple[Index, Index, Live]:
    """The same release in one segment and in several."""
    store = make_root(tmp_path / "root", ROWS, 150)
    live = find_live(store, entries_of(ROWS))
    record = quantize(store, live, family)
    opened = []
    for name, limit in (("one", COUNT), ("several", max_rows)):
        manifest, _ = assemble(store, live, record, tmp_path / name, limit)
        point = {"cells": record.spec.cells, "rerank": COUNT // 2} if family == "ivf-pq" else None
        opened.append(Index(Store(str(tmp_path / name)), "", manifest | {"operating_point": point}))
    assert [index.manifest["segments"] for index in opened] == [1, len(list((tmp_path / "several/segments").iterdir()))]
    return opened[0], opened[1], live


@pytest.mark.parametrize("max_rows", [400, 100, 30])
def test_several_segments_of_an_exact_index_answer_as_one(tmp_path: Path, max_rows: int) -> None:
    one, several, live = indexes(tmp_path, "flat", max_rows)
    assert several.manifest["segments"] >= COUNT / max_rows
    asked = np.stack([vector_of(path) for path in paths(40, COUNT)]).astype(np.float32)
    for k in (1, 10, COUNT, COUNT + 5):
        for (rows, found), (others, same) in zip(one.ranked(asked, k), several.ranked(asked, k), strict=True):
            assert rows.tolist() == others.tolist() and found.tobytes() == same.tobytes()
    assert [one.search(key=key, k=5) for key in live.keys[::50]] == [
        several.search(key=key, k=5) for key in live.keys[::50]
    ]
    assert one.column("key").equals(several.column("key"))


def test_several_segments_of_an_ivf_find_what_one_finds(tmp_path: Path) -> None:
    one, several, live = indexes(tmp_path, "ivf-pq", 200)
    assert several.manifest["segments"] >= 4
    asked = np.stack([vector_of(path) for path in paths(40, COUNT)]).astype(np.float32)
    shared = 0
    for (rows, _), (others, _) in zip(one.ranked(asked, 10), several.ranked(asked, 10), strict=True):
        shared += len(set(rows) & set(others))
    assert shared >= 0.98 * 400  # each segment gives as many candidates as the one: several find rather more
    for vectors in (asked, one.vectors_of(np.arange(0, COUNT, 50))):
        for (rows, found), (others, same) in zip(
            one.ranked(vectors, COUNT), several.ranked(vectors, COUNT), strict=True
        ):
            assert rows.tolist() == others.tolist() and np.allclose(found, same, atol=1e-6)
    assert [several.row_of(key) for key in live.keys[::50]] == list(range(0, COUNT, 50))


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_a_segment_may_be_empty(tmp_path: Path, family: str) -> None:
    rows = [row for row in ROWS if hash_of(f"photos/{row.path}") < 2**63]
    store = make_root(tmp_path / "root", rows)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, family)
    manifest, _ = assemble(store, live, record, tmp_path / "several", len(rows) - 1)
    ends = segment_ends(live.table["hash"].to_numpy(), len(rows) - 1)
    assert len(ends) > 1 and 0 in np.diff(ends, prepend=0)
    point = {"cells": record.spec.cells, "rerank": 50} if family == "ivf-pq" else None
    index = Index(Store(str(tmp_path / "several")), "", manifest | {"operating_point": point})
    for key in live.keys[::40]:
        rows_found, similarities = index.ranked(index.vectors_of(np.array([index.row_of(key)])), 3)[0]
        assert live.keys[rows_found[0]] == key and similarities[0] > 0.999


# Sealing and verifying.


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a release."""
    folder = tmp_path_factory.mktemp("sealed")
    store = make_root(folder / "root", ROWS[:300], 100)
    return Path(store.path("releases"), build_release(store, entries_of(ROWS[:300]), folder, "ivf-pq"))


@pytest.fixture
def copied(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / sealed.name))


def test_the_manifest_says_size_and_sha256_of_every_file(sealed: Path) -> None:
    manifest = read_manifest(Store(str(sealed)))
    found = contents(sealed)
    assert manifest["files"].keys() == found.keys() - {"release.json"}
    for name, entry in manifest["files"].items():
        assert entry == {"size": len(found[name]), "sha256": hashlib.sha256(found[name]).hexdigest()}
    assert hashlib.sha256(found["release.json"]).hexdigest() == sealed.name
    assert Index.open(str(sealed)).release == sealed.name
    assert (
        json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        == found["release.json"]
    )


def test_a_sound_release_has_no_damage(sealed: Path) -> None:
    assert find_damage(Store(str(sealed))) == []
    assert find_damage(Store(str(sealed.parents[1])), f"releases/{sealed.name}") == []


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: file.unlink(), "missing"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, expected"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"x"), "bytes, expected"),
    "altered": (lambda file: file.write_bytes(b"\1" * file.stat().st_size), "sha256"),
    "bit-flipped": (lambda file: flip_bit(file, 4 * file.stat().st_size), "sha256"),
    "empty": (lambda file: file.write_bytes(b""), "0 bytes, expected"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named_with_the_reason(copied: Path, damage: str) -> None:
    harm, reason = DAMAGES[damage]
    for name in sorted(read_manifest(Store(str(copied)))["files"]):
        whole = (copied / name).read_bytes()
        harm(copied / name)
        (found,) = find_damage(Store(str(copied)))
        assert found["file"] == name and reason in found["reason"]
        (below,) = find_damage(Store(str(copied.parent)), copied.name)
        assert below["file"] == f"{copied.name}/{name}"
        (copied / name).write_bytes(whole)
    assert find_damage(Store(str(copied))) == []


def test_several_damaged_files_are_all_named(copied: Path) -> None:
    (copied / "images.arrow").unlink()
    flip_bit(copied / "segments/000/rows.npy", 5000)
    assert [found["file"] for found in find_damage(Store(str(copied)))] == ["images.arrow", "segments/000/rows.npy"]


def test_a_damaged_manifest_is_named(copied: Path) -> None:
    whole = (copied / "release.json").read_bytes()
    for data in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'{"files": []}',
        b'{"files": {"a": 1}}',
        whole[:-5],
        b"\xff" + whole,
    ):
        (copied / "release.json").write_bytes(data)
        (found, *_) = find_damage(Store(str(copied)))
        assert found["file"] == "release.json", data
    (copied / "release.json").unlink()
    assert find_damage(Store(str(copied))) == [{"file": "release.json", "reason": "missing"}]


def test_any_flipped_bit_of_the_manifest_is_found(copied: Path) -> None:
    whole = (copied / "release.json").read_bytes()
    for bit in range(0, 8 * len(whole), 61):
        (copied / "release.json").write_bytes(whole)
        flip_bit(copied / "release.json", bit)
        assert "release.json" in [found["file"] for found in find_damage(Store(str(copied)))]


def test_a_release_in_a_store_is_verified_too(sealed: Path) -> None:
    url = f"memory://test-release/{sealed.name}"
    remove = memory_copy(sealed, url)
    store = Store(url)
    try:
        assert find_damage(store) == []
        store.fs.pipe_file(store.path("images.arrow"), b"other")
        store.fs.rm(store.path("encoder/model.onnx"))
        assert {d["file"]: d["reason"].split(":")[0] for d in find_damage(store)} == {
            "images.arrow": "altered",
            "encoder/model.onnx": "missing",
        }
    finally:
        remove()


def test_a_manifest_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for data in (b"{", b"\xff\xff"):
        (tmp_path / "release.json").write_bytes(data)
        with pytest.raises(SifBatchError, match="release.json: cannot be read") as raised:
            read_manifest(Store(str(tmp_path)))
        assert "verify" in raised.value.remedy
    with pytest.raises(SifBatchError, match="cannot be read"):
        read_manifest(Store(str(tmp_path)), "releases/x")


# Publishing.


def test_history_begins_with_the_first_publishing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert read_top(store) is None and read_history(store) == []
    first = publish(store, "a" * 64, None, "passed")
    assert (first["n"], first["parent"], first["release"], first["action"]) == (1, None, "a" * 64, "publish")
    second = publish(store, "b" * 64, first, "skipped")
    assert (second["n"], second["parent"]) == (2, "a" * 64)
    assert read_top(store) == second and read_history(store) == [first, second]
    assert store.read("LATEST").decode().strip() == "b" * 64
    assert list(store.sizes("history")) == ["00000001.json", "00000002.json"]


def test_of_two_that_publish_after_the_same_parent_the_second_fails(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = publish(store, "a" * 64, None, "passed")
    publish(store, "b" * 64, first, "passed")
    with pytest.raises(SifBatchError, match="another run published") as raised:
        publish(store, "c" * 64, first, "passed")
    assert raised.value.remedy
    assert read_top(store)["release"] == "b" * 64 and store.read("LATEST").decode().strip() == "b" * 64  # type: ignore[index]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_of_many_that_publish_at_once_one_succeeds(tmp_path: Path, place: str) -> None:
    store = Store(str(tmp_path) if place == "local" else "memory://test-publish")
    won: list[str] = []
    start = threading.Barrier(8)

    def work(name: str) -> None:
        start.wait()
        try:
            publish(store, name * 64, None, "passed")
        except SifBatchError:
            return
        won.append(name * 64)

    threads = [threading.Thread(target=work, args=[name]) for name in "abcdefgh"]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [entry["release"] for entry in read_history(store)]
    finally:
        if place == "memory":
            store.fs.rm(store.base, recursive=True)


def test_the_order_of_history_outlives_nine(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    top = None
    for number in range(1, 13):
        top = publish(store, f"{number:064d}", top, "passed")
    assert read_top(store) == top and [entry["n"] for entry in read_history(store)] == list(range(1, 13))


def test_the_release_says_nothing_of_where_and_how_it_was_made(tmp_path: Path) -> None:
    store = make_root(tmp_path / "root", ROWS[:100], 30)
    manifest = manifest_of(store, build_release(store, entries_of(ROWS[:100]), tmp_path))
    text = json.dumps(manifest)
    assert str(tmp_path) not in text and manifest["rows"] == 100
    assert manifest["quantizer"]["encoder"] == ENCODER and manifest["quantizer"]["dimension"] == DIMENSION
    assert describe_sources([SOURCE]) == [{"name": "photos", "url": "/photos"}]

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import PHOTOS, REPOSITORY
from PIL import Image
from synthetic import (
    DIMENSION,
    SOURCE,
    Row,
    build_release,
    entries_of,
    exact_order,
    flip_bit,
    make_root,
    memory_copy,
    paths,
    vector_of,
)

from sif_batch.config import Source
from sif_batch.embedding.shard import embed_shard
from sif_batch.encoders.installed import built_in_spec, install_encoder
from sif_batch.encoders.networks import BUILT_IN
from sif_batch.encoders.runtime import Encoder
from sif_batch.errors import SifBatchError
from sif_batch.gate import operating_point
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.plan import Limits, make_plan, save_plan
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.todo import spans_to_do
from sif_batch.machine.devices import Lane
from sif_batch.query.hits import Hit
from sif_batch.query.index import Index
from sif_batch.query.opening import find_release
from sif_batch.query.segments import OperatingPoint
from sif_batch.release.history import read_top
from sif_batch.sources.listing import list_sources, parse_sources
from sif_batch.storage.store import Store

COUNT = 900
ROWS = [Row(path) for path in paths(COUNT)]
ASKED = np.stack([vector_of(path) for path in paths(60, COUNT)]).astype(np.float32)


def made(folder: Path, family: str, rows: list[Row] | None = None, **options: Any) -> Path:
    """A ROOT with a release of some rows."""
    rows = ROWS if rows is None else rows
    store = make_root(folder / "root", rows, 300)
    build_release(store, entries_of(rows), folder, family, **options)
    return folder / "root"


@pytest.fixture(scope="module")
def flat_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("flat"), "flat")


@pytest.fixture(scope="module")
def ivf_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operating_point, "SCANNED_AT_LEAST", 1)  # so that it is asked by some of its cells
        return made(tmp_path_factory.mktemp("ivf"), "ivf-pq")


@pytest.fixture(scope="module")
def flat(flat_root: Path) -> Index:
    return Index.open(flat_root)


@pytest.fixture(scope="module")
def ivf(ivf_root: Path) -> Index:
    return Index.open(ivf_root)


def vectors_in_order(index: Index) -> np.ndarray:
    """The vectors that the release was made of, in order of its rows."""
    return np.stack([vector_of(key.removeprefix("photos/")) for key in index.column("key").to_pylist()])


# Ranking.


@pytest.mark.parametrize("k", [1, 10, 100, COUNT])
def test_exact_search_is_brute_force(flat: Index, k: int) -> None:
    vectors = vectors_in_order(flat)
    (kept,) = flat.kept_rows()
    for asked, (rows, similarities) in zip(ASKED, flat.ranked(ASKED, k), strict=True):
        assert rows.shape == similarities.shape == (k,)
        assert (np.diff(similarities) <= 0).all() and len(set(rows)) == k
        # With the rows as they are kept, in float16, all is equal; with those that the encoder gave, nearly.
        order, exact = exact_order(kept, asked)
        assert np.abs(similarities - exact[rows]).max() < 3e-7
        assert np.abs(exact[order[:k]] - exact[rows]).max() < 3e-7
        order, exact = exact_order(vectors, asked)
        assert np.abs(similarities - exact[rows]).max() < 3e-4
        assert len(set(rows) & set(order[:k])) >= 0.98 * k


def test_the_first_of_a_long_ranking_are_the_short_ranking(flat: Index, ivf: Index) -> None:
    long = flat.ranked(ASKED, COUNT)
    for k in (1, 5, 50, 300, COUNT - 1):
        for (rows, found), (all_rows, all_found) in zip(flat.ranked(ASKED, k), long, strict=True):
            assert rows.tolist() == all_rows[:k].tolist() and np.allclose(found, all_found[:k], atol=1e-7)
    exhaustive = ivf.ranked(ASKED, COUNT)
    for (rows, found), (all_rows, _) in zip(ivf.ranked(ASKED, 10), exhaustive, strict=True):
        assert len(set(rows) & set(all_rows[:10])) >= 6 and (np.diff(found) <= 0).all()


def test_an_ivf_finds_nearly_all_that_brute_force_finds(ivf: Index) -> None:
    vectors = vectors_in_order(ivf)
    assert ivf.point is not None and ivf.point.cells < ivf.manifest["quantizer"]["cells"]
    found = 0
    for asked, (rows, similarities) in zip(ASKED, ivf.ranked(ASKED, 10), strict=True):
        order, exact = exact_order(vectors, asked)
        found += len(set(rows) & set(order[:10]))
        assert np.abs(similarities - exact[rows]).max() < 0.01
    assert found >= 0.9 * 10 * len(ASKED)


def test_more_than_there_are_gives_all_there_are(flat: Index, ivf: Index) -> None:
    for index in (flat, ivf):
        for k in (COUNT, COUNT + 1, 10 * COUNT):
            assert len(index.search(vector=ASKED[0], k=k)) == COUNT
        assert len(index.search(key=index.column("key")[0].as_py(), k=10 * COUNT)) == COUNT - 1
        assert {hit.key for hit in index.search(vector=ASKED[0], k=2 * COUNT)} == set(index.column("key").to_pylist())


def test_equal_rows_come_in_order_of_rows(tmp_path: Path) -> None:
    """Copies of one image: their order, and which of them are among the k, is that of their rows."""
    same = vector_of("one.jpg")
    rows = [Row(path, vector=same if i % 3 else None) for i, path in enumerate(paths(600))]
    for family in ("flat", "ivf-pq"):
        (tmp_path / family).mkdir()
        index = Index.open(made(tmp_path / family, family, rows))
        copies = {f"photos/{row.path}" for row in rows if row.vector is not None}
        places = [i for i, key in enumerate(index.column("key").to_pylist()) if key in copies]
        ((found, similarities),) = index.ranked(same[None].astype(np.float32), 600)
        assert found[: len(places)].tolist() == places
        assert np.ptp(similarities[: len(places)]) == 0
        if family == "flat":
            for k in (5, 20):
                ((few, _),) = index.ranked(same[None].astype(np.float32), k)
                assert set(few.tolist()) <= set(places) and few.tolist() == sorted(few.tolist())
        hits = index.search(key=index.column("key")[places[5]].as_py(), k=3)
        assert all(hit.similarity == 1 for hit in hits)


def test_a_query_in_the_index_finds_itself_first_and_its_key_leaves_it_out(flat: Index, ivf: Index) -> None:
    for index in (flat, ivf):
        keys = index.column("key").to_pylist()
        for row in range(0, COUNT, 90):
            vector = vector_of(keys[row].removeprefix("photos/"))
            by_vector = index.search(vector=vector, k=6)
            by_key = index.search(key=keys[row], k=5)
            assert by_vector[0].key == keys[row] and by_vector[0].similarity > 0.999
            assert keys[row] not in {hit.key for hit in by_key} and len(by_key) == 5
            if index is flat:
                assert [hit.key for hit in by_key] == [hit.key for hit in by_vector[1:]]


def test_the_length_of_a_query_vector_does_not_matter(flat: Index) -> None:
    hits = flat.search(vector=ASKED[0])
    for scale in (1e-3, 7, 1e6):
        again = flat.search(vector=ASKED[0] * scale)
        assert [hit.key for hit in again] == [hit.key for hit in hits]
    assert flat.search(vector=ASKED[0].tolist()) == hits
    assert flat.search(vector=ASKED[0].astype(np.float64)) == hits


def test_a_hit_says_all_that_is_known(flat: Index) -> None:
    hit = flat.search(vector=ASKED[0], k=1)[0]
    assert isinstance(hit, Hit) and len(flat) == COUNT and flat.dimension == DIMENSION
    path = hit.key.removeprefix("photos/")
    assert hit.uri == f"/photos/{path}"
    assert hit.columns == {"source": "photos", "folder": path.rpartition("/")[0], "width": 300, "height": 200}
    assert -1 <= hit.similarity <= 1 and hit.similarity == round(hit.similarity, 6)


def test_search_vectors_gives_keys_and_similarities(flat: Index, ivf: Index) -> None:
    for index in (flat, ivf):
        keys, similarities = index.search_vectors(ASKED, k=7)
        assert keys.shape == similarities.shape == (len(ASKED), 7)
        assert keys.dtype == object and similarities.dtype == np.float32
        for i in (0, 59):
            hits = index.search(vector=ASKED[i], k=7)
            assert keys[i].tolist() == [hit.key for hit in hits]
            assert np.allclose(similarities[i], [hit.similarity for hit in hits], atol=1e-6)


def test_search_vectors_fills_up_where_there_are_fewer(flat: Index) -> None:
    keys, similarities = flat.search_vectors(ASKED[:2], k=COUNT + 3)
    assert keys.shape == (2, COUNT + 3)
    assert keys[:, COUNT:].tolist() == [[None] * 3] * 2 and np.isnan(similarities[:, COUNT:]).all()
    assert None not in keys[:, :COUNT] and not np.isnan(similarities[:, :COUNT]).any()
    keys, similarities = flat.search_vectors(np.empty((0, DIMENSION), np.float32), k=4)
    assert keys.shape == similarities.shape == (0, 4)


def test_many_queries_at_once_answer_as_one_by_one(flat: Index, ivf: Index) -> None:
    many = np.concatenate([ASKED] * 6)
    for index in (flat, ivf):
        together = index.ranked(many, 5)
        assert len(together) == 360
        for i in (0, 100, 257, 359):
            ((rows, found),) = index.ranked(many[i : i + 1], 5)
            assert rows.tolist() == together[i][0].tolist() and np.allclose(found, together[i][1], atol=1e-6)


def test_eight_threads_at_once_agree(flat: Index, ivf: Index) -> None:
    for index in (flat, ivf):
        expected = [index.search(vector=asked, k=10) for asked in ASKED[:20]]
        found: dict[int, Any] = {}
        start = threading.Barrier(8)

        def work(number: int, index: Index = index, found: dict[int, Any] = found, start: Any = start) -> None:
            start.wait()
            found[number] = [index.search(vector=asked, k=10) for asked in ASKED[:20]]

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[number] for number in range(8)] == [expected] * 8


def test_codes_scanned_are_those_of_the_cells_probed(ivf: Index) -> None:
    cells = ivf.manifest["quantizer"]["cells"]
    assert ivf.codes_scanned(ASKED, OperatingPoint(cells, 50)) == COUNT
    scanned = [ivf.codes_scanned(ASKED, OperatingPoint(count, 50)) for count in (1, 2, 4, cells)]
    assert scanned == sorted(scanned) and 0 < scanned[0] < COUNT / 4


# What cannot be asked.


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, "k is 0, expected at least 1"),
        ({"k": -3}, "k is -3, expected at least 1"),
        ({"vector": np.ones(7)}, rf"\(7,\), expected \({DIMENSION},\)"),
        ({"vector": np.ones((2, DIMENSION))}, rf"expected \({DIMENSION},\)"),
        ({"vector": np.float32(1)}, rf"expected \({DIMENSION},\)"),
        ({"vector": np.full(DIMENSION, np.nan)}, "not finite"),
        ({"vector": [np.inf] + [0.0] * (DIMENSION - 1)}, "not finite"),
        ({"vector": np.full(DIMENSION, 1e300)}, "not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_bad_question_is_a_clear_error(flat: Index, ivf: Index, asked: dict[str, Any], message: str) -> None:
    for index in (flat, ivf):
        with pytest.raises(SifBatchError, match=message):
            index.search(**({"vector": ASKED[0]} | asked))


def test_search_vectors_checks_what_it_is_given(flat: Index) -> None:
    for x, k, message in (
        (ASKED, 0, "k is 0"),
        (ASKED, -1, "k is -1"),
        (ASKED[0], 5, "expected"),
        (ASKED[:, :-1], 5, rf"\({DIMENSION - 1},\), expected \({DIMENSION},\)"),
        (np.full((1, DIMENSION), np.nan, np.float32), 5, "not finite"),
    ):
        with pytest.raises(SifBatchError, match=message):
            flat.search_vectors(x, k)


def test_exactly_one_thing_is_asked_for(flat: Index) -> None:
    with pytest.raises(SifBatchError, match="given: none"):
        flat.search()
    with pytest.raises(SifBatchError, match="given: vector, key"):
        flat.search(vector=ASKED[0], key="photos/a/00000.jpg")


@pytest.mark.parametrize("key", ["photos/nothing.jpg", "", "photos/a/00000.jpg "])
def test_an_unknown_key_is_a_clear_error(flat: Index, key: str) -> None:
    with pytest.raises(SifBatchError, match=f"no image of the release has the key '{key}'") as raised:
        flat.search(key=key)
    assert "source/folder" in raised.value.remedy


def test_an_unknown_column_is_a_clear_error(flat: Index) -> None:
    with pytest.raises(SifBatchError, match="no column 'colour'") as raised:
        flat.column("colour")
    assert "folder" in raised.value.remedy


# Opening.


def test_a_root_and_its_release_open_the_same(flat_root: Path, flat: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    release = f"{flat_root}/releases/{flat.release}"
    monkeypatch.chdir(flat_root.parent)
    for url in (flat_root, str(flat_root), f"{flat_root}/", f"file://{flat_root}", "root", release, Path(release)):
        assert Index.open(url).release == flat.release
    assert Index.open(release).search(vector=ASKED[0]) == flat.search(vector=ASKED[0])


def test_the_current_release_is_the_top_of_history_not_latest(tmp_path: Path) -> None:
    root = made(tmp_path, "flat", ROWS[:100])
    (root / "LATEST").write_text("0" * 64)
    top = read_top(Store(str(root)))
    assert top is not None and Index.open(root).release == top["release"]


def test_a_copied_release_opens_elsewhere(flat_root: Path, flat: Index, tmp_path: Path) -> None:
    copied = shutil.copytree(flat_root / "releases" / flat.release, tmp_path / "elsewhere")
    assert Index.open(copied).search(vector=ASKED[0]) == flat.search(vector=ASKED[0])


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
@pytest.mark.parametrize("what", ["root", "release"])
def test_a_release_in_a_store_answers_as_a_local_one(request: pytest.FixtureRequest, family: str, what: str) -> None:
    root = request.getfixturevalue("flat_root" if family == "flat" else "ivf_root")
    index = Index.open(root)
    url = "memory://test-query/x"
    remove = memory_copy(root if what == "root" else root / "releases" / index.release, url)
    try:
        opened = Index.open(url)
        assert opened.release == index.release
        assert opened.search(vector=ASKED[3], k=20) == index.search(vector=ASKED[3], k=20)
        assert opened.search(key="photos/a/00000.jpg") == index.search(key="photos/a/00000.jpg")
    finally:
        remove()


def test_what_is_no_root_says_so(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SifBatchError, match="neither a ROOT nor a release") as raised:
            Index.open(place)
        assert raised.value.remedy
    make_root(tmp_path / "root", ROWS[:10])
    with pytest.raises(SifBatchError, match="no release is published yet"):
        find_release(str(tmp_path / "root"))


@pytest.mark.parametrize("family", ["flat", "ivf-pq"])
def test_a_missing_or_cut_file_is_named_when_the_release_is_opened(
    request: pytest.FixtureRequest, family: str, tmp_path: Path
) -> None:
    root = request.getfixturevalue("flat_root" if family == "flat" else "ivf_root")
    release = Index.open(root).release
    copied = Path(shutil.copytree(root / "releases" / release, tmp_path / "copied"))
    for name in Index.open(copied).manifest["files"]:
        whole = (copied / name).read_bytes()
        for data in (None, whole[:-1], whole + b"x"):
            (copied / name).unlink() if data is None else (copied / name).write_bytes(data)
            with pytest.raises(SifBatchError, match=f"{name}: missing or altered") as raised:
                Index.open(copied)
            assert "verify" in raised.value.remedy
            (copied / name).write_bytes(whole)
    assert Index.open(copied).release == release


@pytest.mark.parametrize("place", ["local", "memory"])
def test_any_flipped_bit_of_index_faiss_is_an_error(ivf_root: Path, ivf: Index, tmp_path: Path, place: str) -> None:
    copied = Path(shutil.copytree(ivf_root / "releases" / ivf.release, tmp_path / "copied"))
    file = copied / "segments/000/index.faiss"
    whole = file.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 10).tolist():
        file.write_bytes(whole)
        flip_bit(file, bit)
        url, remove = str(copied), (lambda: None)
        if place == "memory":
            url = "memory://test-query/damaged"
            remove = memory_copy(copied, url)
        try:
            with pytest.raises(SifBatchError, match="index.faiss: missing or altered") as raised:
                Index.open(url)
            assert raised.value.remedy
        finally:
            remove()


def test_an_altered_manifest_is_an_error(flat_root: Path, flat: Index, tmp_path: Path) -> None:
    """The folder's name is the digest of its release.json."""
    copied = Path(shutil.copytree(flat_root / "releases" / flat.release, tmp_path / flat.release))
    whole = (copied / "release.json").read_bytes()
    for bit in range(3, 8 * len(whole), 97):
        (copied / "release.json").write_bytes(whole)
        flip_bit(copied / "release.json", bit)
        with pytest.raises(SifBatchError, match="release.json|damaged") as raised:
            Index.open(copied)
        assert "verify" in raised.value.remedy
    for data in (b"{}", b"[]", b"7", b'{"files": 1}', b'{"files": {}, "quantizer": {}}'):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x/release.json").write_bytes(data)
        with pytest.raises(SifBatchError, match="damaged"):
            Index.open(tmp_path / "x")


@pytest.mark.parametrize("name", ["segments/000/rows.npy", "images.arrow", "quantizer/mean.npy"])
def test_a_file_that_cannot_be_parsed_is_named(ivf_root: Path, ivf: Index, tmp_path: Path, name: str) -> None:
    """Its size is right, so it is found only when it is read."""
    copied = Path(shutil.copytree(ivf_root / "releases" / ivf.release, tmp_path / "copied"))
    (copied / name).write_bytes(bytes(len((copied / name).read_bytes())))
    with pytest.raises(SifBatchError, match="damaged") as raised:
        Index.open(copied)
    assert "verify" in raised.value.remedy


# Images.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """40 photos and a ROOT of them, embedded by the real encoder."""
    folder = tmp_path_factory.mktemp("pictures")
    for photo in sorted(PHOTOS.rglob("*.jpg"))[::5]:
        target = folder / "photos" / photo.relative_to(PHOTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, target)
    store = Store(str(folder / "root"))
    spec = built_in_spec("efficientnet_lite0")
    sources = parse_sources([str(folder / "photos")])
    entries = list_sources(sources).entries
    install_encoder(store, spec)
    store.create("root.json", b"{}")
    catalog = load_catalog(store, spec.id)
    todo = spans_to_do(entries, standing_rows(entries, catalog), catalog)
    plan = save_plan(store, spec.id, make_plan(spec.id, todo, Limits(shard_images=25)), sources)
    for shard in range(-(-len(entries) // 25)):
        embed_shard(lambda report: None, store.url, plan, shard, Lane("cpu", 2), {}, [])
    build_release(store, entries, folder, sources=sources, encoder=spec.id)
    return folder / "photos", folder / "root"


def test_a_photo_is_found_by_path_bytes_pil_vector_and_key(pictures: tuple[Path, Path]) -> None:
    photos, root = pictures
    index = Index.open(root)
    encoder = Encoder(built_in_spec("efficientnet_lite0"), BUILT_IN["efficientnet_lite0"] / "model.onnx")
    for photo in sorted(photos.rglob("*.jpg"))[::10]:
        key = f"photos/{photo.relative_to(photos)}"
        hits = index.search(image=photo, k=5)
        assert hits[0].key == key and hits[0].similarity > 0.9999 and hits[0].uri == str(photo)
        assert hits[0].columns["folder"] == photo.parent.name
        assert hits[0].columns["width"], hits[0].columns["height"] == Image.open(photo).size
        data = photo.read_bytes()
        vector = encoder.embed(encoder.read_image(data)[0][None])[0]
        for question in ({"image": str(photo)}, {"image": data}, {"image": f"file://{photo}"}, {"vector": vector}):
            assert index.search(**question, k=5) == hits
        (many,) = index.search(images=[photo], k=5)
        assert many == hits
        with Image.open(photo) as image:  # a PIL image may have been reduced less while it was decoded
            by_pil = index.search(image=image, k=5)
        assert by_pil[0].key == key and by_pil[0].similarity > 0.99
        by_key = index.search(key=key, k=4)
        assert [hit.key for hit in by_key] == [hit.key for hit in hits[1:]]


def test_several_images_are_asked_at_once(pictures: tuple[Path, Path]) -> None:
    photos, root = pictures
    index = Index.open(root)
    files = sorted(photos.rglob("*.jpg"))[:3]
    together = index.search(images=files, k=3)
    assert [[hit.key for hit in hits] for hits in together] == [
        [hit.key for hit in index.search(image=file, k=3)] for file in files
    ]
    assert index.search(images=[]) == []


def test_an_image_in_a_store_can_be_asked(pictures: tuple[Path, Path]) -> None:
    photos, root = pictures
    index = Index.open(root)
    photo = sorted(photos.rglob("*.jpg"))[0]
    url = "memory://test-query/one.jpg"
    store = Store("memory://test-query")
    store.create("one.jpg", photo.read_bytes())
    try:
        assert index.search(image=url, k=3) == index.search(image=photo, k=3)
    finally:
        store.fs.rm(store.base, recursive=True)


def test_an_image_query_that_is_no_image_is_a_clear_error(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    photos, root = pictures
    index = Index.open(root)
    photo = sorted(photos.rglob("*.jpg"))[0]
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:3000])
    for asked, message in (
        (text, f"{text}: not usable as an image: not_an_image"),
        (text.read_bytes(), "the query: not usable as an image: not_an_image"),
        (b"", "the query: not usable as an image: not_an_image"),
        (cut, f"{cut}: not usable as an image: truncated"),
        (tmp_path / "gone.jpg", "gone.jpg: cannot be read"),
        (tmp_path, "cannot be read"),
        (Image.open(cut), "the query: not usable as an image: truncated"),
        (Image.new("RGB", (0, 5)), "the query: not usable as an image"),
    ):
        with pytest.raises(SifBatchError, match=message):
            index.search(image=asked)
        with pytest.raises(SifBatchError, match=message):
            index.search(images=[photo, asked])


def test_asking_an_image_loads_neither_torch_nor_beam(pictures: tuple[Path, Path]) -> None:
    photos, root = pictures
    photo = sorted(photos.rglob("*.jpg"))[0]
    code = f"""
import json, sys
from sif_batch.query import Index
hits = Index.open({str(root)!r}).search(image={str(photo)!r}, k=3)
heavy = ("torch", "apache_beam", "scipy", "sklearn", "click", "rich", "jobs", "pipelines")
print(json.dumps([[hit.key for hit in hits], [name for name in heavy if name in sys.modules]]))
"""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=900, check=True
    )
    keys, loaded = json.loads(done.stdout)
    assert loaded == [] and keys == [hit.key for hit in Index.open(root).search(image=photo, k=3)]


def test_a_network_that_cannot_be_loaded_is_named(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    _, root = pictures
    copied = Path(shutil.copytree(root / "releases" / Index.open(root).release, tmp_path / "copied"))
    model = copied / "encoder/model.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    index = Index.open(copied)  # opening checks sizes alone of all but index.faiss
    assert len(index.search(vector=np.ones(index.dimension))) == 10
    with pytest.raises(SifBatchError, match="model.onnx: the network cannot be loaded") as raised:
        index.search(image=Image.new("RGB", (9, 9)))
    assert "verify" in raised.value.remedy


def test_sources_elsewhere_change_uris_not_keys(tmp_path: Path) -> None:
    rows = ROWS[:50]
    found = []
    for name, url in (("a", "/photos"), ("b", "s3-like")):
        (tmp_path / name).mkdir()
        moved = SOURCE if name == "a" else Source(name="photos", url=f"memory://{url}")
        index = Index.open(made(tmp_path / name, "flat", rows, sources=[moved]))
        found.append(index.search(vector=ASKED[0], k=5))
    assert [hit.key for hit in found[0]] == [hit.key for hit in found[1]]
    assert found[1][0].uri == f"memory:///s3-like/{found[1][0].key.removeprefix('photos/')}"


def test_a_photo_turned_by_exif_is_asked_upright(pictures: tuple[Path, Path]) -> None:
    photos, root = pictures
    index = Index.open(root)
    photo = sorted(photos.rglob("*.jpg"))[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned back
    with Image.open(photo) as image:
        sink = io.BytesIO()
        image.transpose(Image.Transpose.ROTATE_90).save(sink, "PNG", exif=exif)
    assert index.search(image=sink.getvalue(), k=1)[0].key == index.search(image=photo, k=1)[0].key
    assert index.search(image=sink.getvalue(), k=1)[0].similarity > 0.99

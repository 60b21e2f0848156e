"""Every family under every metric against brute force, through the release's own reader."""

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
from paths import REPOSITORY
from synthetic import (
    Live,
    Row,
    assemble,
    build_release,
    entries_of,
    find_live,
    flip_bit,
    make_root,
    measure,
    paths,
    quantize,
    vector_of,
)

from sif_batch.config import IndexSettings
from sif_batch.errors import SifBatchError
from sif_batch.index.codebooks import fill_codebook
from sif_batch.index.codes import read_codes
from sif_batch.index.quantizer import load_quantizer
from sif_batch.index.train_quantizer import train_quantizer
from sif_batch.machine import arithmetic
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.machine.devices import usable_cores
from sif_batch.query.index import Index
from sif_batch.query.segments import OperatingPoint
from sif_batch.release import assembly, external_sort
from sif_batch.storage.store import Store

COUNT = 1200
FAMILIES = ("flat", "ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw")
SHAPES: list[dict[str, Any]] = [
    *({"family": family, "metric": metric} for family in FAMILIES for metric in ("cosine", "euclidean", "pearson")),
    *({"family": family, "power": True, "whitening": 0.5} for family in FAMILIES),
    {"family": "ivf-pq", "bits": 8},
    {"family": "ivf-flat", "bits": 32},
    {"family": "ivf-flat", "max_bytes_per_row": 48},
]


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Live]:
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path_factory.mktemp("families") / "root", rows, 500)
    return store, find_live(store, entries_of(rows))


def similarities(settings: dict[str, Any], x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(queries, rows) in float64, by the formula of each metric, without whitening."""
    x, q = x.astype(np.float64), q.astype(np.float64)
    if settings.get("metric") == "euclidean":
        return 1 / (1 + np.sqrt(((q[:, None] - x[None]) ** 2).sum(axis=2)))
    if settings.get("metric") == "pearson":
        x, q = x - x.mean(axis=1, keepdims=True), q - q.mean(axis=1, keepdims=True)
    return (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)


@pytest.mark.parametrize("settings", SHAPES, ids=lambda s: "-".join(map(str, s.values())))
def test_every_shape_finds_what_brute_force_finds(
    rooted: tuple[Store, Live], tmp_path: Path, settings: dict[str, Any]
) -> None:
    store, live = rooted
    record = quantize(store, live, **settings)
    manifest, placed = assemble(store, live, record, tmp_path / "release", 700)
    figures, _ = measure(store, live, record, tmp_path / "release", manifest, placed)
    assert manifest["segments"] > 1 and figures["recall"]["at_10"] > 0.93
    index = Index(Store(str(tmp_path / "release")), "", manifest | figures)
    x = np.stack([vector_of(path) for path in live.table["path"].to_pylist()])
    q = np.stack([vector_of(path) for path in paths(30, COUNT)]).astype(np.float32)
    if settings.get("whitening"):
        transform = load_quantizer(store, record.id).transform
        expected = similarities({}, transform.apply(x), transform.apply(q))
    else:
        expected = similarities(settings, x, q)
    rounding = 0.001 if settings["family"] == "flat" else 0.01 if record.spec.rows != "none" else 0.03
    found = 0
    for query, (rows, got) in enumerate(index.ranked(q, 10)):
        assert np.allclose(got, expected[query, rows], atol=rounding) and (np.diff(got) <= 0).all()
        found += len(set(rows) & set(np.argsort(-expected[query])[:10]))
    assert found >= 0.93 * 300
    hit = index.search(vector=x[17], k=1)[0]
    assert hit.key == live.keys[17] and hit.similarity > (0.9 if settings.get("metric") == "euclidean" else 0.999)


@pytest.mark.parametrize("family", ["ivf-flat", "ivf-rabitq", "hnsw"])
def test_codes_of_parts_make_the_index_that_faiss_makes_of_vectors(rooted: tuple[Store, Live], family: str) -> None:
    store, live = rooted
    quantizer = load_quantizer(store, quantize(store, live, family).id)
    code = np.concatenate([read_codes(store, quantizer.spec, quantizer.record.id, part).code for part in live.parts])
    faiss = import_faiss()
    plain = faiss.clone_index(quantizer.index)
    vectors = np.concatenate([np.stack([vector_of(row) for row in names]) for names in _paths_by_part(live)])
    reduced = quantizer.reduce(quantizer.transform.apply(vectors))
    assembled = fill_codebook(family, quantizer.index, code)
    plain.add(reduced)
    wanted, got = (index.search(reduced[:50], 10)[1] for index in (plain, assembled))
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(wanted, got, strict=True)]) > 0.95
    again = fill_codebook(family, quantizer.index, code)
    assert faiss.serialize_index(again).tobytes() == faiss.serialize_index(assembled).tobytes()


def _paths_by_part(live: Live) -> list[list[str]]:
    table = live.table.sort_by([("part", "ascending"), ("row", "ascending")])
    part, path = table["part"].to_pylist(), table["path"].to_pylist()
    return [[p for p, n in zip(path, part, strict=True) if n == number] for number in range(len(live.parts))]


def test_rows_that_do_not_fit_into_memory_are_assembled_to_the_same_bytes(
    rooted: tuple[Store, Live], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, live = rooted
    record = quantize(store, live, "ivf-pq")
    found = []
    for name, limit in (("whole", external_sort.BUCKET_BYTES), ("spread", 4000)):
        monkeypatch.setattr(external_sort, "IN_MEMORY_BYTES", limit)
        monkeypatch.setattr(external_sort, "BUCKET_BYTES", limit)
        assemble(store, live, record, tmp_path / name, 700)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        found.append({file.relative_to(tmp_path / name).as_posix(): file.read_bytes() for file in files})
    assert found[0] == found[1]
    assert not list(tmp_path.glob(".tmp-*"))


def test_too_little_scratch_is_told_before_anything_is_read(
    rooted: tuple[Store, Live], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, live = rooted
    record = quantize(store, live, "ivf-pq")
    monkeypatch.setattr(external_sort, "IN_MEMORY_BYTES", 4000)
    monkeypatch.setattr(external_sort, "RESERVE", shutil.disk_usage(tmp_path).total)
    monkeypatch.setattr(assembly, "read_codes", None)
    with pytest.raises(SifBatchError, match="GB are needed there, 0.0 GB are free") as raised:
        assemble(store, live, record, tmp_path / "release")
    assert "--scratch" in raised.value.remedy


# Targets.


def test_an_impossible_target_says_what_can_be_had(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(2500)]
    store = make_root(tmp_path / "root", rows, 1000)
    live = find_live(store, entries_of(rows))
    settings = IndexSettings(family="ivf-pq", recall=0.999, max_bytes_per_row=8)
    with pytest.raises(
        SifBatchError, match=r"recall@10 0.999 cannot be had at 8 bytes a row: 0.\d+ is the most"
    ) as told:
        train_quantizer(store, "synthetic-0123456789ab", settings, live.parts, live.table, None)
    recall, enough = (float(word.rstrip(",")) for word in (told.value.remedy.split()[1], told.value.remedy.split()[-1]))
    assert 0.1 < recall < 0.999 and not store.exists("quantizers")
    quantize(store, live, "ivf-pq", recall=recall, max_bytes_per_row=8)
    promised = settings.model_copy(update={"max_bytes_per_row": int(enough)})
    record = train_quantizer(store, "synthetic-0123456789ab", promised, live.parts, live.table, None)
    assert record.spec.rows == "float16"  # 8-bit rows never put .999 in order


def test_vectors_that_are_all_the_same_make_an_index_that_the_gate_refuses(tmp_path: Path) -> None:
    rows = [Row(path, vector=np.arange(48.0)) for path in paths(300)]
    store = make_root(tmp_path / "root", rows, 100)
    live = find_live(store, entries_of(rows))
    for family in FAMILIES:
        record = quantize(store, live, family)
        manifest, placed = assemble(store, live, record, tmp_path / family)
        figures, _ = measure(store, live, record, tmp_path / family, manifest, placed)
        assert figures["sanity"]["alike"] == 300
        index = Index(Store(str(tmp_path / family)), "", manifest | figures)
        assert len(index.search(vector=np.arange(48.0), k=10)) == 10


# The reader.


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(folder / "root", rows, 500)
    sealed = build_release(store, entries_of(rows), folder, "ivf-pq", max_rows=400)
    return Path(store.path(f"releases/{sealed}"))


def test_threads_asking_at_once_agree_with_one(released: Path) -> None:
    index = Index.open(str(released))
    q = np.stack([vector_of(path) for path in paths(40, COUNT)]).astype(np.float32)
    wanted = [rows.tolist() for rows, _ in index.ranked(q, 10)]
    one_by_one = [index.ranked(query[None], 10)[0][0].tolist() for query in q]
    assert one_by_one == wanted
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        found[number] = [rows.tolist() for rows, _ in index.ranked(q, 10)]

    threads = [threading.Thread(target=work, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == wanted for number in range(6))


# OpenMP starts its threads as a loop first runs on several: a process that never asked so has no more than it had.
COUNT_THREADS = """
import os, sys
import numpy as np
from sif_batch.query import Index, OperatingPoint
index = Index.open(sys.argv[1])
x = np.random.default_rng(0).normal(size=(64, 48))
def ask(some):
    index.segments.candidates(index.ranking.reduced(some), OperatingPoint(8, 50))
    return len(os.listdir("/proc/self/task"))
print(ask(x[:1]), *[ask(x[i : i + 1]) for i in range(64)], ask(x))
"""


@pytest.mark.parametrize("family", ["ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw"])
def test_a_query_alone_stays_on_one_core_and_many_use_all(tmp_path: Path, family: str) -> None:
    if usable_cores() < 2:
        pytest.skip("needs two cores")
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path / "root", rows, 500)
    release = store.path(f"releases/{build_release(store, entries_of(rows), tmp_path, family)}")
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", COUNT_THREADS, release]
    done = subprocess.run(command, capture_output=True, text=True, env=env | {"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    first, *alone, together = map(int, done.stdout.split())
    assert set(alone) == {first} and together > first


DAMAGED_QUERIES = """
import json, sys
import numpy as np
from sif_batch.errors import SifBatchError
from sif_batch.query import Index
from sif_batch.query.segments import OperatingPoint
answers = []
for bits in json.loads(sys.argv[2]):
    for name, at in bits:
        data = bytearray(open(f"{sys.argv[1]}/{name}", "rb").read())
        data[at // 8] ^= 1 << at % 8
        open(f"{sys.argv[1]}/{name}", "wb").write(data)
    try:
        index = Index.open(sys.argv[1])
        for query in np.random.default_rng(0).normal(size=(4, 48)).astype(np.float32):
            assert all(0 <= row < len(index) for rows, _ in index.ranked(query[None], 10) for row in rows)
            index.search(vector=query, k=200)
        index.column("folder")
        answers.append("answered")
    except SifBatchError as error:
        answers.append("told")
    for name, at in bits:
        data = bytearray(open(f"{sys.argv[1]}/{name}", "rb").read())
        data[at // 8] ^= 1 << at % 8
        open(f"{sys.argv[1]}/{name}", "wb").write(data)
print(json.dumps(answers))
"""


def test_damaged_files_never_end_the_process_or_give_a_row_that_is_not_there(released: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(released, tmp_path / "copied"))
    random = np.random.default_rng(1)
    damages = []
    for name in sorted(json.loads((copied / "release.json").read_bytes())["files"]):
        if name.startswith("encoder/"):
            continue
        size = (copied / name).stat().st_size
        damages += [[(name, int(at))] for at in random.integers(0, 8 * size, 6)]
        damages += [[(name, int(at))] for at in random.integers(0, 8 * min(size, 300), 4)]
    images = 8 * (copied / "images.arrow").stat().st_size
    damages += [[("images.arrow", int(at)) for at in random.integers(0, images, 200)] for _ in range(20)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", DAMAGED_QUERIES, str(copied), json.dumps(damages)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads(done.stdout)) == len(damages) and "told" in done.stdout


def test_a_release_whose_files_contradict_each_other_is_damaged(released: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(released, tmp_path / "copied"))
    rows = np.load(copied / "segments/000/rows.npy")
    np.save(copied / "segments/000/rows.npy", rows[:-1])
    manifest = json.loads((copied / "release.json").read_bytes())
    with pytest.raises((SifBatchError, ValueError)):
        Index(Store(str(copied)), "", manifest)


def test_a_damaged_quantizer_is_told(rooted: tuple[Store, Live]) -> None:
    store, live = rooted
    record = quantize(store, live, "ivf-pq")
    for name in record.files:
        file = Path(store.path(f"quantizers/{record.id}/{name}"))
        flip_bit(file, 8 * file.stat().st_size // 2)
        with pytest.raises(SifBatchError, match=f"{record.id} is damaged .*{name} is altered") as raised:
            load_quantizer(store, record.id)
        assert "trains anew" in raised.value.remedy
        flip_bit(file, 8 * file.stat().st_size // 2)
    load_quantizer(store, record.id)


def test_an_altered_record_of_a_quantizer_is_told_before_it_is_used_again(tmp_path: Path) -> None:
    rows = [Row(path) for path in paths(300)]
    store = make_root(tmp_path / "root", rows, 100)
    live = find_live(store, entries_of(rows))
    record = quantize(store, live, "ivf-pq")
    file = Path(store.path(f"quantizers/{record.id}/quantizer.json"))
    whole = file.read_text()
    for is_, was in (('"metric":"euclidean"', '"metric":"cosine"'), (f'"cells":{record.spec.cells + 1}', None)):
        file.write_text(whole.replace(was or f'"cells":{record.spec.cells}', is_))
        with pytest.raises(SifBatchError, match=f"{record.id} is damaged .*quantizer.json is altered"):
            quantize(store, live, "ivf-pq")
    file.write_text(whole)
    assert quantize(store, live, "ivf-pq") == record


@pytest.mark.parametrize("settings", [{"whitening": 0.5}, {"max_bytes_per_row": 48}], ids=["whitened", "cut"])
def test_a_query_is_not_projected_in_padded_blocks(
    rooted: tuple[Store, Live], tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, live = rooted
    record = quantize(store, live, "ivf-pq", recall=0.5, **settings)
    manifest, _ = assemble(store, live, record, tmp_path / "release")
    index, query = Index(Store(str(tmp_path / "release")), "", manifest), vector_of("new.jpg")[None].astype(np.float32)
    trained = load_quantizer(store, record.id)
    expected = trained.kept(trained.transform.apply(query))

    def refuse(*given: Any) -> Any:
        raise AssertionError("1,024 rows for one query")

    monkeypatch.setattr(arithmetic, "in_blocks", refuse)
    assert len(index.ranked(query, 10, point=OperatingPoint(2, 50))[0][0]) == 10
    found = index.ranking.kept_view(index.transform.apply(query, arithmetic.project_few))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

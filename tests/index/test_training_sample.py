import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ENCODER, Live, Row, checked, entries_of, find_live, make_root, paths, vector_of, write_part

from sif_batch.errors import SifBatchError
from sif_batch.index.training_sample import HELD_OUT, HELD_OUT_FROM, read_rows, sample_rows
from sif_batch.ledger.parts import part_path
from sif_batch.sources.names import hash_of
from sif_batch.storage.store import Store

SPAN = 2**64


def collection(count: int, start: int = 0) -> pa.Table:
    """The part of a live table that sampling looks at: keys and hashes, in order."""
    pairs = sorted((hash_of(f"photos/{path}"), f"photos/{path}") for path in paths(count, start))
    return pa.table({"hash": pa.array([h for h, _ in pairs], pa.uint64()), "key": [key for _, key in pairs]})


def picked_keys(live: pa.Table, picked: np.ndarray) -> list[str]:
    return live["key"].take(pa.array(picked)).to_pylist()


# Which rows to train on and to ask with.


@settings(checked, max_examples=30)
@given(st.integers(100, 3000), st.integers(0, 300), st.sampled_from([1, 8]))
def test_training_and_held_out_rows_are_disjoint_bands_of_the_hash(count: int, start: int, cells: int) -> None:
    live = collection(count, start)
    hashes = live["hash"].to_pylist()
    training, held_out = sample_rows(live, cells)
    assert set(training) & set(held_out) == set()
    upper = [i for i, h in enumerate(hashes) if h >= SPAN // 16 * 15]
    if upper:
        assert held_out.tolist() == upper[-HELD_OUT:]
        assert training.tolist() == list(range(upper[0]))
    else:
        assert len(held_out) and held_out.max() == count - 1


def test_bands_stay_as_the_collection_grows() -> None:
    small, large = collection(2000), collection(4000)
    for name in (0, 1):
        before, after = (set(picked_keys(live, sample_rows(live, 8)[name])) for live in (small, large))
        assert before <= after and len(before) < len(after)


def test_no_more_rows_are_taken_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sif_batch.index.training_sample.TRAINING_ROWS", 300)
    monkeypatch.setattr("sif_batch.index.training_sample.HELD_OUT", 20)
    live = collection(2000)
    assert [len(rows) for rows in sample_rows(live, 1)] == [300, 20]
    assert [len(rows) for rows in sample_rows(live, 10)] == [640, 20]
    training, held_out = sample_rows(live, 1)
    assert training.tolist() == list(range(300)) and held_out.tolist() == list(range(1980, 2000))


def test_without_a_row_in_the_upper_band_the_last_rows_are_held_out() -> None:
    hashes = np.sort(np.random.default_rng(0).integers(0, HELD_OUT_FROM, 100, np.uint64))
    training, held_out = sample_rows(pa.table({"hash": hashes}), 1)
    assert held_out.tolist() == list(range(84, 100))
    assert training.tolist() == list(range(84))


def test_of_very_few_rows_all_are_held_out() -> None:
    _, held_out = sample_rows(pa.table({"hash": pa.array([1, 2, 3], pa.uint64())}), 0)
    assert held_out.tolist() == [0, 1, 2]


# Reading rows from parts.


def rooted(folder: Path, count: int, size: int = 400) -> tuple[Store, Live]:
    rows = [Row(path) for path in paths(count)]
    store = make_root(folder / f"root{count}-{size}", rows, size)
    return store, find_live(store, entries_of(rows))


def test_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 1000, 300)
    picked = np.random.default_rng(0).permutation(1000)[:700]
    found = read_rows(store, ENCODER, live.parts, live.table, picked)
    expected = np.stack([vector_of(live.table["path"][int(i)].as_py()) for i in picked])
    assert found.dtype == np.float16 and found.tobytes() == expected.tobytes()
    assert read_rows(store, ENCODER, live.parts, live.table, np.arange(0)).shape[0] == 0


def test_failed_rows_between_the_good_ones_do_not_shift_them(tmp_path: Path) -> None:
    rows = [Row(path, kind="corrupt" if i % 3 == 0 else None) for i, path in enumerate(paths(500))]
    store = make_root(tmp_path / "root", rows, 250)
    live = find_live(store, entries_of(rows))
    picked = np.arange(0, len(live.table), 2)
    expected = [vector_of(live.table["path"][int(i)].as_py()).tolist() for i in picked]
    assert read_rows(store, ENCODER, live.parts, live.table, picked).tolist() == expected


def test_a_prefix_is_read_without_the_rest_of_the_part(tmp_path: Path) -> None:
    store, live = rooted(tmp_path, 400)
    (part,) = live.parts
    file = Path(store.path(part_path(ENCODER, part)))
    group = pq.read_metadata(file).row_group(1)
    embedding = next(c for i in range(14) if (c := group.column(i)).path_in_schema.startswith("embedding"))
    data = bytearray(file.read_bytes())
    data[embedding.data_page_offset + 1000] ^= 1
    file.write_bytes(data)
    found = read_rows(store, ENCODER, live.parts, live.table, np.arange(128))
    assert found.tolist() == [vector_of(path).tolist() for path in live.table["path"].to_pylist()[:128]]
    with pytest.raises(SifBatchError, match=f"part {part} is damaged"):
        read_rows(store, ENCODER, live.parts, live.table, np.arange(129))


class Counting:
    """A file that counts the bytes read from it."""

    total = 0

    def __init__(self, file: object):
        self.file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()  # type: ignore[attr-defined]

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(size)  # type: ignore[attr-defined]
        Counting.total += len(data)
        return data


def test_a_sample_is_read_without_the_rest_of_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(path, vector=np.random.default_rng(i).normal(size=1280)) for i, path in enumerate(paths(1000))]
    store = make_root(tmp_path / "root", rows, 500)
    live = find_live(store, entries_of(rows))
    monkeypatch.setattr(Store, "open", lambda store, name: Counting(io.FileIO(store.path(name))))
    Counting.total = 0
    read_rows(store, ENCODER, live.parts, live.table, np.arange(100))
    whole = sum(store.sizes(f"parts/{ENCODER}").values())
    assert 0 < Counting.total < whole / 3


@pytest.mark.parametrize("wrong", [np.ones(7), np.full(48, np.nan)])
def test_a_part_that_does_not_fit_the_others_is_named(tmp_path: Path, wrong: np.ndarray) -> None:
    store = make_root(tmp_path / "root", [Row(path) for path in paths(100)], 50)
    name = write_part(store, [Row("z.jpg", vector=wrong)])
    rows = [Row(path) for path in paths(100)] + [Row("z.jpg")]
    live = find_live(store, entries_of(rows))
    with pytest.raises(SifBatchError, match=f"part {name} holds vectors|of 7 dimensions|of 48 dimensions") as raised:
        read_rows(store, ENCODER, live.parts, live.table, np.arange(101))
    assert "remove that file" in raised.value.remedy


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_of_vectors_of_two_dimensions_the_part_that_the_fewest_are_like_is_named(tmp_path: Path, odd: int) -> None:
    store = make_root(tmp_path / "root", [], 50)
    groups = [[Row(f"{n}/{i}.jpg", vector=np.ones(7 if n == odd else 48)) for i in range(20)] for n in range(3)]
    names = [write_part(store, rows) for rows in groups]
    live = find_live(store, entries_of([row for rows in groups for row in rows]))
    with pytest.raises(SifBatchError, match=f"part {names[odd]} holds vectors of 7 dimensions, others 48"):
        read_rows(store, ENCODER, live.parts, live.table, np.arange(60))

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from synthetic import ENCODER, SOURCE, Row, checked, paths, spans_of

from sif_batch.config import Source
from sif_batch.ledger.plan import (
    DEFAULT_LIMITS,
    OPEN,
    PLAN_SCHEMA,
    Limits,
    finish_plan,
    make_plan,
    open_plans,
    part_name,
    plan_encoder,
    plan_shards,
    read_shard,
    save_plan,
    slice_shards,
)
from sif_batch.storage.store import Store


def slice_slowly(sizes: list[int], max_images: int, max_bytes: int) -> list[list[int]]:
    """The plain reference: fill a shard as long as it has room."""
    shards: list[list[int]] = []
    for size in sizes:
        if shards and len(shards[-1]) < max_images and sum(shards[-1]) + size <= max_bytes:
            shards[-1].append(size)
        else:
            shards.append([size])
    return shards


@checked
@given(st.lists(st.integers(0, 20), max_size=60), st.integers(1, 8), st.integers(1, 40))
@example([], 1, 1)
@example([100, 1, 100, 100], 5, 10)
def test_shards_are_filled_in_order_within_both_limits(sizes: list[int], max_images: int, max_bytes: int) -> None:
    limits = Limits(shard_images=max_images, shard_bytes=max_bytes)
    shards = slice_shards(np.array(sizes, np.int64), np.zeros(len(sizes), bool), limits)
    assert shards.dtype == np.int32 and len(shards) == len(sizes)
    by_number = [
        [s for s, n in zip(sizes, shards, strict=True) if n == number] for number in range(max(shards, default=-1) + 1)
    ]
    assert by_number == slice_slowly(sizes, max_images, max_bytes)
    assert (np.diff(shards) >= 0).all()
    for shard in by_number:
        assert 1 <= len(shard) <= max_images
        assert sum(shard) <= max_bytes or len(shard) == 1


@checked
@given(st.integers(0, 50), st.integers(1, 60))
def test_a_plan_holds_every_span_once_in_order_under_one_part_a_shard(count: int, max_images: int) -> None:
    spans = spans_of([Row(path) for path in paths(count)])
    plan = make_plan(ENCODER, spans, Limits(shard_images=max_images))
    assert plan.schema == PLAN_SCHEMA
    assert plan.select(spans.column_names).to_pylist() == spans.to_pylist()
    pairs = dict.fromkeys(zip(plan["shard"].to_pylist(), plan["part"].to_pylist(), strict=True))
    assert [shard for shard, _ in pairs] == list(range(-(-count // max_images)))
    assert len({part for _, part in pairs}) == len(pairs)
    for shard, part in pairs:
        own = spans.slice(shard * max_images, max_images).to_pylist()
        assert part == part_name(ENCODER, own, Limits(shard_images=max_images))


@checked
@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_a_container_shares_its_shard_with_none(alone: list[bool], max_images: int) -> None:
    limits = Limits(shard_images=max_images)
    shards = slice_shards(np.ones(len(alone), np.int64), np.array(alone, bool), limits).tolist()
    assert all(shards.count(shard) == 1 for shard, single in zip(shards, alone, strict=True) if single)
    assert all(shards.count(shard) <= max_images for shard in shards)
    assert sorted(set(shards)) == list(range(len(set(shards)))) and shards == sorted(shards)


def test_the_limits_and_where_a_container_is_taken_up_name_a_part() -> None:
    span = spans_of(ROWS[:1]).to_pylist()[0] | {"path": "a.tar", "last": OPEN, "end": False}
    names = [
        part_name(ENCODER, [span | {"first": first}], limits)
        for first in (0, 7)
        for limits in (DEFAULT_LIMITS, Limits(max_pixels=5), Limits(shard_images=5))
    ]
    assert len(set(names)) == len(names)


def names_of(rows: list[Row], max_images: int = 3, encoder: str = ENCODER) -> list[str]:
    return list(dict.fromkeys(make_plan(encoder, spans_of(rows), Limits(shard_images=max_images))["part"].to_pylist()))


ROWS = [Row(path) for path in paths(7)]


def test_part_names_are_the_same_every_time() -> None:
    assert names_of(ROWS) == names_of(list(ROWS))
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names_of(ROWS))


@pytest.mark.parametrize(
    "changed",
    [
        replace(ROWS[4], version="2-2"),
        replace(ROWS[4], attempt=2),
        replace(ROWS[4], path="other.jpg"),
        replace(ROWS[4], source="others"),
        replace(ROWS[4], kind="duplicate_key"),
    ],
)
def test_a_change_of_one_span_renames_its_part_alone(changed: Row) -> None:
    before, after = names_of(ROWS), names_of([*ROWS[:4], changed, *ROWS[5:]])
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_another_slicing_or_encoder_renames_parts() -> None:
    assert not set(names_of(ROWS, 3)) & set(names_of(ROWS, 4))
    assert not set(names_of(ROWS)) & set(names_of(ROWS, encoder="another"))


def test_nothing_but_the_spans_decides_a_name() -> None:
    spans, limits = spans_of(ROWS), Limits(shard_images=3)
    names = make_plan(ENCODER, spans, limits)["part"].to_pylist()
    moved = spans.set_column(spans.column_names.index("size"), "size", pa.array([9] * 7, pa.int64()))
    assert make_plan(ENCODER, moved, limits)["part"].to_pylist() == names
    chunked = pa.concat_tables([spans.slice(0, 2), spans.slice(2)])
    assert make_plan(ENCODER, chunked, limits)["part"].to_pylist() == names
    # The same spans as the last shard of a longer plan.
    assert names_of([*[Row(path) for path in paths(3, 100)], *ROWS])[1:] == names_of(ROWS)


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_plan_comes_back_as_it_was_saved(tmp_path: Path, place: str) -> None:
    store = Store(str(tmp_path) if place == "local" else "memory://test-shards")
    sources = [SOURCE, Source(name="cats", url="s3://b/cats", exclude=("x*",))]
    plan = make_plan(ENCODER, spans_of([*ROWS, Row("é/日本.jpg", source="cats")]), Limits(shard_images=3))
    limits = Limits(shard_images=3, max_pixels=4, max_bytes=5)
    name = save_plan(store, ENCODER, plan, sources, limits)
    try:
        assert save_plan(store, ENCODER, plan, sources, limits) == name
        assert plan_encoder(store, name) == ENCODER
        assert plan_shards(store, name).equals(plan)
        for shard in range(3):
            found = read_shard(store, name, shard)
            assert found.encoder_id == ENCODER and found.limits == limits
            assert found.sources == {source.name: source for source in sources}
            expected = plan.filter(pa.array([n == shard for n in plan["shard"].to_pylist()])).to_pylist()
            assert found.spans == expected and found.part == expected[0]["part"]
    finally:
        if place == "memory":
            store.fs.rm(store.base, recursive=True)


def test_a_plan_is_open_until_it_is_finished(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert open_plans(store, ENCODER) == []
    first = save_plan(store, ENCODER, make_plan(ENCODER, spans_of(ROWS), Limits(shard_images=3)), [SOURCE])
    second = save_plan(store, ENCODER, make_plan(ENCODER, spans_of(ROWS), Limits(shard_images=4)), [SOURCE])
    other = save_plan(store, "other", make_plan("other", spans_of(ROWS), Limits(shard_images=4)), [SOURCE])
    assert open_plans(store, ENCODER) == sorted([first, second])
    assert open_plans(store, "other") == [other]
    finish_plan(store, first)
    finish_plan(store, first)
    assert open_plans(store, ENCODER) == [second]
    finish_plan(store, second)
    assert open_plans(store, ENCODER) == []

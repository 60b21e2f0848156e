import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import Quiet
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import PHOTOS
from synthetic import ENCODER, Row, checked, make_root, write_part

from sif_batch.config import GateSettings
from sif_batch.jobs.nightly.run import run
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.upkeep.compact import compact
from sif_batch.jobs.upkeep.gc import collect_garbage
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.ledger.catalog_cache import load_catalog, load_whole
from sif_batch.ledger.compaction import plan_merges
from sif_batch.ledger.parts import copy_rows, part_path
from sif_batch.ledger.plan import Limits
from sif_batch.query.index import Index
from sif_batch.storage.store import Store

pytestmark = pytest.mark.usefixtures("children")


def rows_of(store: Store, part: str) -> list[dict[str, Any]]:
    return pq.read_table(store.path(part_path(ENCODER, part))).to_pylist()


def test_copied_rows_are_the_same_and_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    rows = [Row(f"{number}.jpg", kind="corrupt" if number % 5 == 0 else None) for number in range(20)]
    store = make_root(tmp_path, rows, 4)
    parts = load_catalog(store, ENCODER).parts
    before = {row["key"]: row for part in parts for row in rows_of(store, part)}
    kept = {part: np.array([True, False, True, True]) for part in parts[:3]}
    name, data = copy_rows({part: store.read(part_path(ENCODER, part)) for part in kept}, kept)
    store.create(part_path(ENCODER, name), data)
    copied = rows_of(store, name)
    assert len(copied) == 9 and all(before[row["key"]] == row for row in copied)
    assert [row["hash"] for row in copied] == sorted(row["hash"] for row in copied)
    for catalog in (load_catalog(store, ENCODER), load_catalog(store, ENCODER)):  # the second from its cache
        assert sorted(catalog.rows["key"].to_pylist()) == sorted(before)  # nothing twice, nothing lost
        part = catalog.rows["part"].to_numpy()
        assert (part == catalog.parts.index(name)).sum() == 9 and len(load_whole(store, ENCODER).rows) == 29
    assert copy_rows({part: store.read(part_path(ENCODER, part)) for part in kept}, kept) == (name, data)
    first = store.read(part_path(ENCODER, parts[0]))
    (left_behind,) = {row["key"] for row in rows_of(store, parts[0])} - {row["key"] for row in copied}
    for part in kept:
        Path(store.path(part_path(ENCODER, part))).unlink()
    assert left_behind not in load_catalog(store, ENCODER).rows["key"].to_pylist()
    store.create(part_path(ENCODER, parts[0]), first)  # its images came back, and made a part of the same name
    keys = load_catalog(store, ENCODER).rows["key"].to_pylist()
    assert left_behind in keys and len(keys) == len(set(keys)) == 18


@settings(checked, max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    data=st.data(),
    full=st.integers(4, 40),
)
def test_merges_keep_what_is_needed_once_and_end(sizes: list[int], data: st.DataObject, full: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [[Row(f"{part}/{number}.jpg") for number in range(size)] for part, size in enumerate(sizes)]
        store = make_root(folder, [])
        for part, own in enumerate(rows):
            write_part(store, own, fingerprint="this" if part % 3 else "other")
        catalog = load_catalog(store, ENCODER)
        needed = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=sum(sizes), max_size=sum(sizes))))
        wanted = {catalog.rows["key"][number].as_py() for number in needed.tolist()}
        for round_ in range(3):
            merges = plan_merges(catalog, load_whole(store, ENCODER), needed, full)
            if not merges:
                break
            assert round_ < 2  # what was merged is not merged again and again
            for merge in merges:
                assert merge.rows <= full or len(merge.kept) == 1
                made_by = {catalog.fingerprints[catalog.parts.index(part)] for part in merge.kept}
                assert len(made_by) == 1
                name, part_data = copy_rows({p: store.read(part_path(ENCODER, p)) for p in merge.kept}, merge.kept)
                store.create(part_path(ENCODER, name), part_data)
                for part in merge.kept:
                    Path(store.path(part_path(ENCODER, part))).unlink()
            catalog = load_catalog(store, ENCODER)
            keys = catalog.rows["key"].to_pylist()
            assert len(set(keys)) == len(keys) and wanted <= set(keys)
            needed = np.flatnonzero([key in wanted for key in keys])


def test_a_compacted_root_makes_the_same_release(photos: Callable[[int], Path], tmp_path: Path) -> None:
    source, root, other = photos(3), tmp_path / "root", tmp_path / "other"

    def night(place: Path, *sources: Path) -> dict[str, Any]:
        given = {"sources": tuple(map(str, sources)), "root": str(place), "workers": 1, "report": False}
        return run(RunSettings.model_validate(given | {"gate": GateSettings(enabled=False)}), Quiet())

    night(root, source)
    for count in (5, 7, 9):
        photos(count)
        night(root)
    (source / "broken.jpg").write_text("no image")
    sorted(source.rglob("*.jpg"))[0].unlink()
    release = night(root)["release"]
    shutil.copytree(root, other)
    collect_garbage(str(root), 1, 0, True, Quiet())

    dry = compact(str(root), False, Quiet())
    assert dry == {"compacted": False, "merged": 5, "into": 1, "rows": 9, "dead": 1}
    assert len(list(root.glob("parts/*/*"))) == 5
    assert compact(str(root), True, Quiet()) == dry | {"compacted": True}
    assert compact(str(root), True, Quiet())["into"] == 0
    again = night(root)
    assert (again["outcome"], again["release"], again["unchanged"]) == ("unchanged", release, 8)
    collect_garbage(str(root), 1, 0, True, Quiet())
    assert len(list(root.glob("parts/*/*"))) == 1 and verify(str(root))["ok"]
    assert night(root)["release"] == release

    # Back comes the one that was left behind; a copy of one that was not is known.
    photos(9)
    shutil.copyfile(sorted(PHOTOS.rglob("*.jpg"))[4], source / "copy.jpg")
    more, else_ = night(root), night(other)
    assert (more["embedded"], more["reused"], else_["reused"]) == (1, 1, 2)
    assert more["release"] == else_["release"] and len(Index.open(root)) == 10


def test_open_plans_keep_their_parts(photos: Callable[[int], Path], tmp_path: Path) -> None:
    source, root = photos(6), tmp_path / "root"
    limits = Limits(shard_images=2)
    asked = RunSettings(sources=(str(source),), root=str(root), workers=1, limits=limits, report=False)
    release = run(asked, Quiet())["release"]
    for done in root.glob("plans/*.done"):
        done.unlink()  # as if the night had been killed
    assert compact(str(root), True, Quiet())["merged"] == 3
    collect_garbage(str(root), 1, 0, True, Quiet())
    assert len(list(root.glob("parts/*/*"))) == 4
    night = run(asked, Quiet())
    assert (night["outcome"], night["release"], night["embedded"]) == ("unchanged", release, 0)

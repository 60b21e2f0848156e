"""Images that come, go, change, change back and move; sources, labels and exclusions that change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Finished
from paths import PHOTOS

from sif_batch.errors import SifBatchError
from sif_batch.query.index import Index
from sif_batch.release.metadata import join_metadata, read_metadata

Run = Callable[..., Finished]
Photos = Callable[[int], Path]


def counts(result: dict, *names: str) -> list[int]:
    return [result[name] for name in names]


def test_known_bytes_are_not_embedded_again(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(12), tmp_path / "root"
    first = sif_batch("run", source, root, "--json").json["release"]
    images = sorted(source.rglob("*.jpg"))
    before = {str(p): p.read_bytes() for p in images}
    (source / "moved").mkdir()
    images[0].rename(source / "moved/a.jpg")
    shutil.copyfile(images[1], source / "copy.jpg")
    os.utime(images[2])
    shutil.copyfile(PHOTOS / "pizza/image_0003.jpg", images[3])
    night = sif_batch("run", root, "--json").json
    assert counts(night, "listed", "unchanged", "reused", "embedded", "deleted") == [13, 9, 3, 1, 1]
    index = Index.open(root)
    same = index.search(key="photos/copy.jpg", k=1)[0]
    assert same.key == f"photos/{images[1].relative_to(source)}" and same.similarity == 1

    report = sif_batch("compare", root, "--json").json
    key = f"photos/{images[0].relative_to(source)}"
    assert report["moved"] == [[key, "photos/moved/a.jpg"]] and report["added"] == ["photos/copy.jpg"]
    assert report["changed"] == [f"photos/{images[3].relative_to(source)}"] and report["deleted"] == []
    assert report["settings"]["rows"] == [12, 13]
    assert "1 moved" in sif_batch("compare", f"{root}@1", root).out

    # From scratch, without anything known, the vectors are the same.
    sif_batch("run", source, tmp_path / "other")
    assert np.array_equal(index.kept_rows()[0], Index.open(tmp_path / "other").kept_rows()[0])

    shutil.move(source / "moved/a.jpg", images[0])
    (source / "copy.jpg").unlink()
    images[3].write_bytes(before[str(images[3])])  # A, B, A
    back = sif_batch("run", root, "--json").json
    assert counts(back, "reused", "embedded", "in_index") == [1, 0, 12] and back["release"] == first


def test_labels_that_change_embed_nothing(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root, table = photos(6), tmp_path / "root", tmp_path / "labels.csv"
    key = "photos/Leopards/image_0002.jpg"
    table.write_text(f"key,animal,weight\n{key},leopard,30.5\nphotos/none.jpg,cat,4\n")
    first = sif_batch("run", source, root, "--metadata", table, "--json")
    assert first.code == 0 and "metadata: 1 of 6 images" in first.err
    assert Index.open(root).search(key="photos/Leopards/image_0038.jpg", k=6)
    assert {h.columns["animal"] for h in Index.open(root).search(image=PHOTOS / "Leopards/image_0002.jpg", k=1)} == {
        "leopard"
    }
    assert sif_batch("run", root, "--json").json["outcome"] == "unchanged"
    table.write_text(f"key,animal,weight\n{key},panther,30.5\n")
    night = sif_batch("run", root, "--json").json
    assert (night["outcome"], night["embedded"], night["unchanged"]) == ("published", 0, 6)
    assert sif_batch("compare", root, "--json").json["relabelled"] == [key]
    table.unlink()
    lost = sif_batch("run", root, "--json")
    assert lost.code == 1 and "--metadata" in lost.json["error"]
    assert sif_batch("run", root, "--metadata", "none", "--json").json["outcome"] == "published"
    assert "animal" not in Index.open(root).columns


def test_metadata_stands_before_fields_of_the_image_and_bad_tables_are_told(tmp_path: Path) -> None:
    live = pa.table({"key": ["a", "b", "c"], "fields": pa.array(['{"x":1,"y":2}', None, '{"x":3}'], pa.large_string())})
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [10.5, float("nan")], "key": ["a", "b"], "z": [None, "t"]}), table)
    joined, found = join_metadata(live, read_metadata(str(table)))
    assert joined["fields"].to_pylist() == ['{"x":10.5,"y":2}', '{"x":null,"z":"t"}', '{"x":3}'] and found == 2
    assert join_metadata(live, read_metadata(str(table)).slice(0, 0))[0].equals(live)
    for columns, says in (({"key": ["a", "a"], "x": [1, 2]}, "2 times"), ({"x": [1]}, "expected key")):
        pq.write_table(pa.table(columns), table)
        with pytest.raises(SifBatchError, match=says):
            read_metadata(str(table))


def test_sources_are_added_replaced_and_removed_by_hand(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root, more = photos(4), tmp_path / "root", tmp_path / "more"
    shutil.copytree(PHOTOS / "pizza", more)
    sif_batch("run", source, root)
    assert "a source already" in sif_batch("sources", "add", root, source).err
    assert "there is no source" in sif_batch("sources", "replace", root, more).err
    assert "lies inside" in sif_batch("sources", "add", root, f"all={tmp_path}").err
    assert sif_batch("sources", "add", root, more).code == 0
    both = sif_batch("run", root, "--json").json
    assert counts(both, "listed", "embedded") == [14, 10]
    moved = shutil.move(more, tmp_path / "elsewhere")
    assert sif_batch("run", root).code == 1
    assert sif_batch("sources", "replace", root, f"more={moved}").code == 0
    night = sif_batch("run", root, "--json").json
    assert counts(night, "unchanged", "embedded", "deleted") == [14, 0, 0]
    assert "no source named" in sif_batch("sources", "remove", root, "gone").err
    assert sif_batch("sources", "remove", root, "more").code == 0
    assert counts(sif_batch("run", root, "--json").json, "listed", "deleted") == [4, 10]
    assert "the last source" in sif_batch("sources", "remove", root, "photos").err
    assert [s["name"] for s in sif_batch("sources", "list", root, "--json").json["sources"]] == ["photos"]
    assert str(source) in sif_batch("sources", "list", root).out


def test_what_a_file_excludes_stays_out_every_night(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root, out = photos(6), tmp_path / "root", tmp_path / "out.txt"
    out.write_text("# not these\nLeopards/image_0002.jpg\n*_0038.jpg\n\n")
    first = sif_batch("run", source, root, "--exclude", f"@{out}", "--json").json
    assert counts(first, "listed", "ignored") == [4, 2]
    out.write_text("Leopards/image_0002.jpg\n")
    assert counts(sif_batch("run", root, "--json").json, "listed", "embedded") == [5, 1]
    out.unlink()
    lost = sif_batch("run", root, "--json")
    assert lost.code == 1 and "out.txt: cannot be read" in lost.json["error"]

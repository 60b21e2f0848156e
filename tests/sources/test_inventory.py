"""Inventories: ready lists instead of a walk, as object stores and people write them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from commands import run_command
from hypothesis import given
from hypothesis import strategies as st
from paths import PHOTOS
from synthetic import checked

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.sources.containers import are_containers, container_kind
from sif_batch.sources.files import are_entries, entry_rule
from sif_batch.sources.listing import list_sources, parse_sources

ENTRIES = {
    "key": ["photos/b.jpg", "photos/a b.jpg", "photos/.hidden.jpg", "photos/notes.txt", "photos/sub/", "other/c.jpg"],
    "size": [5, 6, 7, 8, 0, 9],
    "e_tag": ['"bb"', '"ab"', '"h"', '"n"', '"s"', '"c"'],
}
WANTED = [("a b.jpg", 6, "ab"), ("b.jpg", 5, "bb")]


def rows_of(source: Source) -> list[tuple[str, int, str]]:
    return [(row["path"], row["size"], row["version"]) for row in list_sources([source]).entries.to_pylist()]


def source_of(inventory: Path, url: str = "s3://bucket/photos") -> Source:
    return Source(name="s", url=url, inventory=str(inventory))


@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz"])
def test_a_bucket_is_listed_from_its_inventory(tmp_path: Path, kind: str) -> None:
    file, table = tmp_path / f"list.{kind}", pa.table(ENTRIES | {"bucket": ["bucket"] * 5 + ["another"]})
    if kind == "parquet":
        pq.write_table(table, file)
    else:  # S3 writes keys in CSV as URLs have them
        encoded = [key.replace(" ", "+") if "sub" in key else key.replace(" ", "%20") for key in ENTRIES["key"]]
        with pa.output_stream(str(file)) as stream:
            pyarrow.csv.write_csv(table.set_column(0, "key", pa.array(encoded)), stream)
    listing = list_sources([source_of(file)])
    assert rows_of(source_of(file)) == WANTED
    assert listing.ignored == {"s": 3}


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_the_newest_manifest_of_s3_names_the_files_and_their_columns(tmp_path: Path, form: str) -> None:
    """As S3 writes them: DAY/manifest.json beside data/, CSV without a header, keys in it as URLs have them."""
    schema = {
        "CSV": "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag",
        "Parquet": "message s3.inventory { required binary bucket (STRING); required binary key (STRING); }",
    }
    (tmp_path / "data").mkdir()
    rows = [("photos/a b.jpg", True, False, 6, "ab"), ("photos/a b.jpg", False, False, 1, "old")]
    rows += [
        ("photos/gone.jpg", True, True, None, None),
        ("photos/12", True, False, 5, "0012"),
        ("x.jpg", True, False, 2, "x"),
    ]
    names = ["key", "is_latest", "is_delete_marker", "size", "e_tag"]
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    file = {"CSV": "one.csv.gz", "Parquet": "two.parquet"}[form]
    if form == "CSV":
        lines = [
            f'"bucket","{key.replace(" ", "+")}","v","{latest}","{gone}","{size or ""}","2026-11-28","{tag or ""}"'
            for key, latest, gone, size, tag in rows
        ]
        (tmp_path / "data" / file).write_bytes(gzip.compress("\n".join(lines).lower().encode() + b"\n"))
    else:
        pq.write_table(table.append_column("bucket", pa.array(["bucket"] * len(table))), tmp_path / "data" / file)
    for day, named in (("2026-11-27T01-00Z", ["gone.csv"]), ("2026-11-28T01-00Z", [file])):
        (tmp_path / day).mkdir()
        listed = [{"key": f"reports/bucket/all/data/{name}", "size": 1, "MD5checksum": ""} for name in named]
        manifest = {"sourceBucket": "bucket", "fileFormat": form, "fileSchema": schema[form], "files": listed}
        (tmp_path / day / "manifest.json").write_text(json.dumps(manifest))
    assert rows_of(source_of(tmp_path / "*/manifest.json")) == [("12", 5, "0012"), ("a b.jpg", 6, "ab")]
    with pytest.raises(SifBatchError, match="gone.csv: cannot be read"):
        rows_of(source_of(tmp_path / "2026-11-27T01-00Z/manifest.json"))
    (tmp_path / day / "manifest.json").write_text(json.dumps(manifest | {"fileFormat": "ORC"}))
    with pytest.raises(SifBatchError, match="format ORC"):
        rows_of(source_of(tmp_path / "*/manifest.json"))


def test_the_form_of_all_keys_is_told_by_the_whole_list(tmp_path: Path) -> None:
    """What lies beside the source comes first, many thousands of it."""
    keys = [f"other/{number}.jpg" for number in range(300_000)] + ["photos/a.jpg"]
    pq.write_table(pa.table({"key": keys, "size": [1] * len(keys), "etag": ["x"] * len(keys)}), tmp_path / "l.parquet")
    listing = list_sources([source_of(tmp_path / "l.parquet")])
    assert listing.entries["path"].to_pylist() == ["a.jpg"] and listing.ignored == {"s": 300_000}


def test_old_versions_and_what_was_deleted_are_left_out(tmp_path: Path) -> None:
    latest, deleted = [True, False, True], [False, False, True]
    table = pa.table({"Key": ["a.jpg", "a.jpg", "b.jpg"], "Size": [1, 2, 3], "ETag": ["x", "y", "z"]})
    table = table.append_column("IsLatest", pa.array(latest)).append_column("IsDeleteMarker", pa.array(deleted))
    pq.write_table(table, tmp_path / "list.parquet")
    assert rows_of(source_of(tmp_path / "list.parquet", "s3://bucket")) == [("a.jpg", 1, "x")]
    pq.write_table(table.drop_columns(["IsLatest", "IsDeleteMarker"]), tmp_path / "twice.parquet")
    with pytest.raises(SifBatchError, match="more than once"):
        rows_of(source_of(tmp_path / "twice.parquet", "s3://bucket"))


def test_a_night_runs_from_an_inventory_of_several_files(tmp_path: Path) -> None:
    """Of local files, whose versions are size and time; a file that the lists do not name is none of the night's."""
    photos = sorted(PHOTOS.rglob("*.jpg"))[:4]
    for number, photo in enumerate(photos):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{number}.jpg").write_bytes(photo.read_bytes())
    for number in range(3):
        stat = (tmp_path / f"photos/{number}.jpg").stat()
        version = f"{stat.st_size}-{stat.st_mtime_ns}"
        table = pa.table({"path": [f"{number}.jpg"], "size": [stat.st_size], "version": [version]})
        pq.write_table(table, tmp_path / f"list-{number}.parquet")
    lists = ("--inventory", tmp_path / "list-*.parquet", "--json")
    night = run_command(tmp_path, "run", tmp_path / "photos", tmp_path / "root", *lists).json
    assert (night["listed"], night["embedded"], night["failed"]) == (3, 3, 0)
    (tmp_path / "list-1.parquet").unlink()
    night = run_command(tmp_path, "run", tmp_path / "root", "--json").json
    assert (night["listed"], night["unchanged"], night["deleted"]) == (2, 2, 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name_": ["a"], "size": [1], "etag": ["x"]}, "no column key or name or path among name_"),
        ({"key": ["a"], "size": [1]}, "no column version or e_tag"),
        ({"key": ["a.jpg"], "size": [1], "etag": [None]}, "is missing in some row"),
    ],
)
def test_what_is_no_inventory_is_refused(tmp_path: Path, columns: dict[str, list], message: str) -> None:
    table = pa.table(columns)
    if "etag" in columns:
        table = table.set_column(2, "etag", table["etag"].cast(pa.string()))
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(SifBatchError, match=message) as raised:
        rows_of(source_of(tmp_path / "list.parquet"))
    assert "how-to" in raised.value.remedy
    with pytest.raises(SifBatchError, match="cannot be read"):
        rows_of(source_of(tmp_path / "none.parquet"))
    with pytest.raises(SifBatchError, match="one inventory for several"):
        parse_sources(["/a", "/b"], inventory="list.parquet")


names = st.text("a.JpPgGtTrRxzİK/é~", min_size=1, max_size=12) | st.sampled_from(
    ["a.tar", "b.TAR.GZ", ".tar", "x/.jpg", "a.", "a..png", "a/b.c/d", ".a.b/c.jpg", "a.parquet", "e.tgz", "a.tar.gz/b"]
)


@checked
@given(st.lists(names, max_size=8), st.sampled_from(["/d", "/d/*.tar", "/d/*.parquet", "s3://b/x.tar.gz"]))
def test_all_paths_at_once_are_judged_as_each_alone(paths: list[str], url: str) -> None:
    source = Source(name="s", url=url)
    table = pa.array(paths, pa.string())
    assert are_entries(source, table).tolist() == [entry_rule(source)(path) for path in paths]
    for kind in (None, "tar", "parquet"):
        wanted = [container_kind(path) is not None if kind is None else container_kind(path) == kind for path in paths]
        assert are_containers(table, kind).tolist() == wanted

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Finished
from paths import PHOTOS, REPOSITORY
from PIL import Image

from sif_batch.query.index import Index

Run = Callable[..., Finished]
Photos = Callable[[int], Path]
LEDGER = ("unchanged", "embedded", "reused", "failed", "failed_before")


def reconciles(result: dict[str, Any]) -> bool:
    """The two sums that the ledger promises."""
    listed = sum(result[name] for name in LEDGER)
    in_index = sum(result[name] for name in ("unchanged", "embedded", "reused", "stale"))
    return listed == result["listed"] and in_index == result["in_index"]


def history(root: Path) -> list[str]:
    return [json.loads(path.read_bytes())["release"] for path in sorted((root / "history").iterdir())]


def test_nights_embed_only_what_is_new(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(30), tmp_path / "root"
    first = sif_batch("run", source, root, "--json")
    assert first.code == 0, first.err
    assert reconciles(first.json)
    assert [first.json[n] for n in ("outcome", "listed", "embedded", "in_index")] == ["published", 30, 30, 30]
    assert first.json["gate"]["passed"] and first.json["gate"]["queries"] > 0

    again = sif_batch("run", root, "--json")
    assert again.code == 0, again.err
    assert [again.json[n] for n in ("outcome", "unchanged", "embedded")] == ["unchanged", 30, 0]
    assert again.json["release"] == first.json["release"]
    assert reconciles(again.json) and len(history(root)) == 1

    photos(33)
    more = sif_batch("run", root, "--json")
    assert [more.json[n] for n in ("outcome", "embedded", "unchanged", "in_index")] == ["published", 3, 30, 33]

    gone = next(source.rglob("*.jpg"))
    key = f"photos/{gone.relative_to(source)}"
    assert Index.open(root).row_of(key) >= 0
    gone.unlink()
    fewer = sif_batch("run", root, "--json")
    assert [fewer.json[n] for n in ("outcome", "embedded", "deleted", "in_index")] == ["published", 0, 1, 32]
    with pytest.raises(ValueError, match="no image of the release has the key"):
        Index.open(root).row_of(key)
    assert history(root) == [first.json["release"], more.json["release"], fewer.json["release"]]
    assert (root / "LATEST").read_text().strip() == fewer.json["release"]


def test_a_deleted_image_that_returns_makes_the_same_release(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(24), tmp_path / "root"
    full = sif_batch("run", source, root, "--json").json["release"]
    aside = tmp_path / "aside.jpg"
    gone = sorted(source.rglob("*.jpg"))[5]
    shutil.move(gone, aside)
    assert sif_batch("run", root, "--json").json["release"] != full
    shutil.move(aside, gone)
    back = sif_batch("run", root, "--json").json
    assert (back["release"], back["embedded"], back["outcome"]) == (full, 0, "published")


def test_a_refused_candidate_leaves_the_release_and_stays_refused(
    sif_batch: Run, photos: Photos, tmp_path: Path
) -> None:
    source, root = photos(20), tmp_path / "root"
    good = sif_batch("run", source, root, "--json").json["release"]
    for i in range(3):
        (source / f"broken{i}.jpg").write_bytes(b"no image")
    refused = sif_batch("run", root, "--json")
    assert refused.code == 3
    assert refused.json["outcome"] == "refused" and not refused.json["gate"]["passed"]
    assert "13.0%" in refused.json["gate"]["reasons"][0]
    assert (refused.json["failed"], refused.json["failed_by_kind"]) == (3, {"not_an_image": 3})
    assert Index.open(root).release == good

    candidate = root / "releases" / refused.json["release"] / "release.json"
    written = candidate.stat().st_mtime_ns
    tomorrow = sif_batch("run", root, "--json")
    assert tomorrow.code == 3 and tomorrow.json["release"] == refused.json["release"]
    assert (tomorrow.json["failed"], tomorrow.json["failed_before"]) == (0, 3)
    assert candidate.stat().st_mtime_ns == written and history(root) == [good]

    published = sif_batch("run", root, "--json", "--max-failures", 0.5)
    assert published.code == 0 and published.json["release"] == refused.json["release"]


def test_no_gate_publishes_and_is_recorded(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(4), tmp_path / "root"
    (source / "broken.jpg").write_bytes(b"")
    done = sif_batch("run", source, root, "--no-gate", "--json")
    assert done.code == 0 and done.json["outcome"] == "published"
    entry = json.loads(next((root / "history").iterdir()).read_bytes())
    assert entry["gate"] == "skipped" and entry["n"] == 1 and entry["parent"] is None


def test_orientation_is_honoured(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source = tmp_path / "turned"
    source.mkdir()
    with Image.open(next(PHOTOS.rglob("*.jpg"))) as opened:
        upright = opened.convert("RGB")
    upright.save(source / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(source / "turned.png", exif=exif)
    assert sif_batch("run", source, tmp_path / "root").code == 0
    index = Index.open(tmp_path / "root")
    hits = {hit.key: hit for hit in index.search(key="turned/upright.png")}
    assert hits["turned/turned.png"].similarity > 0.9999
    sizes = (hits["turned/turned.png"].columns["width"], hits["turned/turned.png"].columns["height"])
    assert sizes == upright.size


def test_a_version_that_fails_for_now_keeps_its_old_row(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(40), tmp_path / "root"
    first = sif_batch("run", source, root, "--json").json
    victim = sorted(source.rglob("*.jpg"))[7]
    victim.unlink()
    victim.symlink_to(tmp_path / "a mount that is away")
    away = sif_batch("run", root, "--json").json
    assert [away[n] for n in ("failed", "stale", "in_index", "deleted")] == [1, 1, 40, 0] and reconciles(away)
    assert away["failed_by_kind"] == {"missing": 1}
    assert Index.open(root).row_of(f"photos/{victim.relative_to(source)}") >= 0
    shutil.copyfile(PHOTOS / victim.relative_to(source), tmp_path / "a mount that is away")
    back = sif_batch("run", root, "--json").json
    assert [back[n] for n in ("reused", "stale", "in_index")] == [1, 0, 40] and reconciles(back)  # the same bytes
    assert back["release"] == first["release"]


def test_transient_failures_are_tried_so_often_and_no_more(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(30), tmp_path / "root"
    (source / "away.jpg").symlink_to(tmp_path / "nowhere")
    nights = [sif_batch("run", source, root, "--json", "--max-attempts", 2).json for _ in range(3)]
    assert [(n["failed"], n["failed_before"]) for n in nights] == [(1, 0), (1, 0), (0, 1)]
    assert all(reconciles(night) for night in nights)


def test_other_slices_and_threads_make_the_same_release(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source = photos(40)
    ids = {
        sif_batch("run", source, tmp_path / f"root{size}", "--json", "--shard-images", size, "--workers", workers).json[
            "release"
        ]
        for size, workers in ((7, 1), (16, 3), (1000, 2))
    }
    assert len(ids) == 1


def test_sources_are_kept_replaced_and_added_by_name(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(6), tmp_path / "root"
    other = tmp_path / "more"
    other.mkdir()
    shutil.copyfile(next(PHOTOS.rglob("*.jpg")), other / "one.jpg")
    sif_batch("run", source, root)
    both = sif_batch("run", f"second={other}", root, "--json").json
    assert (both["listed"], both["embedded"]) == (7, 1)
    moved = shutil.move(source, tmp_path / "elsewhere")
    assert sif_batch("run", root).code == 1  # a forgotten mount deletes nothing
    assert len(Index.open(root)) == 7
    replaced = sif_batch("run", f"photos={moved}", root, "--json").json
    assert (replaced["listed"], replaced["embedded"], replaced["deleted"]) == (7, 0, 0)
    assert Index.open(root).search(key="photos/" + _first(moved), k=1)
    assert str(moved) in next(hit.uri for hit in Index.open(root).search(key="second/one.jpg", k=1))


def _first(folder: Path) -> str:
    return str(sorted(folder.rglob("*.jpg"))[0].relative_to(folder))


def test_sigterm_ends_the_run_at_once_and_it_goes_on(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(60), tmp_path / "root"
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "run", str(source), str(root), "--shard-images", "4"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    parts = root / "parts"
    while not list(parts.rglob("*.parquet")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 143 and b"goes on where this one stopped" in err
    before = len(list(parts.rglob("*.parquet")))
    done = sif_batch("run", source, root, "--json", "--shard-images", 4)
    assert done.code == 0 and done.json["in_index"] == 60 and reconciles(done.json)
    assert 0 < done.json["embedded"] <= 60 - 4 * (before - 1)
    assert not list(root.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["SOURCE/none", "ROOT"], "cannot be listed"),
        (["EMPTY", "ROOT"], "no images found"),
        (["TEXT", "ROOT"], "no images found"),
        (["SOURCE", "SOURCE/inside"], "lies inside the source"),
        (["SOURCE"], "is not a ROOT"),
        (["SOURCE", "FILE/root"], "Not a directory"),
        (["SOURCE", "/proc/root"], "cannot be written"),
        (["SOURCE", "ROOT", "--encoder", "efficientnet_lite"], "efficientnet_lite0"),
        (["SOURCE", "SOURCE", "ROOT"], "two sources are named"),
        (["SOURCE", "ROOT", "--family", "ivf-pq", "--no-gate"], "at least 69 usable images"),
        (["SOURCE", "ROOT", "--", "--direct_running_mode=multi_threading"], "loses elements"),
        (["SOURCE", "ROOT", "--", "--direct_running_mode", "multi_processing"], "hangs for ever"),
        (["SOURCE", "ROOT", "--", "--runner", "NoRunner"], "NoRunner is not supported"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    sif_batch: Run, photos: Photos, tmp_path: Path, arguments: list[str], says: str
) -> None:
    source = photos(3)
    for name in ("EMPTY", "TEXT"):
        (tmp_path / name).mkdir()
    (tmp_path / "TEXT/notes.txt").write_text("no image")
    (tmp_path / "FILE").write_text("no folder")
    words = ("ROOT", "FILE", "EMPTY", "TEXT")
    given = [
        str(source) + a.removeprefix("SOURCE")
        if a.startswith("SOURCE")
        else str(tmp_path / a)
        if a.startswith(words)
        else a
        for a in arguments
    ]
    done = sif_batch("run", "--json", *given)
    errors = [line for line in done.err.splitlines() if line.startswith("sif-batch: ")]
    assert done.code == 1 and len(errors) == 1 and says in errors[0]
    assert "Traceback" not in done.err
    assert done.json["outcome"] == "error" and says in done.json["error"] + done.json["remedy"]
    assert not (tmp_path / "ROOT/history").exists() and not list(tmp_path.rglob(".tmp-*"))
    assert sorted(p.name for p in source.rglob("*") if p.is_file()) == sorted(p.name for p in source.rglob("*.jpg"))


def test_a_source_without_a_usable_image_is_an_error(sif_batch: Run, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"nothing of the kind")
    done = sif_batch("run", tmp_path / "bad", tmp_path / "root", "--json")
    assert done.code == 1 and "none of the 1 images can be used" in done.json["error"]
    listed = sif_batch("status", tmp_path / "root", "--failures", "--json").json["failures"]
    assert [(f["key"], f["kind"]) for f in listed] == [("bad/a.jpg", "not_an_image")]


def test_a_newer_layout_is_refused(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(2), tmp_path / "root"
    root.mkdir()
    (root / "root.json").write_text('{"layout": 99}')
    done = sif_batch("run", source, root)
    assert done.code == 1 and "layout 99" in done.err
    assert [p.name for p in root.iterdir()] == ["root.json"]


def test_the_whole_of_caltech101_mini(sif_batch: Run, test_data: Callable[[str], Path], tmp_path: Path) -> None:
    source, root = test_data("caltech101-mini"), tmp_path / "root"
    flat = sif_batch("run", source, root, "--json").json
    assert [flat[n] for n in ("listed", "embedded", "failed", "outcome")] == [1200, 1200, 0, "published"]
    for family in ("flat", "ivf-pq"):
        if family == "ivf-pq":
            done = sif_batch("run", root, "--family", family, "--json").json
            assert (done["outcome"], done["index"]["family"], done["embedded"]) == ("published", family, 0)
        judged = sif_batch("evaluate", root, "--labels", "folder", "--json").json
        assert judged["n_queries"] == 1200
        assert abs(judged["precision"]["1"] - judged["exact"]["precision"]["1"]) <= 0.005
        assert abs(judged["map"] - judged["exact"]["map"]) <= 0.005
        assert judged["exact"]["map"] > 0.65
    assert sif_batch("verify", root, "--json").json["ok"]


def test_odd_files_are_all_accounted_for(sif_batch: Run, test_data: Callable[[str], Path], tmp_path: Path) -> None:
    import csv

    import pyarrow.parquet as pq

    source, root = test_data("odd-files"), tmp_path / "root"
    done = sif_batch("run", source, root, "--no-gate", "--json")
    assert done.code == 0, done.err
    assert done.json["listed"] + done.json["ignored"] == sum(p.is_file() for p in source.rglob("*"))
    assert reconciles(done.json)
    assert sum(done.json["failed_by_kind"].values()) == done.json["failed"]
    rows = pq.read_table(root / "parts").to_pylist()
    embedded = {row["path"] for row in rows if row["embedding"] is not None}
    with open(source / "manifest.csv", newline="") as file:
        loadable = {row["path"] for row in csv.DictReader(file) if row["outcome"] == "ok"}
    assert len(loadable & embedded) >= 0.9 * len(loadable)
    assert all((row["error_kind"] is None) == (row["embedding"] is not None) for row in rows)
    vectors = np.array([row["embedding"] for row in rows if row["embedding"] is not None], np.float16)
    assert np.isfinite(vectors).all()


def test_a_damaged_current_release_is_said_and_made_again(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(8), tmp_path / "root"
    first = sif_batch("run", source, root, "--json").json
    release = root / "releases" / first["release"]
    for name in ("segments/000/rows.npy", "images.arrow", "release.json"):
        aside = (release / name).rename(tmp_path / "aside")
        done = sif_batch("run", root, "--json")
        assert done.code == 1 and "Traceback" not in done.err and release.name in done.json["error"]
        aside.rename(release / name)
    shutil.rmtree(release)
    again = sif_batch("run", root, "--json").json
    assert (again["outcome"], again["release"], again["embedded"]) == ("published", first["release"], 0)
    (root / "LATEST").write_text("killed right after publishing\n")
    assert sif_batch("run", root).code == 0
    assert (root / "LATEST").read_text().strip() == first["release"]


def test_a_kind_of_index_that_cannot_be_made_is_not_recorded(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(8), tmp_path / "root"
    assert sif_batch("run", source, root, "--family", "ivf-pq").code == 1
    assert sif_batch("run", root).code == 0
    failed = [json.loads(path.read_bytes())["result"] for path in sorted(root.glob("runs/*/run.json"))]
    assert {"error", "published"} == {result["outcome"] for result in failed}
    assert all(result["seconds"]["list"] >= 0 for result in failed)


def test_what_root_records_of_an_index_can_be_taken_back(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(3), tmp_path / "root"
    assert sif_batch("run", source, root, "--max-bytes-per-row", "9999", "--max-query-ms", "9999").code == 0
    record = json.loads((root / "root.json").read_bytes())
    assert (record["index"]["max_bytes_per_row"], record["index"]["max_query_ms"]) == (9999, 9999)
    record["index"]["bits"] = 8  # of an ivf that it once was
    (root / "root.json").write_text(json.dumps(record))
    failed = sif_batch("run", root, "--json")
    assert failed.code == 1 and "--bits auto" in failed.json["remedy"]
    lifted = ("--bits", "auto", "--max-bytes-per-row", "none", "--max-query-ms", "none")
    assert sif_batch("run", root, *lifted).code == 0
    index = json.loads((root / "root.json").read_bytes())["index"]
    assert {index[name] for name in ("bits", "max_bytes_per_row", "max_query_ms")} == {None}


def test_names_are_shown_as_they_are(sif_batch: Run, tmp_path: Path) -> None:
    source, root = tmp_path / "odd names", tmp_path / "root"
    source.mkdir()
    names = ["photo [copy].jpg", "x:cat:.jpg", "[", "a::b.jpg", "it's 100%.jpg"]
    for name in names:
        shutil.copyfile(next(PHOTOS.rglob("*.jpg")), source / name)
    assert sif_batch("run", source, root).code == 0
    for name in names:
        shown = sif_batch("search", root, source / name)
        assert shown.code == 0, shown.err
        assert f"odd-names/{name.replace('::', '%3A%3A')}" in shown.out
    assert sif_batch("run", root, "--exclude", "*").code == 1


def test_a_root_whose_name_is_not_text_is_refused(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source = photos(2)
    done = sif_batch("run", source, f"{tmp_path}/r\udcff")
    assert done.code == 1 and "Traceback" not in done.err and "UTF-8" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_damage_in_root_is_one_line_and_verify_names_it(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(8), tmp_path / "root"
    sif_batch("run", source, root)
    photos(9)
    model = next(root.glob("encoders/*/model.onnx"))
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert sif_batch("verify", root).code == 5
    for file, damage in (
        (model, None),
        (next(root.glob("encoders/*/encoder.json")), b"{}"),
        (root / "root.json", b"\xff"),
        (root / "history/00000001.json", b""),
        (next(root.glob("quantizers/*/queries.parquet")), b""),
        (next(root.glob("quantizers/*/quantizer.json")), b""),
    ):
        before = whole if damage is None else file.read_bytes()
        if damage is not None:
            file.write_bytes(damage)
        done = sif_batch("run", root, "--json")
        assert done.code == 1 and "Traceback" not in done.err, file
        assert file.parent.name in done.json["error"] and done.json["remedy"]
        file.write_bytes(before)
    done = sif_batch("run", root, "--json").json
    assert (done["outcome"], done["in_index"]) == ("published", 9)


def test_a_night_that_ends_before_its_work_leaves_its_record(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    """A source that is not mounted, a ROOT that another holds: what `status` and the report tell is the last night."""
    source, root = photos(4), tmp_path / "root"
    assert sif_batch("run", source, root, "--no-gate").code == 0
    source.rename(tmp_path / "away")
    failed = sif_batch("run", root, "--json")
    assert failed.code == 1
    last = sif_batch("status", root, "--json").json["last_run"]
    assert (last["outcome"], last["release"]) == ("error", None) and last["age_s"] < 3600
    assert last["error"] == failed.json["error"] and last["remedy"] == failed.json["remedy"]
    shown = sif_batch("status", root).out
    assert " ago: error: " in shown and last["error"] in shown
    made = sif_batch("report", root, "--json")
    assert made.code == 0, made.err
    assert last["error"] in Path(made.json["report"]).read_text()
    assert last["error"] in next(root.glob(f"runs/{last['id']}/summary.txt")).read_text()
    (tmp_path / "away").rename(source)
    assert sif_batch("run", root, "--json").json["outcome"] == "unchanged"
    assert sif_batch("status", root, "--json").json["last_run"]["outcome"] == "unchanged"


def test_a_mistyped_place_creates_nothing(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    photos(2)
    for arguments in (("nowhere", "root"), ("root",), ("nowhere",)):
        assert sif_batch("run", *arguments).code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_held_candidate_is_published_though_a_night_failed_after_it(
    sif_batch: Run, photos: Photos, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    assert sif_batch("run", photos(4), root, "--no-gate").code == 0
    assert sif_batch("run", photos(5), root, "--no-gate").code == 0
    assert sif_batch("rollback", root).code == 0
    held = sif_batch("run", photos(6), root, "--json", "--no-gate").json
    assert held["outcome"] == "held"
    (tmp_path / "photos").rename(tmp_path / "away")
    assert sif_batch("run", root).code == 1
    assert sif_batch("publish", root, "--json").json["release"] == held["release"]


def flip(file: Path) -> None:
    """Alter a byte in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def test_a_damaged_listing_is_made_anew_or_passed_over(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root = photos(4), tmp_path / "root"
    assert sif_batch("run", source, root, "--no-gate").code == 0
    listing = next(root.glob("listings/*.parquet"))
    whole = listing.read_bytes()
    flip(listing)
    assert sif_batch("run", root, "--json").json["outcome"] == "unchanged"
    assert listing.read_bytes() == whole
    flip(listing)
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (source / "away.jpg").symlink_to(tmp_path / "nowhere")  # older listings are asked for what failed for now
    night = sif_batch("run", photos(5), root, "--json", "--no-gate")
    assert night.code == 0, night.err
    assert night.json["outcome"] == "published" and night.json["in_index"] == 5


def test_a_damaged_release_stops_no_night(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = sif_batch("run", photos(4), root, "--json", "--no-gate").json
    images = root / "releases" / first["release"] / "images.arrow"
    images.write_bytes(bytes(images.stat().st_size))
    night = sif_batch("run", photos(5), root, "--json", "--no-gate")
    assert night.code == 0 and night.json["outcome"] == "published", night.err
    assert "images.arrow: missing or altered" in night.err

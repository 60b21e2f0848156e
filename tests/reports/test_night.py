import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from paths import PHOTOS
from PIL import Image
from synthetic import Row, build_release, entries_of, make_root, paths

from sif_batch.errors import SifBatchError
from sif_batch.jobs.reports import html, plots
from sif_batch.jobs.reports.compare import compare, compare_neighbours
from sif_batch.jobs.reports.map_page import map_release
from sif_batch.jobs.reports.map_places import TILE, Map, open_tile
from sif_batch.jobs.reports.night import (
    MOST_BYTES,
    find_run,
    make_report,
    near_twins,
    recall_plot,
    report_run,
    try_report,
)
from sif_batch.jobs.terminal.reports import _changes
from sif_batch.query.index import Index
from sif_batch.storage.store import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nights: forty photos; some gone, some new, two twins and two that fail; nothing new."""
    folder = tmp_path_factory.mktemp("report")
    photos = sorted(PHOTOS.rglob("*.jpg"))
    source = folder / "photos"
    for photo in photos[:40]:
        target = source / photo.relative_to(PHOTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, target)
    night(folder)
    for photo in sorted(source.rglob("*.jpg"))[:3]:
        photo.unlink()
    for i, photo in enumerate(photos[100:105]):
        shutil.copyfile(photo, source / f"new {i}.jpg")
    shutil.copyfile(photos[20], source / "twin.jpg")
    with Image.open(photos[21]) as image:
        image.save(source / "nearly.jpg", quality=70)
    (source / "note.jpg").write_text("<b>no image</b>")
    (source / "cut.jpg").write_bytes(photos[22].read_bytes()[:2000])
    night(folder, "--max-failures", "0.5")
    night(folder)
    return folder / "root"


def night(folder: Path, *options: str) -> None:
    os.environ["SIF_BATCH_REPORT"] = "1"
    try:
        done = run_command(folder, "run", folder / "photos", folder / "root", *options)
    finally:
        del os.environ["SIF_BATCH_REPORT"]
    assert done.code == 0 and "report    " in done.err, done.err


def runs(root: Path) -> list[Path]:
    return sorted((root / "runs").iterdir())


class Page(HTMLParser):
    """What a page shows, and what it would fetch."""

    def __init__(self, path: Path):
        super().__init__()
        self.fetched: list[str] = []
        self.pieces: list[str] = []
        self.inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self.inside.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "srcset", "data") and value]
        if tag == "link":
            self.fetched.append("link")

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.pieces.append(data)


def test_every_run_has_a_page_that_needs_nothing_else(root: Path) -> None:
    assert len(runs(root)) == 3
    for run in runs(root):
        page = Page(run / "report.html")
        assert (run / "report.html").stat().st_size < MOST_BYTES
        assert all(url.startswith("data:image/webp;base64,") for url in page.fetched)
        text = (run / "report.html").read_text(encoding="utf-8")
        assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)


def test_the_page_tells_what_the_run_did(root: Path) -> None:
    run = runs(root)[1]
    result = json.loads((run / "run.json").read_text())["result"]
    page = Page(run / "report.html")
    for words in (
        "published",
        "listed 46",
        "unchanged 37",
        "embedded 6",
        "reused: known bytes under a new key 1",
        "failed now 2",
        "deleted 3",
        "in the index 44",
        "1 not_an_image : no format that is known",
        "photos/note.jpg : no format that Pillow knows",
        "1 truncated : it ends too early",
        "embedding",
        "recall@10 on",
        "37 images are the same in both, 7 new , 3 gone , 0 moved, 0 with other bytes",
        "1 images have the very bytes of another one",
        f"sif-batch search {root} IMAGE",
        result["bottleneck"],
    ):
        assert words in page.text, words
    assert len(page.fetched) > 8 * 9  # the queries and their neighbours, and more
    assert "<b>no image" not in (run / "report.html").read_text()
    assert {file.name for file in run.iterdir()} >= {"run.json", "report.html", "map.html", "map.png", "map.parquet"}


def test_a_night_without_change_points_to_the_one_that_has_the_pictures(root: Path) -> None:
    before, run = runs(root)[1:]
    page = Page(run / "report.html")
    assert "Nothing has changed" in page.text and not page.fetched
    assert f'href="../{before.name}/report.html"' in (run / "report.html").read_text()
    assert not (run / "map.html").exists()


def test_the_report_can_be_made_again(root: Path, tmp_path: Path) -> None:
    second = runs(root)[1]
    report_run(str(root), second.name[:18], str(tmp_path / "again.html"), print)
    assert Page(tmp_path / "again.html").text == Page(second / "report.html").text
    with pytest.raises(SifBatchError, match="no run 'x'"):
        find_run(Store(str(root)), "x")
    with pytest.raises(SifBatchError, match="begins 3 runs"):
        find_run(Store(str(root)), "2")
    assert find_run(Store(str(root)), None)["id"] == runs(root)[-1].name


def test_a_run_that_failed_has_a_page_too(root: Path, tmp_path: Path) -> None:
    document = find_run(Store(str(root)), None)
    error = {"outcome": "error", "release": None, "error": "the disk is <full>", "remedy": "free some", "seconds": {}}
    store = Store(str(tmp_path))
    page, files = make_report(store, document | {"result": error}, print)
    assert "the disk is &lt;full&gt;; free some" in page.decode() and not files


def test_a_report_that_cannot_be_made_harms_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    try_report(Store(str(root)), "gone", said.append)
    assert said == [f"no report: SifBatchError: {root}: no run 'gone'"]
    monkeypatch.setattr(html, "NEEDS", {"no_such_module": "a thing", "json": "JSON"})
    try_report(Store(str(root)), runs(root)[0].name, said.append)
    assert said[1] == "no report: pages need a thing; install 'sif-batch[report]'"
    with pytest.raises(SifBatchError, match="pages need a thing") as caught:
        report_run(str(root), None, None, print)
    assert caught.value.remedy == "install 'sif-batch[report]'"


def test_near_twins_are_found_and_counted(root: Path) -> None:
    index = Index.open(str(root))
    counts, pairs = near_twins(index)
    keys = index.column("key").to_pylist()
    assert counts["repeated"] == 1 and counts["sampled"] == 44 and counts["alike"] == len(pairs) >= 1
    shown = [{keys[a], keys[b]} for a, b, _ in pairs]
    nearly = [pair for pair in shown if "photos/nearly.jpg" in pair]
    assert len(nearly) == 1 and len(nearly[0]) == 2 and "photos/twin.jpg" not in {key for pair in shown for key in pair}
    assert [s for *_, s in pairs] == sorted((s for *_, s in pairs), reverse=True)


def test_compare_tells_whose_neighbours_changed(root: Path, tmp_path: Path) -> None:
    shown = run_command(tmp_path, "compare", root, "--out", tmp_path / "c.html")
    assert shown.code == 0 and "7 added" in shown.out and "of the ten nearest stayed" in shown.out
    page = Page(tmp_path / "c.html")
    assert "37 images are the same in both, 7 new , 3 gone" in page.text and len(page.fetched) >= 2 * 9
    same = compare(str(root), str(root))
    assert same["neighbours"]["kept_at_10"] == same["mean_cosine"] == 1 and same["in_both"] == 44


def test_changed_neighbours_are_those_of_brute_force(tmp_path: Path) -> None:
    """Two releases of made-up rows: forty in both, ten gone, ten new."""
    rows = [Row(path) for path in paths(60)]
    store = make_root(tmp_path / "root", rows)
    sealed = [
        build_release(store, entries_of(part), tmp_path / str(i)) for i, part in enumerate((rows[:50], rows[10:]))
    ]
    a, b = (Index.open(store.path(f"releases/{release}")) for release in sealed)
    found = compare_neighbours(a, b)
    keys = [index.column("key").to_pylist() for index in (a, b)]

    def nearest(index: Index, own: list[str], key: str) -> set[str]:
        x = index.vectors_of(np.arange(len(index))).astype(np.float64)
        near = np.argsort(-(x @ x[own.index(key)]), kind="stable")
        return {own[row] for row in near if own[row] != key and row in near[:11]}

    both = sorted(set(keys[0]) & set(keys[1]))
    expected = [len(nearest(a, keys[0], key) & nearest(b, keys[1], key)) / 10 for key in both]
    assert found.report["neighbours"]["asked"] == 40
    assert found.report["neighbours"]["kept_at_10"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.report["neighbours"]["changed_most"][0]["kept"] == pytest.approx(min(expected))


def test_a_map_can_be_asked_for(root: Path, tmp_path: Path) -> None:
    made = run_command(tmp_path, "map", root, "--sample", 10, "--json").json["files"]
    assert {Path(path).parent for path in made.values()} == {runs(root)[-1]}
    table = Map.decode((runs(root)[-1] / "map.parquet").read_bytes()).points
    assert len(table) == 10 and table["tile"].null_count == 0
    assert max(open_tile(table["tile"][0].as_py()).size) == TILE  # type: ignore[union-attr]
    for path in made.values():
        Path(path).unlink()
    release = str(root / "releases" / (root / "LATEST").read_text().strip())
    with pytest.raises(SifBatchError, match="no run of it is known"):
        map_release(release, 5, "folder", None, print)
    with pytest.raises(SifBatchError, match="no column 'colour'"):
        map_release(release, 5, "colour", str(tmp_path / "out"), print)
    map_release(release, 5, "folder", str(tmp_path / "out"), print)
    assert (tmp_path / "out/map.png").stat().st_size > 10_000


def test_the_recall_plot_marks_the_chosen_point() -> None:
    curve = [
        {"cells": 4, "rerank": 100, "codes_scanned": 4000.0, "recall": 0.91},
        {"cells": 8, "rerank": 200, "codes_scanned": 8000.0, "recall": 0.96},
        {"cells": 16, "rerank": 200, "codes_scanned": 16000.0, "recall": 0.98},
    ]
    manifest = {"operating_point": {"cells": 8, "rerank": 200}, "recall": {"at_10": 0.96}, "curve": curve}
    svg = recall_plot(manifest, {})
    assert svg and "chosen: 8 cells, 200 re-ranked" in svg and "codes scanned a query" in svg and "target 0.9" in svg
    timed = recall_plot(manifest, {"index": {"curve": [row | {"ms": i + 0.5} for i, row in enumerate(curve)]}})
    assert timed and "milliseconds a query" in timed
    assert recall_plot(manifest | {"operating_point": None}, {}) is None and recall_plot({}, {}) is None
    assert plots.bars([("a & b", 1.0, "<1>")], "s").count("&amp;") >= 1


def test_sizes_are_told_in_words() -> None:
    assert [html.format_bytes(n) for n in (5, 999, 1234, 123456, 5e6, 7.8e12)] == [
        "5 B", "999 B", "1.2 kB", "123 kB", "5.0 MB", "7800.0 GB",
    ]  # fmt: skip


@pytest.mark.browser
def test_the_map_of_the_page_runs_in_a_browser(root: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium")
    check = (
        "<script>const map = document.getElementById('map').map;"
        "document.body.dataset.found = map.nearest(...map.place(3), 9)</script>"
    )
    (tmp_path / "page.html").write_text((runs(root)[1] / "report.html").read_text(encoding="utf-8") + check)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    shown = subprocess.run([*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=900)
    assert 'data-found="3"' in shown.stdout


def test_what_differs_between_two_settings_is_told_number_by_number() -> None:
    old = {"at_10": 0.9, "interval": [0.8, 0.95], "why": None}
    new = {"at_10": 0.9, "interval": [0.85, 0.95], "why": "new"}
    assert list(_changes("recall", old, new)) == ["recall.interval.0: 0.8 -> 0.85", "recall.why: None -> new"]
    assert list(_changes("curve", [old] * 9, [old] * 8)) == ["curve: 9 entries -> 8 entries"]

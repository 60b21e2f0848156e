import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from synthetic import DIMENSION, Row, build_release, entries_of, make_root, paths

from sif_batch.jobs.reports.html import render
from sif_batch.jobs.reports.map_page import COLOURS, colour_numbers, draw_map, map_files, page_values, scaled
from sif_batch.jobs.reports.map_places import SCHEMA, TILE, Map, make_map, place_among, reduce_to
from sif_batch.query.index import Index


def points(count: int, label: Callable[[int], str | None] = lambda i: "abc"[i % 3]) -> pa.Table:
    """A made-up map, each point in a place of its own, with one grey tile for all."""
    sink = io.BytesIO()
    Image.new("RGB", (TILE, TILE // 2), (90, 120, 150)).save(sink, "WEBP")
    places = np.random.default_rng(0).normal(size=(4, count)).astype(np.float32)
    columns = [
        [f"photos/{i}.jpg" for i in range(count)],
        [bytes([i % 256]) * 32 for i in range(count)],
        [label(i) for i in range(count)],
        *places,
        [sink.getvalue()] * count,
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Sixty rows in three clusters that are far apart, without images."""
    folder = tmp_path_factory.mktemp("map")
    rows = []
    for i, path in enumerate(paths(60)):
        centre = np.random.default_rng(i % 3).normal(size=DIMENSION)
        rows.append(Row(path, vector=centre + 0.05 * np.random.default_rng(100 + i).normal(size=DIMENSION)))
    store = make_root(folder / "root", rows)
    return Index.open(store.path(f"releases/{build_release(store, entries_of(rows), folder)}"))


def test_neighbours_lie_together(index: Index) -> None:
    found = make_map(index, 1000)
    assert found.points["key"].to_pylist() == index.column("key").to_pylist()
    kind = np.array([int(Path(key).stem) % 3 for key in found.points["key"].to_pylist()])
    for way in ("tsne", "pca"):
        at = found.places(way)
        distances = np.linalg.norm(at[:, None] - at[None], axis=2) + np.diag(np.full(60, np.inf))
        assert (kind[distances.argmin(axis=1)] == kind).all()
    assert found.points["label"].to_pylist() == [key.split("/")[1] for key in found.points["key"].to_pylist()]
    assert found.points["tile"].null_count == 60  # the images are made up
    again = make_map(index, 1000)
    assert again.points.equals(found.points)
    assert Map.decode(found.encode()).points.equals(found.points)


def test_a_map_keeps_its_places(index: Index) -> None:
    """What is new lies among its nearest neighbours; another encoder, or too much that is new, makes a map anew."""
    whole = make_map(index, 60)
    last = Map(whole.encoder, whole.points.filter(pa.array([i % 15 != 0 for i in range(60)])))
    found = make_map(index, 60, last=last)
    assert not found.moved
    same = [i for i in range(60) if i % 15]
    assert np.array_equal(found.places("tsne")[same], whole.places("tsne")[same])
    kind = np.array([int(Path(key).stem) % 3 for key in found.points["key"].to_pylist()])
    for row in range(0, 60, 15):
        others = [i for i in same if kind[i] == kind[row]]
        low, high = (f(whole.places("tsne")[others], axis=0) for f in (np.min, np.max))
        assert (found.places("tsne")[row] >= low).all() and (found.places("tsne")[row] <= high).all()
    assert make_map(index, 60, last=Map("another", last.points)).moved
    assert make_map(index, 60, last=Map(whole.encoder, whole.points.slice(0, 40))).moved


def test_a_new_point_goes_to_the_middle_of_its_five_nearest() -> None:
    vectors = np.eye(8, dtype=np.float32)
    vectors[7] = [1, 1, 1, 1, 1, 0, 0, 0.5]
    places = np.arange(14, dtype=np.float32).reshape(7, 2) ** 2
    found = place_among(vectors, np.array([0, 1, 2, 3, 4, 5, 6, -1]), places)
    assert np.array_equal(found[:7], places) and np.allclose(found[7], places[:5].mean(axis=0))


@pytest.mark.parametrize("rows", [30, 200])
def test_components_are_those_of_scikit_learn(rows: int) -> None:
    from sklearn.decomposition import PCA

    x = np.random.default_rng(3).normal(size=(rows, 60)) * np.linspace(3, 1, 60)
    expected = PCA(5, svd_solver="full").fit_transform(x)
    found = reduce_to(x.astype(np.float32), 5)
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-4)
    assert (found[np.abs(found).argmax(axis=0), np.arange(5)] > 0).all()


def test_colours_go_by_frequency_and_repeat() -> None:
    names, numbers = colour_numbers(Map("x", points(30, lambda i: None if i < 3 else "ab"[i % 5 == 0])))
    assert names == ["a", "b"] and set(numbers[:3]) == {len(COLOURS)} and set(numbers[3:]) == {0, 1}
    names, numbers = colour_numbers(Map("x", points(60, lambda i: f"{i % 25:02}")))
    assert len(names) == 25 and numbers.max() == len(COLOURS) - 1


def test_a_map_of_one_image_and_of_equal_places_fills_the_page() -> None:
    assert np.array_equal(scaled(np.array([[3.0, 4.0]])), [[0.5, 0.5]])
    assert scaled(np.random.default_rng(1).normal(size=(50, 2))).min() >= 0
    assert draw_map(Map("x", points(1))).size == (1600, 1200)


def test_the_picture_shows_points_and_images() -> None:
    pixels = np.asarray(draw_map(Map("x", points(200))), int)
    shown = (np.abs(pixels - (90, 120, 150)).max(axis=2) < 12).sum()
    assert shown > 40 * 48 * 20  # of 200 images many find room
    assert all((pixels == tuple(int(c[i : i + 2], 16) for i in (1, 3, 5))).all(axis=2).any() for c in COLOURS[:3])


def test_the_page_holds_every_point_and_its_image(index: Index) -> None:
    found = make_map(index, 20)
    files = map_files(found, index)
    assert set(files) == {"map.html", "map.png", "map.parquet"}
    page = files["map.html"].decode()
    (values,) = re.findall(r'drawMap\(document.getElementById\("map"\), (.*)\);', page)
    assert json.loads(values) == json.loads(
        json.dumps(page_values(found, index.column("uri").slice(0, 20).to_pylist()))
    )
    assert json.loads(values)["count"] == 20 and "src=" not in page and "@import" not in page
    many = page_values(Map("x", points(1025)), ["s3://b/a.jpg", "/a b.jpg", "https://x/a.jpg", "/t.parquet#row=1"])
    assert len(many["sheets"]) == 2  # 1,024 in the first
    assert many["links"] == [None, "file:///a%20b.jpg", "https://x/a.jpg", None]


BENCH = """
<script>
const map = document.getElementById("map").map, began = performance.now();
for (let i = 0; i < 40; i++) { map.zoom(600, 300, i % 2 ? 1.3 : 1 / 1.3); map.drawNow(); }
const drawn = (performance.now() - began) / 40, asked = performance.now();
let found = 0;
for (let i = 0; i < 1000; i++) { const [x, y] = map.place(i); found += map.nearest(x, y, 16) >= 0; }
const search = (performance.now() - asked) / 1000;
document.body.dataset.bench = JSON.stringify({ drawn, search, found });
</script>
"""


@pytest.mark.browser
def test_fifty_thousand_points_are_drawn_and_found(tmp_path: Path) -> None:
    """By Chromium, on the CPU alone; it prints the milliseconds of a picture and of a search."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium")
    values = page_values(Map("x", points(50_000)), ["/x.jpg"] * 50_000)
    page = render("map.html", values=values, release="0" * 64, rows=50_000)
    (tmp_path / "map.html").write_bytes(page + BENCH.encode())
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command += ["--window-size=1280,800", f"file://{tmp_path}/map.html"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=900).stdout
    measured = json.loads(re.findall(r'data-bench="([^"]*)"', shown)[0].replace("&quot;", '"'))
    print(len(page), measured)
    assert measured["found"] == 1000

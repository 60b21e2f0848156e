"""The page in headless Chromium, served as a user serves it: what is clicked, what is seen, no error on the console."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import PHOTOS, REPOSITORY
from photo_roots import publish_photos
from served import served

from sif_batch.jobs.reports.map_page import map_files
from sif_batch.jobs.reports.map_places import make_map
from sif_batch.query.index import Index

pytest.importorskip("streamlit", reason="needs the extra page")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which make test installs")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
WIDTHS = (1280, 400)
ASKED, GONE = "photos/dalmatian/image_0042.jpg", "photos/dalmatian/image_0041.jpg"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROOT of forty photos of four kinds, of which one was deleted since."""
    folder = tmp_path_factory.mktemp("browser")
    for kind in ("dalmatian", "lotus", "pizza", "rooster"):
        shutil.copytree(PHOTOS / kind, folder / "photos" / kind)
    publish_photos(folder / "root", folder / "photos", folder / "scratch")
    (folder / GONE).unlink()
    run = folder / "root/runs/1"
    run.mkdir(parents=True)
    release = (folder / "root/LATEST").read_text().strip()
    (run / "run.json").write_text(json.dumps({"id": "1", "result": {"release": release}}))
    index = Index.open(folder / "root")
    (run / "map.html").write_bytes(map_files(make_map(index, 40), index)["map.html"])
    return folder / "root"


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Serve a ROOT until all tests ran; returns the page's address."""
    folder = tmp_path_factory.mktemp("serving")
    with contextlib.ExitStack() as running:
        yield lambda root, *options: running.enter_context(served(root, folder, *options))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[str, int], Any]]:
    """Open a page at a width; at the end nothing went wrong in any, and nothing came from elsewhere."""
    pages: list[Any] = []
    wrong: list[str] = []

    def is_wrong(url: str, origin: str) -> bool:
        return not url.startswith((origin, "data:", "blob:", origin.replace("http:", "ws:")))

    def open_page(url: str, width: int) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        origin = "/".join(url.split("/")[:3])
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if is_wrong(request.url, origin) else None)
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not wrong


def asked_with(page: Any, key: str) -> None:
    """Wait until the page shows the image of this key as the one asked with."""
    page.wait_for_function("key => location.search.includes(encodeURIComponent(key))", arg=key)
    page.locator(".query h2", has_text=Path(key).name).wait_for()


def keys(page: Any) -> list[str]:
    return page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.key)")


def pictures_are_drawn(page: Any) -> None:
    """Every picture that is in view holds pixels, and nothing is wider than the window."""
    page.wait_for_function(
        """() => {
          const look = [...document.querySelectorAll("*")].map(e => e.shadowRoot?.querySelector(".look")).find(Boolean);
          const images = [...look.querySelectorAll("img")].filter(i => i.getBoundingClientRect().top < innerHeight);
          return images.length > 2 && images.every(image => image.complete && image.naturalWidth > 0);
        }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def upload(page: Any, *files: Any) -> None:
    page.get_by_role("button", name="Upload").click()
    page.locator("input[type=file]").set_input_files(list(files))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_visit(
    root: Path, serve: Callable[..., str], visit: Callable[[str, int], Any], tmp_path: Path, width: int
) -> None:
    index, url = Index.open(root), serve(root)
    page = visit(url, width)
    page.locator(".card").first.wait_for()
    head = page.locator(".facts").inner_text()
    assert all(words in head for words in ("40", "efficientnet_lite0", "recall@10", index.release[:12]))
    pictures_are_drawn(page)

    page.get_by_role("button", name="Random").click()
    page.wait_for_function("location.search.includes('key=')")
    page.goto(f"{url}/?key={ASKED}")
    page.locator(".query h2", has_text="image_0042").wait_for()
    assert keys(page) == [hit.key for hit in index.search(key=ASKED, k=24)]
    pictures_are_drawn(page)
    page.screenshot(path=tmp_path / f"look-{width}.png")

    second = keys(page)[1]
    page.locator(".card .picture").nth(1).click()
    asked_with(page, second)
    assert keys(page) == [hit.key for hit in index.search(key=second, k=24)]
    page.go_back()
    page.locator(".query h2", has_text="image_0042").wait_for()

    right, wrong = keys(page)[2], keys(page)[0]
    page.get_by_role("button", name=f"Right: {right}").click()
    page.get_by_role("button", name=f"Wrong: {wrong}").click()
    page.get_by_text("1 right, 1 wrong").wait_for()
    page.get_by_role("button", name="Ask again").click()
    page.locator(f'.card[data-key="{wrong}"]').wait_for(state="detached")
    assert keys(page) == [hit.key for hit in index.search(key=ASKED, k=24, right=[right], wrong=[wrong])]

    page.get_by_role("button", name="Filter").click()
    where = page.get_by_role("textbox", name="Only images where")
    where.fill("colour = 'red'")
    where.press("Enter")
    page.get_by_text("no column 'colour'").first.wait_for()
    where.fill("folder = 'rooster'")
    where.press("Enter")
    page.wait_for_function("location.search.includes('where=')")
    page.locator('.card[data-key*="rooster"]').first.wait_for()
    assert {key.split("/")[1] for key in keys(page)} == {"rooster"} and len(keys(page)) == 10


@pytest.mark.parametrize("width", WIDTHS)
def test_uploads(
    root: Path, serve: Callable[..., str], visit: Callable[[str, int], Any], tmp_path: Path, width: int
) -> None:
    page = visit(f"{serve(root)}/?key={ASKED}", width)
    page.locator(".card").first.wait_for()
    upload(page, PHOTOS / "pizza/image_0003.jpg")
    page.locator(".query h2", has_text="Your image").wait_for()
    assert keys(page)[0] == "photos/pizza/image_0003.jpg"
    page.keyboard.press("Escape")
    pictures_are_drawn(page)
    with open(tmp_path / "huge.jpg", "wb") as huge:
        huge.truncate(200_000_000)
    (tmp_path / "note.jpg").write_text("no image")
    upload(page, tmp_path / "note.jpg")
    page.get_by_text("note.jpg: ").first.wait_for()
    page.get_by_text("no format that Pillow knows").wait_for()
    page.locator("input[type=file]").set_input_files([tmp_path / "huge.jpg"])
    page.get_by_text("File must be 20").wait_for()


def test_uploads_of_many_at_once_stay_their_own(
    root: Path, serve: Callable[..., str], visit: Callable[[str, int], Any]
) -> None:
    url, index = serve(root), Index.open(root)
    photos = sorted((PHOTOS / "watch").iterdir())[:6]
    pages = [visit(url, 1280) for _ in photos]
    for page in pages:
        page.locator(".card").first.wait_for()
        page.get_by_role("button", name="Upload").click()
    for page, photo in zip(pages, photos, strict=True):
        page.locator("input[type=file]").set_input_files(photo)  # does not wait until it is answered
    for page, photo in zip(pages, photos, strict=True):
        page.locator(".query h2", has_text="Your image").wait_for()
        assert keys(page) == [hit.key for hit in index.search(image=photo, k=24)]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_missing_original_the_map_and_a_release_that_is_removed(
    root: Path, serve: Callable[..., str], visit: Callable[[str, int], Any], tmp_path: Path, width: int
) -> None:
    copy = shutil.copytree(root, tmp_path / "root")
    url = serve(copy)
    page = visit(f"{url}/?key={ASKED}", width)
    picture = page.locator(f'.card[data-key="{GONE}"] img')
    picture.scroll_into_view_if_needed()
    pictures_are_drawn(page)
    shown = page.request.get(url + "/" + picture.get_attribute("src"))
    assert shown.headers["content-type"] == "image/svg+xml" and "The original is missing" in shown.text()
    release = Index.open(copy).release
    thumbnails, runs = f"thumbnails/{release[:16]}", f"runs/{release[:16]}"
    nowhere = [
        f"{thumbnails}/40/320",
        f"{thumbnails}/0/321",
        f"thumbnails/{release[:8]}/0/320",
        f"thumbnails/{'0' * 16}/0/320",
    ]
    for path in [*nowhere, f"{runs}/run.json", f"{runs}/..%2Frun.json"]:
        answer = page.request.get(f"{url}/{path}")
        assert answer.status in (400, 404) or "<title>Streamlit</title>" in answer.text(), path

    page.get_by_role("link", name="Map").click()
    page.frame_locator("iframe").get_by_role("heading", name="40 of 40 images").wait_for()
    frame = page.frames[-1]
    assert frame.evaluate("window.origin") == "null"  # so it has nothing of the visitor's
    canvas = frame.locator("#map > canvas")
    x, y = frame.evaluate("document.getElementById('map').map.place(7).map(place => place / devicePixelRatio)")
    with page.expect_popup() as opened:
        canvas.dblclick(position={"x": x, "y": y})
    key = Index.open(copy).column("key")[7].as_py()
    opened.value.locator(".query h2", has_text=Path(key).name).wait_for()
    opened.value.close()
    shutil.rmtree(copy / "releases" / release)
    told = page.get_by_text(f"release {release[:12]} was removed")
    while True:  # the page looks every few seconds, when someone asks
        page.goto(f"{url}/?key={ASKED}")
        told.or_(page.locator(".card")).first.wait_for()
        if told.count():
            break
    assert not page.locator(".card").count()
    shutil.copytree(root / "releases" / release, copy / "releases" / release)
    page.get_by_role("button", name="Look again").click()
    page.locator(".card").first.wait_for()


def test_the_benchmark_runs_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.page", "--rows", "400", "--visitors", "2", "--rounds", "1", "--json"]
    env = os.environ | {"SIF_BATCH_REPORT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["rows"] == 400 and found["visitors"] == 2 and found["server_rss_mb"] > 50
    for name in ("first_page_s", "click_s", "query_s", "filtered_query_s", "together_s"):
        assert 0 < found[name]["median"] <= found[name]["p95"] <= found[name]["worst"]

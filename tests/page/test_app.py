"""The page as Streamlit runs it, without a browser: what a visitor does, and what is shown then."""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from paths import PHOTOS, REPOSITORY
from photo_roots import publish_photos
from PIL import Image

pytest.importorskip("streamlit", reason="needs the extra page")
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from sif_batch.jobs.page import gallery
from sif_batch.jobs.page.answers import MOST_UPLOADED
from sif_batch.jobs.page.gallery import PageSettings
from sif_batch.query.index import Index

APP = REPOSITORY / "jobs" / "page" / "app.py"
ASKED = "photos/lotus/image_0016.jpg"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROOT of thirty photos of three kinds."""
    folder = tmp_path_factory.mktemp("app")
    for kind in ("dalmatian", "lotus", "pizza"):
        shutil.copytree(PHOTOS / kind, folder / "photos" / kind)
    publish_photos(folder / "root", folder / "photos", folder / "scratch")
    return folder / "root"


class Visitor:
    """Someone who looks at the page."""

    def __init__(self, **address: str):
        self.page = AppTest.from_file(str(APP), default_timeout=60)
        self.page.query_params.update(address)
        self.page.run()

    @property
    def key(self) -> str | None:
        """The image asked with, as the address says."""
        found = self.page.query_params.get("key")
        return found[0] if isinstance(found, list) else found

    @property
    def shown(self) -> dict[str, Any]:
        """What the grid was given."""
        (grid,) = (node for node in self.page.main if node.type == "bidi_component")
        found: dict[str, Any] = json.loads(grid.proto.json)
        return found

    @property
    def keys(self) -> list[str]:
        return [card["key"] for card in self.shown["cards"]]

    @property
    def errors(self) -> list[str]:
        assert not self.page.exception
        return [error.value.replace("\\", "") for error in self.page.error]

    def click(self, event: str, value: object) -> None:
        """As the grid's JavaScript does."""
        (grid,) = (node for node in self.page.main if node.type == "bidi_component")
        states = self.page._tree.get_widget_states()
        state = states.widgets.add()
        state.id = f"$$STREAMLIT_INTERNAL_KEY_{grid.proto.id}__events"
        state.json_trigger_value = json.dumps([{"event": event, "value": value}])
        self.page._run(states)

    def press(self, label: str) -> None:
        (button,) = (button for button in self.page.button if button.label == label)
        button.click().run()

    def upload(self, *files: tuple[str, bytes]) -> None:
        self.page.file_uploader[0].set_value([(name, data, "image/jpeg") for name, data in files]).run()


@pytest.fixture
def index(root: Path) -> Index:
    return gallery.open_gallery(PageSettings(place=str(root)), look_every_s=0).current()


def found_by(index: Index, k: int = 24, **terms: Any) -> list[str]:
    return [hit.key for hit in index.search(k=k, **terms)]


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_home_shows_the_release_and_a_random_image(index: Index) -> None:
    visitor = Visitor()
    (head,) = (html.value for html in visitor.page.get("html") if "facts" in html.value and "<style" not in html.value)
    for words in ("30", "images", "efficientnet_lite0", "recall@10", "100%", "published", index.release[:12]):
        assert words in head
    key = visitor.shown["query"]["lines"][0]
    assert visitor.key is None and visitor.page.run() and visitor.shown["query"]["title"] == Path(key).name
    assert visitor.keys == found_by(index, key=key)
    shown = visitor.shown
    assert shown["query"]["title"] == Path(key).name
    assert shown["query"]["pictures"] == [f"thumbnails/{index.release[:16]}/{index.row_of(key)}/800"]
    card = shown["cards"][3]
    assert card["picture"] == f"thumbnails/{index.release[:16]}/{index.row_of(card['key'])}/320"
    assert card["similarity"] == f"{index.search(key=key, k=4)[3].similarity:.3f}" and card["rank"] == 4
    others = set()
    for _ in range(12):
        visitor.press("Random")
        others.add(visitor.key)
    assert len(others) > 1 and not visitor.errors


def test_a_click_asks_with_that_image(index: Index) -> None:
    visitor = Visitor(key=ASKED)
    second = visitor.keys[1]
    visitor.click("ask", {"key": second, "rank": 2})
    assert visitor.key == second and visitor.keys == found_by(index, key=second)


def test_the_address_holds_the_question(index: Index) -> None:
    visitor = Visitor(key=ASKED, k="5", where="folder = 'pizza'")
    assert visitor.keys == found_by(index, k=5, key=ASKED, where="folder = 'pizza'")
    assert Visitor(key="photos/nowhere.jpg").errors == [
        "no image of the release has the key 'photos/nowhere.jpg'; keys look like source/folder/name.jpg"
    ]


def test_k_of_zero_is_told(index: Index) -> None:
    visitor = Visitor(key=ASKED, k="0")
    assert visitor.errors == ["k is 0; ask for 1 to 500 images"]
    visitor.page.number_input(key="k").set_value(3).run()
    assert not visitor.errors and visitor.keys == found_by(index, k=3, key=ASKED)
    visitor.page.number_input(key="k").set_value(0).run()
    assert visitor.errors == ["k is 0; ask for 1 to 500 images"]


def test_a_filter(index: Index) -> None:
    visitor = Visitor(key=ASKED)
    visitor.page.text_input(key="where").set_value("folder = 'dalmatian'").run()
    assert visitor.keys == found_by(index, key=ASKED, where="folder = 'dalmatian'") and len(visitor.keys) == 10
    visitor.page.text_input(key="where").set_value("colour = 'red'").run()
    (error,) = visitor.errors
    assert "colour" in error and "folder" in error
    assert any("colour" in caption.value for caption in visitor.page.caption)  # beside the text, too
    visitor.page.text_input(key="where").set_value("folder = 'nowhere'").run()
    assert not visitor.errors and not visitor.keys and visitor.shown["none"] == "No image qualifies."
    visitor.page.selectbox[0].set_value("folder").run()
    visitor.page.multiselect[0].set_value(["pizza", "lotus"]).run()
    visitor.press("Use")
    assert visitor.page.text_input(key="where").value == "folder in ('pizza', 'lotus')"
    assert {key.split("/")[1] for key in visitor.keys} == {"pizza", "lotus"}


def test_uploads_are_asked_with_together(index: Index) -> None:
    photos = [PHOTOS / "pizza/image_0003.jpg", PHOTOS / "rooster/image_0005.jpg"]
    contents = [photo.read_bytes() for photo in photos]
    visitor = Visitor(key=ASKED)
    visitor.upload(("mine.jpg", contents[0]))
    assert visitor.keys[0] == "photos/pizza/image_0003.jpg" and visitor.key is None
    assert visitor.keys == found_by(index, image=contents[0])
    (picture,) = visitor.shown["query"]["pictures"]
    assert visitor.shown["query"]["title"] == "Your image" and picture.startswith("data:image/webp;base64,")
    visitor.upload(*((photo.name, content) for photo, content in zip(photos, contents, strict=True)))
    assert visitor.keys == found_by(index, images=contents, together=True)
    assert len(visitor.shown["query"]["pictures"]) == 2 and not visitor.errors
    visitor.press("Random")
    assert visitor.key and visitor.shown["query"]["title"] != "Your 2 images"


def test_bad_uploads_are_told_and_the_question_stays(index: Index) -> None:
    visitor = Visitor(key=ASKED)
    before = visitor.keys
    for name, data, says in (
        ("note.jpg", b"no image at all", "no format that Pillow knows"),
        ("empty.png", b"", "the file is empty"),
        ("bomb.png", bomb(), "more pixels or bytes than the limit"),
        ("large.jpg", b"\xff\xd8" + bytes(MOST_UPLOADED), "20 MB, the limit is 20 MB; upload a smaller image"),
    ):
        visitor.upload((name, data))
        (error,) = visitor.errors
        assert error.startswith(f"{name}: ") and says in error
        assert visitor.keys == before and visitor.key == ASKED
    good = io.BytesIO()
    Image.new("L", (30, 30), 200).save(good, "TIFF")
    visitor.upload(("note.jpg", b"no image at all"), ("good.tif", good.getvalue()))
    assert len(visitor.errors) == 1 and visitor.keys == found_by(index, image=good.getvalue())


def test_marks_and_asking_again(index: Index) -> None:
    visitor = Visitor(key=ASKED)
    right, wrong = "photos/pizza/image_0003.jpg", visitor.keys[0]
    for key, mark in ((right, "right"), (visitor.keys[1], "wrong"), (visitor.keys[1], ""), (wrong, "wrong")):
        visitor.click("mark", {"key": key, "mark": mark})
    before = visitor.keys
    assert visitor.shown["marks"] == {right: "right", wrong: "wrong"} and before == found_by(index, key=ASKED)
    assert "1 right, 1 wrong" in [caption.value for caption in visitor.page.caption]
    visitor.press("Ask again")
    assert visitor.keys == found_by(index, key=ASKED, right=[right], wrong=[wrong]) != before
    assert wrong not in visitor.keys
    visitor.press("Forget")
    assert visitor.keys == before and not visitor.shown["marks"]
    visitor.click("mark", {"key": right, "mark": "right"})
    visitor.click("ask", {"key": right, "rank": 1})
    assert not visitor.shown["marks"] and visitor.keys == found_by(index, key=right)


def test_marks_are_kept_and_usage_is_noted_where_that_was_asked_for(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    settings = PageSettings(place=str(root), judgements=str(tmp_path / "judgements"), feedback_log=str(log))
    gallery.open_gallery(settings)
    visitor = Visitor(key=ASKED)
    first, second = visitor.keys[:2]
    visitor.click("mark", {"key": first, "mark": "right"})
    visitor.click("mark", {"key": second, "mark": "wrong"})
    visitor.press("Keep marks")
    (kept,) = (tmp_path / "judgements").iterdir()
    rows = pq.read_table(kept).select(["query", "key", "right"]).to_pylist()
    assert sorted(rows, key=lambda row: not row["right"]) == [
        {"query": ASKED, "key": first, "right": True},
        {"query": ASKED, "key": second, "right": False},
    ]
    visitor.click("ask", {"key": second, "rank": 2})
    visitor.upload(("secret-name.jpg", (PHOTOS / "pizza/image_0003.jpg").read_bytes()))
    assert "secret-name" not in log.read_text() and len(log.read_text().splitlines()) == 4  # 3 questions, a click


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is full")
def test_a_log_that_is_full_stops_nobody(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = gallery.open_gallery(PageSettings(place=str(root), feedback_log="/dev/full")).current()
    visitor = Visitor(key=ASKED)
    assert visitor.keys == found_by(index, key=ASKED) and not visitor.errors
    assert [warning.value for warning in visitor.page.warning] == [
        "The log of questions and clicks cannot be written just now; the page goes on without."
    ]
    second = visitor.keys[1]
    visitor.click("ask", {"key": second, "rank": 2})
    assert visitor.keys == found_by(index, key=second) and not visitor.errors
    assert "/dev/full: the log cannot be written (No space left on device)" in capfd.readouterr().err


def test_a_log_that_was_removed_is_told_on_its_page(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    gallery.open_gallery(PageSettings(place=str(root), feedback_log=str(log)))
    visitor = Visitor(key=ASKED)
    log.unlink()
    visitor.page._page_hash = calc_hash("usage")  # as a click on the page's link does
    visitor.page.run()
    (error,) = visitor.errors
    assert "cannot be read (No such file or directory)" in error


def test_a_release_that_is_removed_or_replaced_is_told(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "root")
    release = gallery.open_gallery(PageSettings(place=str(copy)), look_every_s=0).current().release
    visitor = Visitor(key=ASKED)
    shutil.move(copy / "releases" / release, tmp_path / "aside")
    visitor.press("Random")
    (error,) = visitor.errors
    assert f"release {release[:12]} was removed" in error
    shutil.move(tmp_path / "aside", copy / "releases" / release)
    visitor.press("Look again")
    assert not visitor.errors and len(visitor.keys) == 24
    shutil.copytree(PHOTOS / "pizza", tmp_path / "photos" / "pizza")
    newer = publish_photos(copy, tmp_path / "photos", tmp_path / "scratch")
    visitor.press("Random")
    assert [info.value for info in visitor.page.info] == [
        f"Release {release[:12]} was replaced: this is {newer[:12]} now."
    ]
    assert len(visitor.keys) == 9 and not visitor.errors

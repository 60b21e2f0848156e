import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Finished
from paths import PHOTOS, REPOSITORY
from photo_roots import publish_photos
from PIL import Image

from sif_batch.errors import SifBatchError
from sif_batch.jobs.page.answers import MOST, Question, answer, as_cards, random_key, where_between, where_values
from sif_batch.jobs.page.gallery import Gallery, PageSettings
from sif_batch.jobs.page.html_text import about_facts, about_usage, describe_key, plain
from sif_batch.jobs.page.serve import check_port
from sif_batch.jobs.page.thumbnails import Thumbnails
from sif_batch.query.index import Index
from sif_batch.query.usage_log import UsageLog, summarise

KINDS = ("dalmatian", "lotus", "pizza")
TWIN = "lotus/image_0002.jpg"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty photos of three kinds, and three copies of one of them."""
    folder = tmp_path_factory.mktemp("page") / "photos"
    for kind in KINDS:
        shutil.copytree(PHOTOS / kind, folder / kind)
    for number in range(3):
        shutil.copyfile(folder / TWIN, folder / "lotus" / f"twin {number}.jpg")
    return folder


def fields(path: str) -> dict[str, object]:
    return {"o'clock": len(path), "kind of": "it's " + path.partition("/")[0]}


@pytest.fixture(scope="module")
def root(photos: Path) -> Path:
    publish_photos(photos.parent / "root", photos, photos.parent / "scratch", fields)
    return photos.parent / "root"


@pytest.fixture(scope="module")
def index(root: Path) -> Index:
    return Index.open(root)


def sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_a_thumbnail_is_made_once_and_kept_by_its_bytes(photos: Path, tmp_path: Path) -> None:
    original = tmp_path / "a.jpg"
    shutil.copyfile(photos / TWIN, original)
    thumbnails = Thumbnails(tmp_path / "kept")
    made = thumbnails.get(str(original), sha256(photos / TWIN), 100)
    assert made.mime == "image/webp" and made.lasting and max(opened(made.data).size) == 100
    original.unlink()
    assert Thumbnails(tmp_path / "kept").get(str(original), sha256(photos / TWIN), 100) == made
    gone = thumbnails.get(str(original), sha256(photos / TWIN), 101)  # of another size there is none
    assert gone.mime == "image/svg+xml" and not gone.lasting
    assert "The original is missing" in gone.data.decode()


def test_an_original_that_changed_is_shown_as_such_and_not_kept(photos: Path, tmp_path: Path) -> None:
    shown = Thumbnails(tmp_path).get(str(photos / TWIN), b"\0" * 32, 100)
    true = Thumbnails(tmp_path).get(str(photos / TWIN), sha256(photos / TWIN), 100)
    assert shown.mime == "image/webp" and not shown.lasting and true.lasting
    assert opened(shown.data).size == opened(true.data).size and shown.data != true.data
    assert len(list(tmp_path.rglob("*.webp"))) == 1


def test_an_original_that_is_no_image_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    shown = Thumbnails(tmp_path / "kept").get(str(tmp_path / "a.jpg"), b"\0" * 32, 100)
    assert shown.mime == "image/svg+xml" and b"The original cannot be read" in shown.data


def test_the_folder_of_thumbnails_is_bounded(photos: Path, tmp_path: Path) -> None:
    """Those that were longest not asked for go first."""
    paths = sorted(photos.rglob("image*.jpg"))
    most = 40_000
    thumbnails = Thumbnails(tmp_path, most)
    first = thumbnails.get(str(paths[0]), sha256(paths[0]), 160)
    for number, path in enumerate(paths):
        thumbnails.get(str(path), sha256(path), 160)
        for age, kept in enumerate(sorted(tmp_path.rglob("*.webp"), key=lambda p: p.stat().st_mtime_ns)):
            os.utime(kept, ns=(kept.stat().st_atime_ns, number * 10**9 + age))  # a clock of our own
        assert thumbnails.get(str(paths[0]), sha256(paths[0]), 160) == first
    kept = list(tmp_path.rglob("*.webp"))
    assert 0 < sum(path.stat().st_size for path in kept) <= 1.3 * most
    assert len(kept) < len(paths) and sha256(paths[0]).hex() in {path.stem for path in kept}


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SifBatchError, match="thumbnails cannot be kept there"):
        Thumbnails(tmp_path / "file" / "folder")


def test_exact_copies_are_folded_and_as_many_as_asked_for_remain(index: Index) -> None:
    asked = "photos/lotus/image_0016.jpg"
    plain_keys = [hit.key for hit in index.search(key=asked, k=33)]
    twins = [key for key in plain_keys if "twin" in key or key.endswith(TWIN)]
    assert len(twins) == 4
    expected = [key for key in plain_keys if key not in twins[1:]]
    for k in (1, 12, 30):
        found = answer(index, Question(key=asked, k=k))
        assert [card.hit.key for card in found.cards] == expected[:k] and found.copies == 0
        assert [card.copies for card in found.cards if card.hit.key in twins] in ([3], [])
    unfolded = answer(index, Question(key=asked, k=32, fold=False))
    assert [card.hit.key for card in unfolded.cards] == plain_keys[:32]
    assert [index.column("key")[card.row].as_py() for card in unfolded.cards] == plain_keys[:32]


def test_copies_of_the_image_asked_with_are_counted_beside_it(index: Index) -> None:
    found = answer(index, Question(key="photos/lotus/twin 0.jpg", k=29))
    assert found.copies == 3 and len(found.cards) == 29 and not any("twin" in card.hit.key for card in found.cards)
    title, lines = describe_key(index, "photos/lotus/twin 0.jpg", found.copies)
    assert title == "twin 0.jpg" and {"photos/lotus/twin 0.jpg", "3 exact copies beside it", "o'clock: 16"} <= set(
        lines
    )
    assert not any(line.startswith("/") for line in lines)  # no path of this machine
    assert as_cards(index, [], None, True) == ([], 0)


@pytest.mark.parametrize("k", [0, -3, MOST + 1])
def test_k_out_of_range_is_told(index: Index, k: int) -> None:
    with pytest.raises(SifBatchError, match=f"k is {k}") as caught:
        answer(index, Question(key=random_key(index), k=k))
    assert caught.value.remedy == f"ask for 1 to {MOST} images"


def test_what_is_chosen_becomes_a_condition(index: Index) -> None:
    def keys(where: str) -> set[str]:
        return {card.hit.key for card in answer(index, Question(key=asked, k=40, where=where, fold=False)).cards}

    asked = "photos/pizza/image_0003.jpg"
    everything = set(index.column("key").to_pylist()) - {asked}
    of_lotus = {key for key in everything if "/lotus/" in key}
    assert keys(where_values("folder", ["lotus"])) == of_lotus
    assert keys(where_values("kind of", ["it's lotus", "it's pizza"])) == {
        k for k in everything if "dalmatian" not in k
    }
    assert keys(where_between("o'clock", 16, 16)) == {key for key in everything if "twin" in key}


def test_facts_and_choices_of_a_release(root: Path, index: Index, tmp_path: Path) -> None:
    shared = Gallery(PageSettings(place=str(root)))
    facts = shared.facts(index)
    assert (facts.rows, facts.encoder, facts.dimension) == (33, "efficientnet_lite0", 1280)
    assert facts.release == index.release and facts.recall == 1.0 and facts.published is not None
    assert shared.choices(index, "folder").values == ("lotus", "dalmatian", "pizza")
    widths = index.column("width").to_pylist()
    assert (shared.choices(index, "width").low, shared.choices(index, "width").high) == (min(widths), max(widths))
    shutil.copytree(root / "releases" / index.release, tmp_path / "copied")
    copied = Gallery(PageSettings(place=str(tmp_path / "copied")))
    assert copied.facts(copied.current()).published is None
    within = Gallery(PageSettings(place=str(root / "releases" / index.release)))
    assert within.facts(within.current()).published == facts.published


def test_the_map_and_report_of_the_run_that_made_the_release(root: Path, index: Index, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "root")
    shared = Gallery(PageSettings(place=str(copy)))
    assert shared.run_page(index.release, "map.html") is None
    for run, release, page in (("1", index.release, b"old"), ("2", index.release, b"map"), ("3", "0" * 64, b"other")):
        (copy / "runs" / run).mkdir(parents=True)
        (copy / "runs" / run / "run.json").write_text(f'{{"id": "{run}", "result": {{"release": "{release}"}}}}')
        (copy / "runs" / run / "map.html").write_bytes(page)
    assert shared.run_page(index.release, "map.html") == b"map"
    assert shared.run_page(index.release, "report.html") is None
    within = Gallery(PageSettings(place=str(copy / "releases" / index.release)))
    assert within.run_page(index.release, "map.html") == b"map"


def test_a_newer_release_shows_itself_and_a_removed_one_is_told(root: Path, photos: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "root")
    shared = Gallery(PageSettings(place=str(copy)), look_every_s=0)
    first = shared.current()
    assert shared.current() is first
    (tmp_path / "fewer").mkdir()
    shutil.copytree(photos / "pizza", tmp_path / "fewer" / "pizza")
    release = publish_photos(copy, tmp_path / "fewer", tmp_path / "scratch")
    second = shared.current()
    assert second.release == release and len(second) == 10
    for index in (first, second):  # pictures of the one before, for those who still look at it
        key = index.column("key")[0].as_py().partition("/")[2]
        assert shared.picture(index.release[:16], 0, 320) == shared.thumbnails.get(
            str((photos if index is first else tmp_path / "fewer") / key), index.column("sha256")[0].as_py(), 320
        )
    shutil.move(copy / "releases" / release, tmp_path / "aside")
    for _ in range(2):
        with pytest.raises(SifBatchError, match=f"release {release[:12]} was removed"):
            shared.current()
    shutil.move(tmp_path / "aside", copy / "releases" / release)
    assert shared.current() is second
    shutil.rmtree(copy)
    with pytest.raises(SifBatchError, match="neither a ROOT nor a release"):
        shared.current()


def test_a_picture_is_named_by_release_and_row_alone(root: Path, index: Index) -> None:
    shared = Gallery(PageSettings(place=str(root)))
    assert shared.picture(index.release[:16], 32, 320) is not None
    for release, row in ((index.release[:16], 33), (index.release[:16], -1), ("0" * 16, 0)):
        assert shared.picture(release, row, 320) is None


def test_words_of_a_release_are_never_html_or_markdown(root: Path, index: Index) -> None:
    shared = Gallery(PageSettings(place=str(root)))
    facts = shared.facts(index)
    html = about_facts(type(facts)(**vars(facts) | {"encoder": "<script>alert(1)</script>"}))
    assert "<script>" not in html and "33" in html and "100%" in html
    assert plain("[a](http://x) *b* $c$ :red[d]").replace("\\", "") == "[a](http://x) *b* $c$ :red[d]"
    assert "\\[a\\]\\(http\\://x\\) \\*b\\*" in plain("[a](http://x) *b*")


def test_a_port_in_use_is_one_line(sif_batch: Callable[..., Finished], root: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SifBatchError, match="cannot listen there"):
            check_port("127.0.0.1", port)
        done = sif_batch("serve", root, "--port", port)
    assert done.code == 1 and len(done.err.splitlines()) == 1 and not done.out
    assert f"127.0.0.1:{port}: cannot listen there (Address already in use); give another --port" in done.err
    check_port("127.0.0.1", port)
    done = sif_batch("serve", tmp_path, "--json")
    assert done.code == 1 and done.json["outcome"] == "error" and "neither a ROOT nor a release" in done.err


def test_a_port_that_is_taken_just_before_the_server_listens_is_one_line(root: Path) -> None:
    """The first look at the port is made too early here, as if another program came in between."""
    pytest.importorskip("streamlit", reason="needs the extra page")
    early = "import sif_batch.jobs.page.serve as s; real = s.check_port; "
    early += "s.check_port = lambda *given: setattr(s, 'check_port', real)"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = ["serve", str(root), "--port", str(taken.getsockname()[1]), "--json"]
        command = [sys.executable, "-c", f"{early}; from sif_batch.jobs.cli.main import main; main()", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=900)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "cannot listen there" in done.stderr
    assert json.loads(done.stdout)["remedy"] == "give another --port or --host"


def test_usage_is_summed_up_as_html(tmp_path: Path) -> None:
    log = UsageLog(str(tmp_path / "log"))
    assert "none yet" in about_usage(summarise(log.path))
    query = log.asked(release="r", by="key", k=2, hits=["<b>", "c"], seconds=0.25, key="<a>")
    log.clicked(query, "<b>", 1)
    shown = about_usage(summarise(log.path))
    assert "&lt;a&gt;" in shown and "&lt;b&gt;" in shown and "<a>" not in shown
    assert "100%" in shown and "0.250" in shown and "1 asked, 1 clicked" in shown
    log.close()

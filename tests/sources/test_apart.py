"""ROOT is no folder of photos, and no source holds a ROOT."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from commands import Finished
from paths import PHOTOS

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.sources.apart import check_apart, may_match_below
from sif_batch.sources.listing import Listing, list_sources
from sif_batch.storage.root import check_new
from sif_batch.storage.store import Store

Run = Callable[..., Finished]
Photos = Callable[[int], Path]
RECORD = b'{"layout": 1, "sources": [], "encoder": "e", "index": {}}'


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where sources and ROOTs may be made."""
    if request.param == "folder":
        yield str(tmp_path)
        return
    yield "memory://test-apart"
    fs = fsspec.filesystem("memory")
    if fs.exists("/test-apart"):
        fs.rm("/test-apart", recursive=True)


def put(place: str, *names: str) -> None:
    for name in names:
        Store(place).replace(name, RECORD if name.endswith("root.json") else b"image")


def listed(url: str) -> tuple[list[str], list[str]]:
    """The paths that a source has, and what is said meanwhile."""
    said: list[str] = []
    listing: Listing = list_sources([Source(name="s", url=url)], say=said.append)
    return listing.entries["path"].to_pylist(), said


@pytest.mark.parametrize("command", ["run", "embed", "run --dry-run"])
def test_swapped_arguments_are_guessed_and_leave_nothing(
    sif_batch: Run, photos: Photos, tmp_path: Path, command: str
) -> None:
    source, root = photos(3), tmp_path / "root"
    before = sorted(source.rglob("*"))
    for _ in range(2):  # ROOT not there yet, and there
        done = sif_batch(*command.split(), root, source)
        assert done.code == 1 and f"{source} is not a ROOT and not empty" in done.err
        assert f"sif-batch run {source} {root}" in done.err.splitlines()[-1]
        assert sorted(source.rglob("*")) == before
        root.mkdir(exist_ok=True)
    assert sif_batch("run", source, root, "--no-gate").code == 0
    swapped = sif_batch("run", root, tmp_path / "new")
    assert swapped.code == 1 and f"the source {root} is a ROOT" in swapped.err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        ((), False),
        (("lease.json",), False),
        (("lease.json", "runs/1/events.jsonl", "encoders/e/encoder.json"), False),
        (("lease.json", "listings/1.parquet", "parts/e/1.parquet", "plans/p", "catalog/c", ".tmp-host-1-2"), False),
        ((".tmp-host-1-2",), False),
        (("a.jpg",), True),
        (("a/b.jpg",), True),
        ((".hidden",), True),
        (("lease.json", "a.jpg"), True),
        (("runs/1.jpg", "parts/2.jpg"), True),  # folders of photos may be called so
    ],
)
def test_a_new_root_holds_nothing_but_what_an_interrupted_run_leaves(
    place: str, names: tuple[str, ...], refused: bool
) -> None:
    put(f"{place}/root", *names)
    store = Store(f"{place}/root")
    if not refused:
        check_new(store, "")
        return
    with pytest.raises(SifBatchError, match="is not a ROOT and not empty: it holds") as raised:
        check_new(store, "remedy")
    assert raised.value.remedy == "remedy"


def test_a_new_root_may_be_the_top_of_a_new_disk_and_no_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    check_new(Store(str(tmp_path)), "")
    (tmp_path / "photo.jpg").symlink_to("nowhere")
    with pytest.raises(SifBatchError, match=r"holds photo\.jpg$"):
        check_new(Store(str(tmp_path)), "")


def test_a_source_that_is_a_root_is_refused(place: str) -> None:
    put(place, "photos/a.jpg", "photos/root.json")
    for url in (f"{place}/photos", f"{place}/photos/**/*.jpg"):
        with pytest.raises(SifBatchError, match="is a ROOT, a folder that sif-batch wrote"):
            check_apart(Store(f"{place}/root"), [Source(name="s", url=url)])
    Store(place).replace("photos/root.json", b'{"of": "somebody else"}')
    check_apart(Store(f"{place}/root"), [Source(name="s", url=f"{place}/photos")])


def test_a_root_below_a_source_is_left_out_with_a_word(place: str) -> None:
    put(place, "photos/a.jpg", "photos/b/c.jpg", "photos/index/root.json", "photos/index/releases/1/map.png")
    put(place, "photos/index-2/d.jpg")
    for url in (f"{place}/photos", f"{place}/photos/**"):
        paths, said = listed(url)
        assert paths == ["a.jpg", "b/c.jpg", "index-2/d.jpg"]
        assert len(said) == 1 and "index is a ROOT" in said[0]


def test_no_inventory_brings_a_root_in(place: str, tmp_path: Path) -> None:
    put(place, "photos/a.jpg", "photos/index/root.json", "photos/index/map.png")
    rows = "".join(f"{name},5,v\n" for name in ("a.jpg", "index/map.png", "index/root.json"))
    (tmp_path / "list.csv").write_text(f"key,size,version\n{rows}")
    said: list[str] = []
    source = Source(name="s", url=f"{place}/photos", inventory=str(tmp_path / "list.csv"))
    listing = list_sources([source], say=said.append)
    assert listing.entries["path"].to_pylist() == ["a.jpg"] and listing.ignored == {"s": 2} and len(said) == 1


def test_no_link_leads_to_a_root(tmp_path: Path) -> None:
    put(str(tmp_path), "in/a.jpg", "elsewhere/b.jpg", "elsewhere/root/root.json", "elsewhere/root/runs/1/map.png")
    put(str(tmp_path), "beside.jpg")
    (tmp_path / "in/up").symlink_to("..")
    (tmp_path / "in/top").symlink_to("/")
    (tmp_path / "in/other").symlink_to("../elsewhere")
    (tmp_path / "in/root").symlink_to("../elsewhere/root")
    paths, said = listed(str(tmp_path / "in"))
    assert paths == ["a.jpg", "other/b.jpg"]
    assert sorted(text.split(": ")[1].split()[0] for text in said) == ["other/root", "root"]
    (tmp_path / "through").symlink_to("in")
    assert listed(str(tmp_path / "through"))[0] == paths


def test_a_link_above_the_source_changes_nothing(sif_batch: Run, tmp_path: Path) -> None:
    shutil.copytree(PHOTOS / "pizza", tmp_path / "out/in")
    (tmp_path / "out/in/up").symlink_to("..")
    for outcome in ("published", "unchanged"):
        night = sif_batch("run", tmp_path / "out/in", tmp_path / "out/ROOT", "--no-gate", "--json").json
        assert (night["outcome"], night["listed"]) == (outcome, 10)


@pytest.mark.parametrize(
    ("glob", "folder", "may"),
    [
        ("", "index", True),
        ("*.tar", "index", False),
        ("*", "index", False),
        ("*", "a/index", False),
        ("*.tar", "", True),  # ROOT among the tars themselves
        ("**", "index", True),
        ("**/*.tar", "index", True),
        ("*/*.tar", "index", True),
        ("*/*.tar", "a/index", False),
        ("day-*/*.tar", "index", False),
        ("day-*/*.tar", "day-index", True),
        ("day-*/**", "day-1/a/index", True),
        ("day-*/**", "index", False),
    ],
)
def test_which_globs_may_match_below_a_folder(glob: str, folder: str, may: bool) -> None:
    assert may_match_below(glob, folder) is may


def test_a_root_may_lie_beside_the_tars_of_a_glob(sif_batch: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    photos = sorted((PHOTOS / "pizza").glob("*.jpg"))
    with tarfile.open(tmp_path / "data/1.tar", "w") as tar:
        for photo in photos:
            tar.add(photo, photo.name)
    for outcome in ("published", "unchanged"):
        night = sif_batch("run", tmp_path / "data/*.tar", tmp_path / "data/index", "--no-gate", "--json").json
        assert (night["outcome"], night["in_index"]) == (outcome, len(photos))
    assert "lies inside" in sif_batch("run", tmp_path / "data/**/*.tar", tmp_path / "data/index").err
    assert json.loads((tmp_path / "data/index/root.json").read_bytes())["sources"][0]["url"].endswith("data/*.tar")


def test_stores_of_other_kinds_are_never_inside_each_other() -> None:
    check_apart(Store("memory://bucket/root"), [Source(name="s", url="file:///bucket")])

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from commands import Finished
from paths import PHOTOS

from sif_batch.ledger.gc import kept_releases
from sif_batch.query.index import Index

Run = Callable[..., Finished]
Photos = Callable[[int], Path]


def entry(release: str, day: int) -> dict[str, str]:
    return {"release": release, "time": f"2026-11-{day:02d}T01:00:00Z"}


def test_the_newest_releases_and_those_that_were_current_lately_are_kept() -> None:
    history = [entry("a", 1), entry("b", 2), entry("c", 3), entry("b", 20)]

    def kept(keep: int, day: int, candidates: list[str] | None = None) -> set[str]:
        before = datetime(2026, 11, day, tzinfo=UTC)
        return kept_releases(history, ["a", "b", "c", "d"], candidates or [], keep, before)

    assert kept(1, 30) == {"b"}
    assert kept(2, 30) == {"b", "c"}
    assert kept(1, 10) == {"b", "c"}  # c was current until the 20th
    assert kept(1, 3) == {"b", "c"}
    assert kept(1, 2) == {"a", "b", "c"}
    assert kept(1, 30, ["d", "gone"]) == {"b", "d"}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != "lease.json"}


def test_garbage_is_listed_then_removed_and_nothing_that_is_needed(
    sif_batch: Run, photos: Photos, tmp_path: Path
) -> None:
    source, root = photos(12), tmp_path / "root"
    shard = ("--shard-images", 4)
    first = sif_batch("run", source, root, "--json", *shard).json["release"]
    plan = next((root / "plans").glob("*.parquet"))
    old_reader = Index.open(root)
    for victim in sorted(source.rglob("*.jpg"))[:4]:
        victim.unlink()  # the whole first part
    changed = sorted(source.rglob("*.jpg"))[0]
    shutil.copyfile(PHOTOS / "pizza/image_0003.jpg", changed)
    second = sif_batch("run", root, "--json", *shard).json["release"]
    (root / "plans/half.parquet").write_bytes(plan.read_bytes())

    young = sif_batch("gc", root, "--keep", 1, "--json").json
    assert young["garbage"] == [] and young["kept_releases"] == sorted([first, second])
    before = files(root)
    dry = sif_batch("gc", root, "--keep", 1, "--older-than", 0, "--json").json
    assert files(root) == before and not dry["deleted"] and dry["kept_releases"] == [second]
    assert f"releases/{first}" in {one["file"] for one in dry["garbage"]} and dry["bytes"] > 1e6
    assert "with --delete" in sif_batch("gc", root, "--keep", 1, "--older-than", 0).out
    # An unfinished plan still needs the first night's parts.
    assert not any(one["file"].startswith("parts/") for one in dry["garbage"])

    (root / "plans/half.parquet").unlink()
    done = sif_batch("gc", root, "--keep", 1, "--older-than", 0, "--delete", "--json").json
    gone = {one["file"] for one in done["garbage"]}
    assert sum(name.startswith("parts/") for name in gone) == 1 == sum(name.startswith("codes/") for name in gone)
    assert {name.partition("/")[0] for name in gone} >= {"releases", "parts", "codes", "listings", "plans"}
    assert not list(root.rglob(".tmp-*"))

    assert len(old_reader.search(key="photos/Leopards/image_0099.jpg", k=20)) == 11
    assert sif_batch("verify", root).code == 0
    again = sif_batch("run", root, "--json", *shard).json
    assert (again["outcome"], again["release"], again["embedded"]) == ("unchanged", second, 0)
    assert "no release before" in sif_batch("rollback", root).err
    shutil.copyfile(PHOTOS / "Leopards/image_0002.jpg", source / "Leopards/image_0002.jpg")
    more = sif_batch("run", root, "--json", *shard).json
    assert (more["outcome"], more["in_index"]) == ("published", 9)

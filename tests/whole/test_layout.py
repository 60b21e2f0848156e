"""A ROOT of layout 1 as an earlier day left it: whatever is changed since, it opens, and a night embeds nothing.

data/layout-1.tar.gz was made of four example photos in /srv/photos, their times set by `place_photos`, by two nights of
`sif-batch run /srv/photos ROOT --no-report --no-gate`, the first with three of them. Left out were lease.json, runs/,
catalog/ and every model.onnx, which the package has. A change that this test does not outlive needs a new layout
number, and a migration.
"""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from paths import PHOTOS

from sif_batch.config import LAYOUT, GateSettings
from sif_batch.encoders.networks import BUILT_IN
from sif_batch.errors import SifBatchError
from sif_batch.jobs.nightly.run import run
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.upkeep.releases import releases
from sif_batch.jobs.upkeep.sources import add_sources
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.machine.child import close_shared_children
from sif_batch.query.index import Index
from sif_batch.storage.root import read_record
from sif_batch.storage.store import Store

STORED = Path(__file__).parents[1] / "data" / f"layout-{LAYOUT}.tar.gz"
NAMES = ("Leopards/image_0002.jpg", "Leopards/image_0038.jpg", "Motorbikes/image_0052.jpg", "pizza/image_0003.jpg")


def place_photos(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """The photos of the stored ROOT, with the times that their versions were told by."""
    for second, name in enumerate(names, 1_700_000_000):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PHOTOS / name, folder / name)
        os.utime(folder / name, ns=(second * 10**9, second * 10**9))
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path / "root", filter="data")
    (record,) = (tmp_path / "root").glob("encoders/*/encoder.json")
    network = BUILT_IN[json.loads(record.read_text())["name"]] / "model.onnx"
    for folder in (record.parent, *(tmp_path / "root").glob("releases/*/encoder")):
        shutil.copyfile(network, folder / "model.onnx")
    return tmp_path / "root"


def test_a_root_of_this_layout_that_was_stored_long_ago_goes_on(stored: Path, tmp_path: Path) -> None:
    assert verify(str(stored)) == {"ok": True, "damaged": [], "files": verify(str(stored))["files"]}
    index = Index.open(stored)
    assert sorted(index.column("key").to_pylist()) == [f"photos/{name}" for name in NAMES]
    hits = index.search(image=PHOTOS / NAMES[2], k=1)
    assert hits[0].key == f"photos/{NAMES[2]}" and hits[0].similarity > 0.999
    assert [entry["n"] for entry in releases(str(stored))] == [1, 2]
    add_sources(str(stored), [str(place_photos(tmp_path / "photos"))], replace=True)
    asked = RunSettings(sources=(), root=str(stored), gate=GateSettings(enabled=False), report=False)
    night = run(asked, Reporter())
    close_shared_children()
    assert (night["outcome"], night["unchanged"], night["embedded"], night["listed"]) == ("published", 4, 0, 4)
    before, after = (
        json.loads((stored / "releases" / release / "release.json").read_text())
        for release in (index.release, night["release"])
    )
    rows = "segments/000/rows.npy"
    assert (before["quantizer"], before["files"][rows]) == (after["quantizer"], after["files"][rows])


@pytest.mark.parametrize(("layout", "says"), [(LAYOUT + 1, "upgrade sif-batch"), (LAYOUT - 1, "no version wrote that")])
def test_another_layout_is_refused(stored: Path, layout: int, says: str) -> None:
    record = json.loads((stored / "root.json").read_text())
    (stored / "root.json").write_text(json.dumps(record | {"layout": layout}))
    with pytest.raises(SifBatchError, match=f"has layout {layout}, this version knows {LAYOUT}") as raised:
        read_record(Store(str(stored)))
    assert says in raised.value.remedy and "nothing was changed" in raised.value.remedy

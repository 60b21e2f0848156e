"""int8: calibrated on the sources' own images, judged on others, refused where it costs too much."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import REPOSITORY

from sif_batch.config import Int8Settings
from sif_batch.encoders.installed import check_encoder
from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import EncoderSpec, in_float
from sif_batch.errors import SifBatchError
from sif_batch.gate.int8 import check, judge
from sif_batch.jobs.nightly.run import run
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.settings import RunSettings
from sif_batch.machine.arithmetic import computes_int8
from sif_batch.model_export.request import EncoderRequest
from sif_batch.query.index import Index
from sif_batch.storage.store import Store

PHOTOS = REPOSITORY / "examples" / "photos"
needs_vnni = pytest.mark.skipif(not computes_int8(), reason="the CPU has no VNNI: int8 is refused here")


def night(root: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"sources": (str(PHOTOS),), "root": str(root)} | changes
    return run(RunSettings(**settings, report=False), Reporter())


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("int8") / "root"
    return root, night(root, encoder=EncoderRequest(precision="int8"), int8=Int8Settings(min_kept=0.8))


def encoder_of(root: Path, name: str = "model.onnx") -> Encoder:
    (folder,) = [f for f in (root / "encoders").iterdir() if (f / "fp32.onnx").exists()]
    return Encoder(EncoderSpec.model_validate_json((folder / "encoder.json").read_bytes()), folder / name)


@needs_vnni
def test_a_run_lowers_the_encoder_once_and_records_it(lowered: tuple[Path, dict[str, Any]]) -> None:
    root, result = lowered
    assert result["outcome"] == "published" and result["embedded"] == 200
    assert result["int8"]["judged_by"] == 150 and result["int8"]["kept"] > 0.9 and result["int8"]["cosine"] > 0.99
    spec = encoder_of(root).spec
    assert spec.precision == "int8" and spec.calibration and spec.id != in_float(spec).id
    check_encoder(Store(str(root)), spec.id)
    again = night(root, sources=())
    assert (again["outcome"], again["unchanged"]) == ("unchanged", 200) and "int8" not in again


@needs_vnni
def test_int8_is_near_float_and_a_vector_has_the_same_bits_in_any_batch(lowered: tuple[Path, dict[str, Any]]) -> None:
    ours, exact = encoder_of(lowered[0]), encoder_of(lowered[0], "fp32.onnx")
    files = sorted(PHOTOS.rglob("*.jpg"))[:11]
    pixels = np.stack([ours.read_image(file.read_bytes())[0] for file in files])
    a, b = ours.embed(pixels), exact.embed(pixels)
    assert not np.array_equal(a, b)
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.98
    assert np.array_equal(a, np.concatenate([ours.embed(one[None]) for one in pixels]))
    assert np.array_equal(a, ours.embed(pixels[::-1])[::-1])


@needs_vnni
def test_the_release_carries_both_and_a_reader_without_vnni_uses_float(
    lowered: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = lowered
    photo = sorted(PHOTOS.rglob("*.jpg"))[3]
    key = f"photos/{photo.relative_to(PHOTOS).as_posix()}"
    assert Index.open(str(root)).search(image=photo, k=1)[0].key == key
    monkeypatch.setattr("sif_batch.query.index.computes_int8", lambda: False)
    index = Index.open(str(root))
    with pytest.warns(UserWarning, match="in float, not in int8"):
        assert index.encoder.spec.precision == "fp32"
    assert index.search(image=photo, k=1)[0].key == key


@needs_vnni
def test_the_way_back_to_float_needs_no_torch(lowered: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "root"
    shutil.copytree(lowered[0], root)
    back = night(root, sources=(), encoder=EncoderRequest(precision="fp32"))
    assert back["embedded"] == 200
    assert json.loads((root / "root.json").read_bytes())["encoder"] != encoder_of(root).spec.id


@needs_vnni
def test_what_costs_too_much_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        SifBatchError, match=r"int8 refused: it keeps 0\.\d+ of 10 nearest neighbours \(of 150 images\)"
    ):
        night(tmp_path / "root", encoder=EncoderRequest(precision="int8"), int8=Int8Settings(min_kept=1.0))
    assert not (tmp_path / "root" / "root.json").exists()


@needs_vnni
def test_labels_judge_where_there_are_some(tmp_path: Path) -> None:
    asked = EncoderRequest(precision="int8")
    result = night(tmp_path / "root", encoder=asked, int8=Int8Settings(labels="folder", max_map_loss=0.05))
    assert abs(result["int8"]["map"] - result["int8"]["map_int8"]) < 0.05


def test_a_machine_that_cannot_compute_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sif_batch.jobs.nightly.int8_stage.computes_int8", lambda: False)
    with pytest.raises(SifBatchError, match="int8 needs a CPU with VNNI"):
        night(tmp_path / "root", encoder=EncoderRequest(precision="int8"))


@needs_vnni
def test_a_worker_without_vnni_refuses_to_embed(
    lowered: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sif_batch.embedding.child_cache import load_encoder

    monkeypatch.setattr("sif_batch.embedding.child_cache.computes_int8", lambda: False)
    load_encoder.cache_clear()
    with pytest.raises(SifBatchError, match="is int8, which this machine's CPU"):
        load_encoder(str(lowered[0]), encoder_of(lowered[0]).spec.id, "cpu")


@needs_vnni
def test_too_few_images_are_refused(tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(PHOTOS.rglob("*.jpg"))[:20]:
        (few / f"{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(SifBatchError, match="on 64 images at least; 20 of the source can be used"):
        night(tmp_path / "root", sources=(str(few),), encoder=EncoderRequest(precision="int8"))


def test_the_judge_counts_by_hand() -> None:
    angles = np.deg2rad([0, 10, 30, 60])
    exact = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    figures = judge(exact, exact[[0, 2, 1, 3]], ["s/a/1", "s/a/2", "s/b/3", "s/b/4"], Int8Settings())
    assert figures["kept"] == 1 and figures["judged_by"] == 4  # with four images all three others are always kept
    noise = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    other = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    assert judge(noise, noise, [""] * 50, Int8Settings())["kept"] == 1
    refused = judge(noise, other, [""] * 50, Int8Settings())
    assert refused["kept"] < 0.4
    with pytest.raises(SifBatchError, match="int8 refused"):
        check(refused, Int8Settings())
    with pytest.raises(SifBatchError, match=r"mAP falls from 0\.5000 to 0\.4900"):
        check(refused | {"map": 0.5, "map_int8": 0.49}, Int8Settings())

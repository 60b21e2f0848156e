"""Where networks run, and the GPU's path tried on the CPU."""

import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import Finished
from hypothesis import given
from hypothesis import strategies as st
from paths import PHOTOS, REPOSITORY, SUPPORT

from sif_batch.embedding.threads import _embed_rows
from sif_batch.encoders.check_photos import MIN_COSINE
from sif_batch.encoders.image_input import ImageReader
from sif_batch.encoders.installed import built_in_spec
from sif_batch.encoders.networks import BUILT_IN, DEFAULT
from sif_batch.encoders.runtime import Encoder
from sif_batch.errors import SifBatchError
from sif_batch.machine import devices
from sif_batch.machine.child import Child, ChildDied
from sif_batch.machine.devices import CPU_THREADS, Lane, choose_devices, gpus, plan_lanes

Run = Callable[..., Finished]
needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in devices.NEEDS), reason="needs the torch extra"
)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    reader = ImageReader(built_in_spec(DEFAULT))
    return np.stack([reader.read_image(photo.read_bytes())[0] for photo in sorted(PHOTOS.rglob("*.jpg"))[:6]])


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, SUPPORT))))
    made = Child()
    yield made
    made.close()


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@given(workers=st.integers(1, 200), shards=st.integers(0, 50), on_gpu=st.integers(0, 8))
def test_lanes_share_the_threads(workers: int, shards: int, on_gpu: int) -> None:
    names = [f"cuda:{n}" for n in range(on_gpu)] or ["cpu"]
    lanes = plan_lanes(names, workers, shards)
    assert 1 <= len(lanes) <= max(1, shards)
    assert {lane.device for lane in lanes} == set(names[: len(lanes)])
    threads = [lane.threads for lane in lanes]
    assert max(threads) - min(threads) <= 1
    if not on_gpu:
        assert sum(threads) == workers
        assert max(threads) <= CPU_THREADS or len(lanes) == max(1, shards)
    else:
        assert sum(threads) >= workers + len(lanes)  # one more each waits for the GPU


def test_one_process_is_enough_for_few_cores() -> None:
    assert plan_lanes(["cpu"], 2, 100) == [Lane("cpu", 2)]
    assert plan_lanes(["cpu"], 16, 100) == [Lane("cpu", 8), Lane("cpu", 8)]
    assert plan_lanes(["cuda:0", "cuda:1"], 2, 100) == [Lane("cuda:0", 2), Lane("cuda:1", 2)]


@pytest.mark.parametrize(
    ("asked", "precision", "found", "missing", "expected"),
    [
        ("cpu", "fp32", ["A100"], False, (["cpu"], "cpu")),
        ("auto", "fp32", [], False, (["cpu"], "cpu (no GPU is seen)")),
        ("auto", "fp32", ["A100", "T4"], False, (["cuda:0", "cuda:1"], "cuda (A100, T4)")),
        ("auto", "fp32", ["A100"], True, (["cpu"], "cpu, not A100: torch is not installed")),
        ("auto", "int8", ["A100"], False, (["cpu"], "cpu, not A100: int8 encoders run on the CPU alone")),
        ("cuda", "fp32", ["A100"], False, (["cuda:0"], "cuda (A100)")),
        ("cuda", "fp32", [], False, "--device cuda: CUDA sees no GPU here"),
        ("cuda", "int8", ["A100"], False, "--device cuda: int8 encoders run on the CPU alone"),
        ("cuda", "fp32", ["A100"], True, "--device cuda: torch is not installed"),
    ],
)
def test_what_is_chosen(
    asked: Any, precision: str, found: list[str], missing: bool, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if missing else object())
    if isinstance(expected, str):
        with pytest.raises(SifBatchError) as caught:
            choose_devices(asked, precision)
        assert str(caught.value) == expected
        assert "--device cpu" in caught.value.remedy
    else:
        assert choose_devices(asked, precision) == expected


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_line_and_writes_nothing(sif_batch: Run, photos: Callable[[int], Path]) -> None:
    ended = sif_batch("run", photos(2), "root", "--device", "cuda")
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("sif-batch:")]
    assert "CUDA sees no GPU here; --device cpu" in line
    assert not (photos(2).parent / "root" / "root.json").exists()


@needs_torch
def test_a_run_through_torch_gives_the_same_vectors(sif_batch: Run, photos: Callable[[int], Path]) -> None:
    folder = photos(5)
    rows: dict[str, dict[str, np.ndarray]] = {}
    for device in ("cpu", "torch-cpu"):
        ended = sif_batch("run", folder, device, "--device", device, "--no-gate", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["embedding"]["device"] == {"cpu": "cpu", "torch-cpu": "torch on the cpu"}[device]
        (part,) = (folder.parent / device / "parts").rglob("*.parquet")
        table = pq.read_table(part)
        rows[device] = dict(zip(table["key"].to_pylist(), np.array(table["embedding"].to_pylist()), strict=True))
        fingerprint = json.loads(table.schema.metadata[b"fingerprint"])
        assert ("torch" in fingerprint) == (device == "torch-cpu")
    assert rows["cpu"].keys() == rows["torch-cpu"].keys()
    both = [np.stack([found[key] for key in sorted(found)]) for found in rows.values()]
    assert least_cosine(*both) >= MIN_COSINE


@needs_torch
def test_half_precision_is_close_and_named(child: Child, pixels: np.ndarray) -> None:
    expected, found, fingerprint = child.call("torch_work:vectors", pixels=pixels)
    assert least_cosine(expected, found) >= MIN_COSINE
    assert fingerprint["arithmetic"] == "float16"


@needs_torch
def test_memory_that_runs_out_halves_the_batch(child: Child, pixels: np.ndarray) -> None:
    whole, twice, sizes = child.call("torch_work:out_of_memory", pixels=pixels, most=2)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1, *[1] * 6]  # and stays halved
    assert least_cosine(np.concatenate([whole, whole]), twice) >= MIN_COSINE
    with pytest.raises(SifBatchError, match="does not suffice for one image"):
        child.call("torch_work:out_of_memory", pixels=pixels, most=0)


@needs_torch
def test_what_overflows_is_computed_in_float32(child: Child, pixels: np.ndarray) -> None:
    expected, *_ = child.call("torch_work:vectors", pixels=pixels)
    found = child.call("torch_work:overflow", pixels=pixels)
    assert np.isfinite(found).all()
    assert least_cosine(expected, found) >= MIN_COSINE


@needs_torch
@pytest.mark.parametrize(("noise", "chosen"), [(0.0, "torch.float16"), (1.0, "torch.float32")])
def test_arithmetic_that_is_not_exact_enough_is_not_used(
    child: Child, pixels: np.ndarray, noise: float, chosen: str
) -> None:
    assert child.call("torch_work:arithmetic", pixels=pixels, noise=noise) == chosen


@needs_torch
def test_a_lost_device_ends_the_process(child: Child, pixels: np.ndarray) -> None:
    with pytest.raises(ChildDied, match="illegal memory access"):
        child.call("torch_work:lost_device", pixels=pixels)


@needs_torch
def test_an_operator_that_is_not_known_is_named(child: Child, tmp_path: Path) -> None:
    with pytest.raises(SifBatchError, match=r"cannot run in torch: .*Mish") as caught:
        child.call("torch_work:unknown_operator", path=str(tmp_path / "model.onnx"))
    assert caught.value.remedy == "--device cpu"


@needs_torch
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_exported_networks_are_the_same_in_torch(child: Child, tmp_path: Path, name: str) -> None:
    assert child.call("torch_work:same_in_torch", name=name, folder=str(tmp_path)) < 1e-5


def test_two_processes_make_the_same_parts(sif_batch: Run, photos: Callable[[int], Path]) -> None:
    folder = photos(9)
    made = []
    for workers in (1, 9):
        ended = sif_batch("run", folder, f"root{workers}", "--workers", workers, "--shard-images", 3, "--json")
        assert ended.code == 0, ended.err
        assert ended.json["embedding"]["processes"] == (2 if workers == 9 else 1)
        parts = sorted((folder.parent / f"root{workers}" / "parts").rglob("*.parquet"))
        made.append({part.name: part.read_bytes() for part in parts})
    assert len(made[0]) == 3
    assert made[0] == made[1]


def test_of_a_batch_that_fails_only_the_image_to_blame_is_lost(
    pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(built_in_spec(DEFAULT), BUILT_IN[DEFAULT] / "model.onnx")
    expected = encoder.embed(pixels).astype(np.float16)
    honest = encoder.run

    def fails(batch: np.ndarray) -> np.ndarray:
        if any(np.array_equal(one, pixels[2]) for one in batch):
            raise RuntimeError("no kernel for it")
        return honest(batch)

    monkeypatch.setattr(encoder, "run", fails)
    rows: list[dict[str, Any]] = [{"embedding": None, "error_kind": None} for _ in pixels]
    _embed_rows(list(zip(rows, pixels, strict=True)), encoder, defaultdict(float))
    assert [row["error_kind"] for row in rows] == [None, None, "crashed", None, None, None]
    assert "no kernel for it" in rows[2]["error"]
    for number in (0, 1, 3, 4, 5):
        assert np.array_equal(rows[number]["embedding"], expected[number])


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="needs a GPU")
def test_a_run_on_the_gpu_gives_the_same_vectors(sif_batch: Run, photos: Callable[[int], Path]) -> None:
    for device in ("cpu", "cuda"):
        ended = sif_batch("run", photos(8), device, "--device", device, "--no-gate", "--json")
        assert ended.code == 0, ended.err
    both = []
    for device in ("cpu", "cuda"):
        (part,) = (photos(8).parent / device / "parts").rglob("*.parquet")
        both.append(np.array(pq.read_table(part)["embedding"].to_pylist()))
    assert least_cosine(*both) >= MIN_COSINE

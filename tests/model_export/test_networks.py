import functools
import http.server
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import Finished
from paths import PHOTOS, REPOSITORY, SUPPORT

from sif_batch.digests import digest
from sif_batch.encoders.installed import built_in_spec, install_encoder
from sif_batch.encoders.networks import BUILT_IN, DEFAULT, TORCHVISION
from sif_batch.encoders.runtime import Encoder
from sif_batch.errors import SifBatchError
from sif_batch.machine.child import Child
from sif_batch.model_export.choose import Chosen, choose_encoder, export
from sif_batch.model_export.request import EncoderRequest, weights_label
from sif_batch.storage.store import Store

pytest.importorskip("torchvision", reason="needs sif-batch[torch]")

Run = Callable[..., Finished]
SOME = sorted(PHOTOS.rglob("*.jpg"))[::40]
FAST = ["squeezenet1_1", "shufflenet_v2_x0_5"]
FAMILIES = [
    "alexnet", "vgg16", "googlenet", "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0",
    "convnext_tiny", "vit_b_16", "squeezenet1_1", "densenet121", "regnet_y_400mf", "swin_t",
    "swin_v2_t", "inception_v3", "mnasnet0_5", "shufflenet_v2_x0_5", "maxvit_t",
]  # fmt: skip
SQUEEZENET = 'mean = [103.939, 116.779, 123.68]\nstd = 1\norder = "bgr"\nrange = 255\n'


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    places = [SUPPORT, REPOSITORY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        made = Child()
        yield made
        made.close()


@pytest.fixture(scope="module")
def states(child: Child, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    child.call("network_work:save_states", folder=str(folder))
    return folder


def bring(folder: Path, **asked: object) -> tuple[Chosen, Encoder]:
    """The encoder that these options choose in an empty ROOT, and it opened."""
    store = Store(str(folder / "root"))
    chosen = choose_encoder(store, None, EncoderRequest(**asked))
    install_encoder(store, chosen.spec, chosen.model)
    return chosen, Encoder(chosen.spec, store.path(f"encoders/{chosen.spec.id}/model.onnx"))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def check_family(name: str, child: Child, folder: Path) -> None:
    chosen, encoder = bring(folder, encoder=name, random_weights=True)
    spec = chosen.spec
    pixels = np.stack([encoder.read_image(photo.read_bytes())[0] for photo in SOME])
    ours = encoder.embed(pixels)
    arguments = {"name": name, "pixels": pixels, "mean": list(spec.mean), "std": list(spec.std)}
    theirs = child.call("network_work:last_layer_input", **arguments, stall_s=600)
    assert ours.shape == theirs.shape == (len(SOME), TORCHVISION[name]) and spec.dimension == TORCHVISION[name]
    assert ours.dtype == np.float32 and np.isfinite(ours).all()
    assert cosines(ours, theirs).min() >= 0.9999
    centre = theirs.mean(0)  # untrained networks see all images alike: what differs must agree too
    assert cosines(ours - centre, theirs - centre).min() >= 0.999
    alone = np.concatenate([encoder.embed(image[None]) for image in pixels])
    assert np.array_equal(alone, ours)
    check_file(chosen.model or b"")


def check_file(data: bytes) -> None:
    model = onnx.load_from_string(data)
    assert not {"Dropout", "BatchNormalization"} & {n.op_type for n in model.graph.node if len(n.output) > 1}
    assert "Dropout" not in {n.op_type for n in model.graph.node}
    assert not model.metadata_props and not any(n.metadata_props or n.doc_string for n in model.graph.node)
    for weights in model.graph.initializer:  # millions of random bytes hold any three letters
        weights.ClearField("raw_data")
    data = model.SerializeToString()
    assert b"site-packages" not in data and b".py" not in data and str(Path.home()).encode() + b"/" not in data


@pytest.mark.parametrize("name", FAST)
def test_features_are_what_the_last_layer_sees(name: str, child: Child, tmp_path: Path) -> None:
    check_family(name, child, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_what_the_last_layer_sees_in_every_family(name: str, child: Child, tmp_path: Path) -> None:
    check_family(name, child, tmp_path)


@pytest.mark.slow
def test_the_table_names_every_network_and_its_dimension(child: Child) -> None:
    assert set(child.call("network_work:classification_names")) == set(TORCHVISION)
    assert child.call("network_work:dimensions", names=list(TORCHVISION)) == TORCHVISION


@pytest.mark.slow
def test_the_same_network_is_the_same_file(tmp_path: Path) -> None:
    """In two processes, each with its own child."""
    first, _ = bring(tmp_path / "a", encoder="squeezenet1_1", random_weights=True)
    second, _ = bring(tmp_path / "b", encoder="squeezenet1_1", random_weights=True)
    assert first.spec.id == second.spec.id and digest(first.model or b"") == digest(second.model or b"")


def test_a_root_that_holds_the_encoder_needs_no_torch(
    tmp_path: Path, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"encoder": "squeezenet1_1", "weights": str(states / "wrapped.pth")}
    chosen, _ = bring(tmp_path, **asked)
    store, spec = Store(str(tmp_path / "root")), chosen.spec
    assert spec.weights == "wrapped.pth" and len(spec.weights_sha256) == 64 and spec.resize_to == 256
    monkeypatch.setattr(Child, "call", lambda *a, **k: pytest.fail("a child was asked"))
    assert choose_encoder(store, spec.id, EncoderRequest()).spec == spec
    assert choose_encoder(store, spec.id, EncoderRequest(**asked)).spec == spec
    # what stands outside the network needs no export either
    other = choose_encoder(store, spec.id, EncoderRequest(fit="pad", views=("flip",)))
    assert other.spec.id != spec.id and other.model == chosen.model
    assert (other.spec.fit, other.spec.resize_to, other.spec.views) == ("pad", 224, ("flip",))
    default = choose_encoder(store, spec.id, EncoderRequest(encoder=DEFAULT))
    install_encoder(store, default.spec, default.model)
    assert default.spec == built_in_spec(DEFAULT)
    # ROOT keeps what it held
    assert choose_encoder(store, default.spec.id, EncoderRequest(**asked)).spec == spec
    with pytest.raises(SifBatchError, match="changes the network itself"):
        choose_encoder(store, spec.id, EncoderRequest(pooling="gem"))


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("missing.pth", "2 keys missing (features.0.weight, features.0.bias)"),
        ("unexpected.pth", "1 unexpected (layer9.weight)"),
        ("alexnet.pth", "does not fit SqueezeNet"),
        ("list.pth", "holds no state dict"),
        ("code.pth", "wants to run posix.system"),
        ("code_zip.pth", "wants to run posix.system"),
        ("text.pth", "no file of weights"),
        ("empty.pth", "no file of weights"),
        ("half.pth", "no file of weights"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(child: Child, states: Path, file: str, says: str) -> None:
    with pytest.raises(SifBatchError) as raised:
        child.call("network_work:load_squeezenet", path=str(states / file))
    assert says in str(raised.value) and "\n" not in str(raised.value) and raised.value.remedy
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"encoder": "resnet81"}, "unknown encoder 'resnet81'"),
        ({"encoder": "nowhere.onnx"}, "no such file"),
        ({"encoder": "resnet18", "weights": "gone.pth"}, "no such file"),
        ({"encoder": "resnet18", "weights": "gone.pth", "random_weights": True}, "contradict"),
        ({"encoder": DEFAULT, "random_weights": True}, "carries its weights"),
        ({"pooling": "gem"}, "is ready-made"),
        ({"encoder": "resnet18", "preprocess": "gone.toml"}, "No such file"),
        ({"encoder": "resnet18", "preprocess": "SPEC", "text": "size = 'large'"}, "size: "),
        ({"encoder": "resnet18", "preprocess": "SPEC", "text": "sise = 224"}, "sise: "),
        ({"encoder": "resnet18", "preprocess": "SPEC", "text": "size = "}, "neither TOML nor JSON"),
        ({"encoder": "resnet18", "preprocess": "SPEC", "text": "mean = 127"}, "does not belong to pixels in 0..1"),
        ({"encoder": "resnet18", "preprocess": "SPEC", "text": "std = 0"}, "not positive"),
        ({"preprocess": "SPEC", "text": "fit = 'pad'\nresize = 300"}, "does not fit size 224"),
    ],
)
def test_a_wrong_request_is_one_line_before_torch(
    tmp_path: Path, asked: dict[str, object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Child, "call", lambda *a, **k: pytest.fail("a child was asked"))
    if asked.get("preprocess") == "SPEC":
        (tmp_path / "spec.toml").write_text(str(asked["text"]))
        asked = {name: value for name, value in asked.items() if name != "text"} | {
            "preprocess": str(tmp_path / "spec.toml")
        }
    with pytest.raises(SifBatchError) as raised:
        choose_encoder(Store(str(tmp_path / "root")), None, EncoderRequest(**asked))
    assert says in str(raised.value) and "\n" not in str(raised.value) and raised.value.remedy


def test_a_missing_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what import finds where it is not installed
    for name in [name for name in sys.modules if name.startswith("sif_batch.model_export.")]:
        if hasattr(sys.modules[name], "torch"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sif_batch.model_export.from_torchvision", raising=False)
    with pytest.raises(SifBatchError, match="resnet18 needs torch") as raised:
        export(print, "torchvision", asked={"encoder": "resnet18"}, stated={}, folder="")
    assert "sif-batch[torch]" in raised.value.remedy


def test_weights_that_cannot_be_had_are_one_line(
    sif_batch: Run, tmp_path: Path, photos: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nothing listens there: no network, wherever this runs
    done = sif_batch("run", photos(3), tmp_path / "root", "--encoder", "resnet18", "--json")
    assert done.code == 1 and "Traceback" not in done.err
    for words in ("resnet18-", str(tmp_path / "cache/hub/checkpoints"), "--weights FILE_OR_URL", "--random-weights"):
        assert words in done.err.splitlines()[-1]
    assert done.json["outcome"] == "error" and not (tmp_path / "root").exists()

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    done = sif_batch("run", photos(3), tmp_path / "root", "--encoder", "resnet18")
    assert done.code == 1 and "--weights FILE_OR_URL" in done.err.splitlines()[-1] and "Traceback" not in done.err


def make_onnx(path: Path, shape: list[object], output: str = "vector", raw: bool = False) -> np.ndarray:
    """A convolution and a mean, as a user's file; returns the convolution's weights, (8, 3, 7, 7) float32."""
    weights = np.random.default_rng(0).normal(size=(8, 3, 7, 7)).astype(np.float32)
    kind = onnx.TensorProto.UINT8 if raw else onnx.TensorProto.FLOAT
    node = onnx.helper.make_node
    nodes = [node("Cast", ["x"], ["real"], to=onnx.TensorProto.FLOAT)]
    nodes += [node("Transpose", ["real"], ["planes"], perm=[0, 3, 1, 2] if raw else [0, 1, 2, 3])]
    nodes += [node("Conv", ["planes", "w"], ["map"], strides=[4, 4]), node("GlobalAveragePool", ["map"], ["mean"])]
    nodes += [node("Flatten", ["mean"], ["vector"])]
    graph = onnx.helper.make_graph(
        nodes,
        "users",
        [onnx.helper.make_tensor_value_info("x", kind, shape)],
        [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return weights


def pooled_by_numpy(pixels: np.ndarray, weights: np.ndarray, pooling: str) -> np.ndarray:
    """The same network: (n, s, s, 3) float64, as it sees them, to (n, 8)."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (7, 7), axis=(1, 2))[:, ::4, ::4]
    maps = np.einsum("nhwcij,ocij->nohw", windows, weights.astype(np.float64)).reshape(len(pixels), 8, -1)
    if pooling == "max":
        return maps.max(2)
    return np.cbrt((np.maximum(maps, 1e-6) ** 3).mean(2)) if pooling == "gem" else maps.mean(2)


@pytest.mark.parametrize(
    ("shape", "output", "spec", "pooling"),
    [
        (["n", 3, 64, 64], "vector", "mean = [0.4, 0.5, 0.6]\nstd = [0.2, 0.3, 0.25]", None),
        ([1, 3, 64, 64], "vector", SQUEEZENET, None),
        (["n", 3, None, None], "map", "range = 255\nsize = 64", "gem"),
        (["n", 3, 64, 64], "vector", 'range = 1\noutput = "map"', "max"),
        (["n", 64, 64, 3], "vector", None, None),
    ],
)
def test_a_users_own_onnx_sees_what_the_spec_says(
    tmp_path: Path, shape: list[object], output: str, spec: str | None, pooling: str | None
) -> None:
    path = tmp_path / "mine.onnx"
    weights = make_onnx(path, shape, output, raw=shape[3] == 3)
    (tmp_path / "spec.toml").write_text(spec or "")
    preprocess = str(tmp_path / "spec.toml") if spec else None
    chosen, encoder = bring(tmp_path, encoder=str(path), preprocess=preprocess, pooling=pooling)
    made = chosen.spec
    assert made.id.startswith("mine-") and made.weights_sha256 == digest(path.read_bytes())
    assert (made.dimension, made.input_size, made.batch) == (8, 64, 1 if shape[0] == 1 else None)
    pixels = np.stack([encoder.read_image(photo.read_bytes())[0] for photo in SOME])
    seen = pixels[..., ::-1] if made.order == "bgr" else pixels
    seen = (seen * (made.range / 255) - np.array(made.mean)) / np.array(made.std)
    expected = pooled_by_numpy(seen, weights, pooling or "avg")
    np.testing.assert_allclose(encoder.embed(pixels), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("shape", "spec", "says"),
    [
        (["n", 3, 64, 64], "", "nothing says which"),
        (["n", 1, 64, 64], "range = 1", "not images"),
        (["n", 3, None, None], "range = 1", "images of any size"),
        (["n", 3, 64, 64], "range = 1\nsize = 96", "not one side of a square"),
        (["n", 3, 64, 64], "range = 1\noutput = 'none'", "has no value 'none'"),
        (["n", 3, 64, 64], "range = 1\npooling = 'cls'", "--pooling cls"),
        (None, "range = 1", "no ONNX network"),
    ],
)
def test_an_unusable_onnx_is_one_line(
    child: Child, tmp_path: Path, shape: list[object] | None, spec: str, says: str
) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"no network")
    if shape:
        make_onnx(path, shape)
    (tmp_path / "spec.toml").write_text(spec)
    request = EncoderRequest(encoder=str(path), preprocess=str(tmp_path / "spec.toml"))
    with pytest.raises(SifBatchError) as raised:
        child.call(
            "sif_batch.model_export.choose:export",
            source="onnx",
            asked=request.model_dump(),
            stated=request.stated(),
            folder=str(tmp_path),
        )
    assert says in str(raised.value) and "\n" not in str(raised.value) and raised.value.remedy


TINY = "timm:test_vit"


def test_a_network_of_timm_is_what_timm_makes_of_it(child: Child, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs sif-batch[timm]")
    chosen, encoder = bring(tmp_path, encoder=TINY, random_weights=True)
    check_file(chosen.model or b"")
    spec = chosen.spec
    assert (spec.source, spec.weights, spec.name) == ("timm", "random, seed 0", TINY)
    pixels = np.stack([encoder.read_image(photo.read_bytes())[0] for photo in SOME])
    expected, config = child.call("network_work:timm_features", name="test_vit", pixels=pixels)
    assert (list(spec.mean), list(spec.std), spec.input_size) == (config["mean"], config["std"], config["size"])
    assert spec.dimension == expected.shape[1]
    assert cosines(encoder.embed(pixels), expected).min() > 0.9999


@pytest.mark.parametrize(
    ("encoder", "says"), [("timm:resnet81", "timm knows no network 'resnet81'"), ("timm:", "timm knows no network ''")]
)
def test_an_unknown_network_of_timm_is_one_line(child: Child, encoder: str, says: str, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs sif-batch[timm]")
    with pytest.raises(SifBatchError) as raised:
        bring(tmp_path, encoder=encoder, random_weights=True)
    assert says in str(raised.value) and "the nearest: " in raised.value.remedy


def test_a_missing_timm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "sif_batch.model_export.from_timm", raising=False)
    with pytest.raises(SifBatchError, match="timm:x needs timm") as raised:
        export(print, "timm", asked={"encoder": "timm:x"}, stated={}, folder="")
    assert "sif-batch[timm]" in raised.value.remedy


@pytest.fixture
def served(states: Path) -> Iterator[str]:
    """The URL of a server on this machine that gives the files of weights."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(states))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_weights_from_a_url_are_those_of_the_file(child: Child, states: Path, served: str) -> None:
    file = child.call("network_work:state_of", place=str(states / "wrapped.pth"))
    assert child.call("network_work:state_of", place=f"{served}/wrapped.pth?token=secret") == file
    assert weights_label("https://me:secret@host/a/w.pth?token=secret") == "https://host/a/w.pth"


def test_weights_that_a_url_does_not_give_are_one_line_without_secrets(child: Child, served: str) -> None:
    for url, says in (
        (f"{served}/gone.pth?token=secret", "File not found"),
        ("http://me:secret@127.0.0.1:9/w.pth", "cannot be read"),
        ("http://127.0.0.1:9/w.pth", "refused"),
    ):
        with pytest.raises(SifBatchError) as raised:
            child.call("network_work:load_squeezenet", path=url)
        assert says in str(raised.value) and "\n" not in str(raised.value) and raised.value.remedy
        assert "secret" not in str(raised.value)


def test_weights_are_fetched_once_into_the_cache_of_torch(
    child: Child, states: Path, served: str, tmp_path: Path
) -> None:
    """As from the hub, but for the host: the file's name holds the beginning of its digest."""
    data = (states / "wrapped.pth").read_bytes()
    name = f"squeezenet-{digest(data, 8)}.pth"
    (states / name).write_bytes(data)
    (states / "squeezenet-00000000.pth").write_bytes(data)
    fetched = [child.call("network_work:fetch", home=str(tmp_path), url=f"{served}/{name}")]
    assert (tmp_path / "hub/checkpoints" / name).read_bytes() == data
    fetched.append(child.call("network_work:fetch", home=str(tmp_path), url=f"http://127.0.0.1:9/{name}"))
    assert fetched == [digest(data)] * 2
    with pytest.raises(SifBatchError, match="its name says 00000000"):
        child.call("network_work:fetch", home=str(tmp_path), url=f"{served}/squeezenet-00000000.pth")


def test_safetensors_hold_the_same_weights(child: Child, states: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs sif-batch[timm]")
    whole, copy = str(states / "wrapped.pth"), str(tmp_path / "w.safetensors")
    child.call("network_work:as_safetensors", source=whole, target=copy)
    assert child.call("network_work:state_of", place=copy) == child.call("network_work:state_of", place=whole)


@pytest.mark.parametrize("pooling", ["cls", "avg", "max"])
def test_tokens_of_an_own_onnx_are_pooled(tmp_path: Path, pooling: str) -> None:
    """The map's pixels stand for tokens, (n, t, 8)."""
    path = tmp_path / "tokens.onnx"
    weights = make_onnx(path, ["n", 3, 64, 64])
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["map", "rows"], ["flat"]))
    model.graph.node.append(onnx.helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 8, -1], np.int64), "rows"))
    onnx.save(model, path)
    (tmp_path / "spec.toml").write_text('range = 1\noutput = "tokens"')
    asked = {"encoder": str(path), "preprocess": str(tmp_path / "spec.toml"), "pooling": pooling}
    _, encoder = bring(tmp_path, **asked)
    pixels = np.stack([encoder.read_image(photo.read_bytes())[0] for photo in SOME])
    windows = np.lib.stride_tricks.sliding_window_view(pixels / 255, (7, 7), axis=(1, 2))[:, ::4, ::4]
    tokens = np.einsum("nhwcij,ocij->nohw", windows, weights.astype(np.float64)).reshape(len(pixels), 8, -1)
    expected = {"cls": tokens[..., 0], "avg": tokens.mean(2), "max": tokens.max(2)}[pooling]
    np.testing.assert_allclose(encoder.embed(pixels), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_views_are_averaged() -> None:
    spec = built_in_spec(DEFAULT)
    model = BUILT_IN[DEFAULT] / "model.onnx"
    one, many = Encoder(spec, model), Encoder(spec.model_copy(update={"views": ("flip", "scales")}), model)
    plain = np.stack([one.read_image(photo.read_bytes())[0] for photo in SOME])
    views = np.stack([many.read_image(photo.read_bytes())[0] for photo in SOME])
    assert views.shape == (len(SOME), 6, 224, 224, 3) and views.dtype == np.uint8
    assert np.array_equal(views[:, 0], plain) and np.array_equal(views[:, 3], plain[:, :, ::-1])
    expected = np.mean([one.embed(views[:, view]) for view in range(6)], axis=0)
    np.testing.assert_allclose(many.embed(views), expected, rtol=1e-5, atol=1e-6)
    assert cosines(many.embed(views), one.embed(plain)).min() > 0.8


def test_encoders_are_listed(sif_batch: Run, tmp_path: Path, photos: Callable[[int], Path]) -> None:
    rows = {row["name"]: row for row in sif_batch("encoders", "--json").json["encoders"]}
    assert set(TORCHVISION) | {DEFAULT} == set(rows)
    keys = {"name", "dimension", "input_size", "source", "licence", "available", "where"}
    assert all(set(row) == keys for row in rows.values())
    assert rows[DEFAULT]["available"] and rows[DEFAULT]["licence"] == "Apache-2.0"
    assert (rows["vit_h_14"]["dimension"], rows["vit_h_14"]["input_size"]) == (1280, 518)
    shown = sif_batch("encoders").out
    assert "efficientnet_b0" in shown and "Apache-2.0" in shown


def test_another_encoder_says_what_it_costs(
    sif_batch: Run, tmp_path: Path, photos: Callable[[int], Path], states: Path
) -> None:
    source = photos(12)
    assert sif_batch("run", source, tmp_path / "root").code == 0
    (tmp_path / "spec.toml").write_text(SQUEEZENET)
    asked = ("--encoder", "squeezenet1_1", "--weights", states / "wrapped.pth", "--preprocess", "spec.toml")
    done = sif_batch("run", tmp_path / "root", *asked, "--views", "flip", "--pooling", "gem", "--json")
    assert done.code == 0, done.err
    assert "12 of 12 images will be embedded again" in done.err and done.json["embedded"] == 12
    again = sif_batch("run", tmp_path / "root", "--json")
    assert again.json["outcome"] == "unchanged"
    release = tmp_path / "root/releases" / done.json["release"] / "encoder/encoder.json"
    spec = json.loads(release.read_bytes())
    assert (spec["order"], spec["range"], spec["views"], spec["pooling"]) == ("bgr", 255, ["flip"], "gem")
    photo = sorted(source.rglob("*.jpg"))[0]
    hit = sif_batch("search", tmp_path / "root", photo, "--json").json["queries"][0]["hits"][0]
    assert hit["similarity"] > 0.999 and hit["key"].endswith(photo.name)


@pytest.mark.slow
def test_real_squeezenet_retrieves(sif_batch: Run, tmp_path: Path, test_data: Callable[[str], Path]) -> None:
    photos = test_data("caltech101-mini")
    (tmp_path / "spec.toml").write_text(SQUEEZENET)
    weights = test_data("weights") / "squeezenet1_1_imagenet_notop.pth"
    found = {}
    for root, options in (
        ("real", ("--weights", weights, "--preprocess", "spec.toml")),
        ("random", ("--random-weights",)),
    ):
        done = sif_batch("run", photos, root, "--encoder", "squeezenet1_1", *options, "--no-gate")
        assert done.code == 0, done.err
        found[root] = sif_batch("evaluate", root, "--labels", "folder", "--json").json["map"]
    assert found["real"] >= 0.38 and found["random"] < found["real"] / 2

"""What test_devices.py has a child process do: torch and faiss may clash in one process."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sif_batch.encoders.installed import built_in_spec
from sif_batch.encoders.networks import BUILT_IN, DEFAULT
from sif_batch.encoders.runtime import Encoder

Report = Callable[[Any], None]


def network() -> Any:
    """The default encoder's network as the GPU would run it."""
    from sif_batch.encoders.torch_runtime import TorchNetwork

    spec = built_in_spec(DEFAULT)
    return TorchNetwork(spec, str(BUILT_IN[DEFAULT] / "model.onnx"), "torch-cpu")


def vectors(report: Report, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """By ONNX Runtime, by torch, and what torch says of itself."""
    spec, model = built_in_spec(DEFAULT), BUILT_IN[DEFAULT] / "model.onnx"
    on_torch = Encoder(spec, model, "torch-cpu")
    return Encoder(spec, model).embed(pixels), on_torch.embed(pixels), on_torch.fingerprint


def out_of_memory(report: Report, pixels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The vectors with and without a device that takes `most` images, and the batches that it was given."""
    import torch

    made = network()
    whole = made(pixels)
    inner, sizes = made._network, []

    def small(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(batch)

    made._network = small
    return whole, np.concatenate([made(pixels), made(pixels)]), sizes


def overflow(report: Report, pixels: np.ndarray) -> np.ndarray:
    """The vectors of a network whose half precision overflows."""
    import torch

    made = network()
    inner = made._network

    def overflowing(batch: torch.Tensor) -> torch.Tensor:
        found = inner(batch)
        return found * torch.inf if torch.is_autocast_enabled("cpu") else found

    made._network = overflowing
    return made(pixels)


def arithmetic(report: Report, pixels: np.ndarray, noise: float) -> str:
    """What is chosen for a network that half precision disturbs by so much."""
    import torch

    made = network()
    inner = made._network

    def disturbed(batch: torch.Tensor) -> torch.Tensor:
        found = inner(batch).float()
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16
        return found + noise * torch.linspace(-1, 1, found.shape[1]) if half else found

    made._network = disturbed
    return str(made._choose(pixels))


def lost_device(report: Report, pixels: np.ndarray) -> None:
    made = network()

    def broken(batch: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    made._network = broken
    made(pixels)


def unknown_operator(report: Report, path: str) -> None:
    import onnx
    from onnx import TensorProto, helper

    from sif_batch.encoders.onnx_to_torch import to_torch

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Mish", ["image"], ["embedding"])], "g", [image], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    to_torch(path)


def same_in_torch(report: Report, name: str, folder: str) -> float:
    """The largest difference between ONNX Runtime and torch, of an exported network with random weights."""
    import torch

    from sif_batch.encoders.onnx_to_torch import to_torch
    from sif_batch.model_export.from_torchvision import export_torchvision

    asked = {"encoder": name, "weights": None, "random_weights": True, "views": None}
    spec = export_torchvision(report, asked, {}, folder)
    size = (3, spec.input_size, spec.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    expected = Encoder(spec, f"{folder}/model.onnx").run(pixels)
    with torch.inference_mode():
        found = to_torch(f"{folder}/model.onnx")(torch.from_numpy(pixels)).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())

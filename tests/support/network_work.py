"""What test_networks.py has a child process do: torch and faiss may clash in one process."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
Report = Callable[[Any], None]


def last_layer_input(report: Report, name: str, pixels: np.ndarray, mean: list, std: list) -> np.ndarray:
    """What the last layer of torchvision's own network sees: (n, s, s, 3) uint8 to (n, d).

    By a hook on the unchanged network, without any of our rules: the last linear layer, or the last convolution.
    """
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(SEED)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **options).eval()
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d) and _classes(m) == 1000]
    seen: list[torch.Tensor] = []
    layers[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        network((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    found = seen[0]
    return (found.mean((2, 3)) if found.ndim == 4 else found).numpy()


def dimensions(report: Report, names: list[str]) -> dict[str, int]:
    """The inputs of the last layer of each network, built without memory for its weights."""
    import torch
    import torchvision
    from torch import nn

    found = {}
    for name in names:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        try:
            with torch.device("meta"):
                network = torchvision.models.get_model(name, weights=None, **options)
        except (NotImplementedError, RuntimeError):  # its builder computes with tensors
            network = torchvision.models.get_model(name, weights=None, **options)
        last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d) and _classes(m) == 1000][-1]
        found[name] = last.in_features if isinstance(last, nn.Linear) else last.in_channels
        report(name)
    return found


def classification_names(report: Report) -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def save_states(report: Report, folder: str) -> None:
    """Files of weights that are wrong, and one that is right but wrapped as training scripts do."""
    import torch
    import torchvision

    torch.manual_seed(1)
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    place = Path(folder)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, place / "wrapped.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("features.0.")}, place / "missing.pth")
    torch.save(state | {"layer9.weight": state["classifier.1.bias"]}, place / "unexpected.pth")
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), place / "alexnet.pth")
    torch.save([1, 2], place / "list.pth")
    (place / "code.pth").write_bytes(pickle.dumps(_Evil()))
    torch.save(_Evil(), place / "code_zip.pth")
    (place / "text.pth").write_text("no weights")
    (place / "empty.pth").write_bytes(b"")
    half = (place / "wrapped.pth").read_bytes()
    (place / "half.pth").write_bytes(half[: len(half) // 2])


def load_squeezenet(report: Report, path: str) -> None:
    """Load a file of weights as --weights does."""
    import torchvision

    from sif_batch.model_export.features import find_features
    from sif_batch.model_export.weights import fill, given_weights, parse_state

    network = torchvision.models.squeezenet1_1(weights=None)
    fill(network, find_features(network).trunk, parse_state(given_weights(path), path), path)


def timm_features(report: Report, name: str, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """What timm's own network gives without its classifier, and how timm prepares images for it."""
    import timm
    import torch

    torch.manual_seed(SEED)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        found = network((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    return found, {"mean": list(config["mean"]), "std": list(config["std"]), "size": config["input_size"][-1]}


def fetch(report: Report, home: str, url: str) -> str:
    """The sha256 of weights fetched as from torch's hub, with its cache below `home`."""
    from sif_batch.digests import digest
    from sif_batch.model_export.weights import cached_weights

    os.environ["TORCH_HOME"] = home
    return digest(cached_weights("squeezenet weights", url))


def state_of(report: Report, place: str) -> str:
    """The digest of the state dict that --weights gives."""
    from sif_batch.model_export.weights import given_weights, parse_state, state_digest

    return state_digest(parse_state(given_weights(place), place))


def as_safetensors(report: Report, source: str, target: str) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(torch.load(source, weights_only=True)["state_dict"], target)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def _classes(layer: Any) -> int:
    return getattr(layer, "out_features", None) or getattr(layer, "out_channels", 0)

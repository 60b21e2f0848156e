"""What torchvision says of its own weights: transforms, licence, and whether they are here. Runs in a child process."""

from collections.abc import Callable
from typing import Any

import torchvision

from sif_batch.encoders.networks import TORCHVISION
from sif_batch.model_export.weights import cache_folder

UNSTATED = "not stated (torchvision: BSD-3-Clause)"
# Trained on these; torchvision's weights for them rescale the pixels inside the network.
CENTRED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "order": "rgb", "range": 1}
CENTRED_NETWORKS = ("googlenet", "inception_v3")


def own_weights(name: str) -> Any:
    """torchvision's default weights of a network."""
    return torchvision.models.get_model_weights(name).DEFAULT


def licence_of(weights: Any) -> str:
    return weights.meta.get("license") or UNSTATED


def preprocessing_of(name: str, weights: Any) -> dict[str, Any]:
    """The transforms that belong to a network's weights, as fields of EncoderSpec."""
    transforms = weights.transforms()
    if name in CENTRED_NETWORKS:
        normalisation: dict[str, Any] = CENTRED
    else:
        normalisation = {"mean": tuple(transforms.mean), "std": tuple(transforms.std), "order": "rgb", "range": 1}
    return normalisation | {
        "input_size": transforms.crop_size[0],
        "fit": "crop",
        "resize_to": transforms.resize_size[0],
        "resample": transforms.interpolation.value,
    }


def describe(report: Callable[[Any], None]) -> dict[str, dict[str, Any]]:
    """By name: input_size, source, licence, available, where. Builds no network."""
    found = {}
    for name in set(TORCHVISION) & set(torchvision.models.list_models(module=torchvision.models)):
        weights = own_weights(name)
        path = cache_folder() / weights.url.rsplit("/", 1)[-1]
        here = path.is_file()
        found[name] = {
            "input_size": weights.transforms().crop_size[0],
            "source": f"torchvision: {weights.name}",
            "licence": licence_of(weights),
            "available": here,
            "where": str(path) if here else "to fetch",
        }
    return found

"""A network of torchvision, to ONNX. Runs in a child process: torch and faiss in one process can clash over OpenMP."""

from typing import Any

import torch
import torchvision

from sif_batch.digests import digest
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.model_export.features import find_features
from sif_batch.model_export.request import shown, weights_label
from sif_batch.model_export.stated_preprocessing import geometry
from sif_batch.model_export.torch_export import SEED, Report, finish, wrap
from sif_batch.model_export.torchvision_weights import UNSTATED, licence_of, own_weights, preprocessing_of
from sif_batch.model_export.weights import cached_weights, fill, given_weights, parse_state, state_digest

PLAIN_BUILD = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def export_torchvision(report: Report, asked: dict[str, Any], stated: dict[str, Any], folder: str) -> EncoderSpec:
    """Write folder/model.onnx of a torchvision network and return its specification.

    asked: encoder, weights, random_weights, views; stated: fields of Preprocess that were given.
    """
    name = asked["encoder"]
    own = own_weights(name)
    known = preprocessing_of(name, own)
    torch.manual_seed(SEED)
    options: dict[str, Any] = PLAIN_BUILD.get(name, {})
    size = geometry(stated, known)["input_size"]
    if name.startswith("vit_"):
        options = {"image_size": size}
    network = torchvision.models.get_model(name, weights=None, **options).eval()
    features = find_features(network)
    pooling = stated.get("pooling") or features.default
    fields = known | {"name": name, "source": "torchvision", "pooling": pooling, "licence": UNSTATED}
    if asked["random_weights"]:
        fields |= {"weights": f"random, seed {SEED}", "weights_sha256": state_digest(network.state_dict())}
        fields["licence"] = "none needed"
        label = ""
    elif asked["weights"]:
        data, label = given_weights(asked["weights"]), shown(asked["weights"])
        fields |= {"weights": weights_label(label), "licence": "unknown (given by --weights)"}
    else:
        label = f"the weights {own.name} of {name}"
        data = cached_weights(label, own.url)
        fields |= {"weights": f"torchvision {own.name}", "licence": licence_of(own)}
    normalisation = stated.get("normalisation") or {k: known[k] for k in ("mean", "std", "order", "range")}
    wrapped = wrap(features, pooling, normalisation)
    if not asked["random_weights"]:
        fields["weights_sha256"] = digest(data)
        fill(network, wrapped, parse_state(data, label), label)
    return finish(report, wrapped, fields, stated, asked["views"], folder)

"""From torch to ONNX, once. Runs in a child process: torch and faiss in one process can clash over OpenMP."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from sif_batch.digests import digest
from sif_batch.encoders.check_photos import check_pixels, compare
from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import EncoderSpec, View
from sif_batch.errors import SifBatchError
from sif_batch.model_export.features import FeatureNetwork, find_features
from sif_batch.model_export.plain_onnx import write_plain
from sif_batch.model_export.request import shown, weights_label
from sif_batch.model_export.stated_preprocessing import geometry
from sif_batch.model_export.torchvision_weights import UNSTATED, licence_of, own_weights, preprocessing_of
from sif_batch.model_export.weights import cached_weights, fill, given_weights, parse_state, state_digest

OPSET = 18
SEED = 0
PLAIN_BUILD = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
Report = Callable[[Any], None]


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


def wrap(features: Any, pooling: str, normalisation: dict[str, Any]) -> FeatureNetwork:
    """The features with normalisation and pooling around them; mean and std brought to pixels in 0..255."""
    unit = 255 / normalisation["range"]
    mean, std = (torch.tensor(normalisation[k], dtype=torch.float64) * unit for k in ("mean", "std"))
    return FeatureNetwork(features, pooling, mean, std, normalisation["order"] == "bgr").eval()


def finish(
    report: Report,
    network: nn.Module,
    fields: dict[str, Any],
    stated: dict[str, Any],
    views: tuple[View, ...] | None,
    folder: str,
) -> EncoderSpec:
    """Export, make plain, check against torch on real photos."""
    fields = fields | geometry(stated, fields) | stated.get("normalisation", {})
    if stated.get("licence"):
        fields["licence"] = stated["licence"]
    draft = EncoderSpec(**fields, views=views or (), dimension=1, opset=OPSET, precision="fp32")
    pixels = torch.from_numpy(check_pixels(draft))
    report("exporting")
    try:
        with torch.inference_mode():
            expected = network(pixels).numpy()
    except (RuntimeError, AssertionError, ValueError) as error:
        raise SifBatchError(
            f"{draft.name} does not take images of {draft.input_size} pixels ({str(error).splitlines()[0][:160]})",
            remedy="give the size that it was made for",
        ) from error
    path = Path(folder) / "model.onnx"
    write_plain(to_onnx(network, pixels[:2]), path)
    if expected.ndim != 2:
        raise SifBatchError(f"{draft.name} gives an output of shape {expected.shape}, not (n, dimension)")
    spec = draft.model_copy(update={"dimension": expected.shape[1]})
    cosine = compare(Encoder(spec, path).run(pixels.numpy()), expected)
    report(f"checked against torch: least cosine {cosine:.7f}")
    return spec


def to_onnx(network: nn.Module, pixels: torch.Tensor) -> Any:
    """The network as an ONNX model of any batch size. pixels: (2, s, s, 3) uint8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            copy.deepcopy(network),
            (pixels,),
            dynamo=True,
            input_names=["image"],
            output_names=["embedding"],
            opset_version=OPSET,
            dynamic_shapes={"image": {0: torch.export.Dim("n")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only without dynamo
    return program.model_proto

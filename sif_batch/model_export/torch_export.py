"""What every export from torch shares: pooling around the network, its ONNX file, and the comparison of both."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sif_batch.encoders.check_photos import check_pixels, compare
from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import EncoderSpec, View
from sif_batch.errors import SifBatchError
from sif_batch.model_export.features import FeatureNetwork
from sif_batch.model_export.plain_onnx import write_plain
from sif_batch.model_export.stated_preprocessing import geometry

OPSET = 18
SEED = 0
Report = Callable[[Any], None]


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

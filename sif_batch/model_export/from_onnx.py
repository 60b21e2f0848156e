"""A user's own ONNX network, with normalisation before it and pooling behind it. Runs in a child process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from sif_batch.digests import digest
from sif_batch.encoders.check_photos import check_pixels
from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError
from sif_batch.model_export.onnx_graph import first_line, guarded, put_normalisation, put_pooling, quiet
from sif_batch.model_export.plain_onnx import write_plain
from sif_batch.model_export.stated_preprocessing import NORMALISATION, fit_to, geometry

PIXEL_TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}
PREFIX = "net/"
SAY_HOW = "say in --preprocess how its pixels are scaled: mean, std, order, range (and size)"


def wrap_onnx(report: Callable[[Any], None], asked: dict[str, Any], stated: dict[str, Any], folder: str) -> EncoderSpec:
    """Write folder/model.onnx around the user's file and return its specification."""
    path = Path(asked["encoder"]).expanduser()
    data = path.read_bytes()
    model = load(path, data)
    pixels = find_input(model, path)
    channels_last, size = layout_of(pixels, path, stated.get("size"))
    raw = pixels.type.tensor_type.elem_type == TensorProto.UINT8
    normalisation = stated.get("normalisation") or ({**NORMALISATION, "range": 255} if raw else None)
    if normalisation is None:
        raise SifBatchError(f"{path} takes pixels as real numbers, and nothing says which", remedy=SAY_HOW)
    if raw and (set(normalisation["mean"]), set(normalisation["std"])) != ({0.0}, {1.0}):
        raise SifBatchError(f"{path} takes bytes, which no mean or std can be applied to", remedy="leave them out")
    fixed = fix_batch(pixels)
    output = choose_output(model, path, stated.get("output"))
    known = {"input_size": size, "fit": "crop", "resize_to": fit_to("crop", size), "resample": "bilinear"}
    draft = EncoderSpec(
        name=path.stem,
        source="onnx",
        weights=path.name,
        weights_sha256=digest(data),
        licence=stated.get("licence", "unknown (your own file)"),
        dimension=1,
        **normalisation,
        **geometry({k: v for k, v in stated.items() if k != "size"}, known),
        pooling=stated.get("pooling", "own"),
        output=stated.get("output"),
        views=asked["views"] or (),
        opset=max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1),
        precision="fp32",
    )
    model = onnx.compose.add_prefix(model, PREFIX)
    put_normalisation(model, PREFIX + pixels.name, channels_last, draft)
    target = Path(folder) / "model.onnx"
    put_pooling(model, PREFIX + output, path, draft)
    write_plain(model, target)
    report("checking")
    return try_out(draft, target, path, fixed)


def load(path: Path, data: bytes) -> onnx.ModelProto:
    """The file as a model that onnxruntime takes. Raises SifBatchError."""
    try:
        model = onnx.load_from_string(data)
        if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
            raise SifBatchError(f"{path} keeps its weights in other files", remedy="save it as one file")
        ort.InferenceSession(data, quiet(), providers=["CPUExecutionProvider"])
    except SifBatchError:
        raise
    except Exception as error:  # protobuf's, onnx's and onnxruntime's errors have no common base
        raise SifBatchError(
            f"{path} is no ONNX network that can be loaded ({first_line(error)})", remedy="export it again"
        ) from error
    return model


def find_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """The network's one input."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs) or "none"
        raise SifBatchError(
            f"{path} has {len(inputs)} inputs ({names}), not one", remedy="export the image tower alone"
        )
    if inputs[0].type.tensor_type.elem_type not in PIXEL_TYPES:
        raise SifBatchError(f"{path}: its input {inputs[0].name} is neither float nor uint8", remedy="export it so")
    return inputs[0]


def layout_of(pixels: onnx.ValueInfoProto, path: Path, size: int | None) -> tuple[bool, int]:
    """Whether channels come last, and the side of the square that the network takes."""
    dims = [d.dim_value if d.HasField("dim_value") else None for d in pixels.type.tensor_type.shape.dim]
    shape = [d or "?" for d in dims]
    if len(dims) != 4 or 3 not in (dims[1], dims[3]):
        raise SifBatchError(f"{path} takes {shape}, not images (n, 3, s, s) or (n, s, s, 3)", remedy="export it so")
    channels_last = dims[1] != 3
    sides = {d for d in (dims[1:3] if channels_last else dims[2:4]) if d} | ({size} if size else set())
    if not sides:
        raise SifBatchError(f"{path} takes images of any size", remedy="say `size` in --preprocess")
    if len(sides) > 1:
        raise SifBatchError(f"{path} takes {shape}; {sorted(sides)} is not one side of a square", remedy="see `size`")
    return channels_last, sides.pop()


def fix_batch(pixels: onnx.ValueInfoProto) -> int | None:
    """The batch size that the file was exported for; None: any."""
    batch = pixels.type.tensor_type.shape.dim[0]
    return batch.dim_value if batch.HasField("dim_value") and batch.dim_value else None


def choose_output(model: onnx.ModelProto, path: Path, wanted: str | None) -> str:
    """The value taken as output: the only one, or the one named (any inner value too)."""
    outputs = [o.name for o in model.graph.output]
    if wanted is None:
        if len(outputs) != 1:
            raise SifBatchError(f"{path} has {len(outputs)} outputs", remedy=f"name one as `output`: {outputs[:6]}")
        return outputs[0]
    if wanted not in outputs and not any(wanted in node.output for node in model.graph.node):
        raise SifBatchError(f"{path} has no value {wanted!r}", remedy=f"its outputs: {', '.join(outputs[:6])}")
    return wanted


def try_out(draft: EncoderSpec, target: Path, path: Path, fixed: int | None) -> EncoderSpec:
    """The specification with its dimension; with a batch of one where more do not work or give other bits."""
    if fixed not in (None, 1):
        raise SifBatchError(f"{path} takes exactly {fixed} images at once", remedy="export it for one, or any number")
    pixels = check_pixels(draft)
    spec = draft.model_copy(update={"batch": 1})
    alone = guarded(lambda: Encoder(spec, target).run(pixels), path)
    if alone.ndim != 2 or len(alone) != len(pixels) or not np.isfinite(alone).all():
        raise SifBatchError(f"{path} gives {list(alone.shape)} for {len(pixels)} photos, or no finite numbers")
    spec = spec.model_copy(update={"dimension": alone.shape[1]})
    if fixed is None:
        free = spec.model_copy(update={"batch": None})
        if np.array_equal(guarded(lambda: Encoder(free, target).run(pixels), path), alone):
            return free
    return spec

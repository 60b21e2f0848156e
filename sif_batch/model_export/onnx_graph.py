"""Nodes before and behind a user's own ONNX network: normalisation and pooling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError


def put_normalisation(model: onnx.ModelProto, inner: str, channels_last: bool, spec: EncoderSpec) -> None:
    """`image` (n, s, s, 3) uint8 RGB in place of the network's own input."""
    graph = model.graph
    (value,) = [i for i in graph.input if i.name == inner]
    kind = value.type.tensor_type.elem_type
    graph.input.remove(value)
    size = spec.input_size
    graph.input.insert(0, helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3]))
    nodes: list[onnx.NodeProto] = []
    at = "image"

    def add(op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"sif/{op.lower()}{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(name: str, array: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(array, f"sif/{name}"))
        return f"sif/{name}"

    if spec.order == "bgr":
        at = add("Gather", [at, constant("bgr", np.array([2, 1, 0], np.int64))], axis=3)
    if kind != TensorProto.UINT8:
        unit = 255 / spec.range
        mean, scale = np.array(spec.mean) * unit, 1 / (np.array(spec.std) * unit)
        at = add("Cast", [at], to=TensorProto.FLOAT)
        # By whole rows: three numbers at a time are ten times slower.
        at = add("Reshape", [at, constant("rows", np.array([-1, size, 3 * size]))])
        at = add("Sub", [at, constant("mean", np.tile(mean, size).astype(np.float32))])
        at = add("Mul", [at, constant("scale", np.tile(scale, size).astype(np.float32))])
        at = add("Reshape", [at, constant("pixels", np.array([-1, size, size, 3]))])
        at = add("Cast", [at], to=kind)
    if not channels_last:
        at = add("Transpose", [at], perm=[0, 3, 1, 2])
    nodes.append(helper.make_node("Identity", [at], [inner], name="sif/input"))
    for node in reversed(nodes):
        graph.node.insert(0, node)


def put_pooling(model: onnx.ModelProto, inner: str, path: Path, spec: EncoderSpec) -> None:
    """`embedding` (n, d) float32 in place of the network's outputs: a vector, a map (n, c, h, w), tokens (n, t, c)."""
    graph = model.graph
    del graph.output[:]
    graph.output.append(helper.make_empty_tensor_value_info(inner))
    sample = np.zeros((1, spec.input_size, spec.input_size, 3), np.uint8)
    found = run(model, sample, path)
    nodes: list[onnx.NodeProto] = []
    at = inner
    allowed = {2: ("own",), 3: ("cls", "avg", "max", "gem"), 4: ("avg", "max", "gem")}.get(found.ndim, ())
    pooling = "avg" if spec.pooling == "own" and found.ndim == 4 and found.shape[2:] == (1, 1) else spec.pooling
    if pooling not in allowed:
        raise SifBatchError(
            f"{path} gives {list(found.shape)} for one image, which --pooling {pooling} makes no vector of",
            remedy=f"it takes --pooling {' or '.join(allowed)}" if allowed else "name another `output` in --preprocess",
        )

    def add(op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"sif/out_{op.lower()}{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(name: str, value: float) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"sif/{name}"))
        return f"sif/{name}"

    at = add("Cast", [at], to=TensorProto.FLOAT)
    if pooling == "cls":
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "sif/first"))
        at = add("Gather", [at, "sif/first"], axis=1)
    elif found.ndim == 3:
        at = add("Transpose", [at], perm=[0, 2, 1])
    if pooling == "gem":
        at = add("Pow", [add("Max", [at, constant("floor", 1e-6)]), constant("power", 3)])
    if pooling in ("avg", "gem", "max"):
        at = add("GlobalMaxPool" if pooling == "max" else "GlobalAveragePool", [at])
    if pooling == "gem":
        at = add("Pow", [at, constant("root", 1 / 3)])
    nodes.append(helper.make_node("Flatten", [at], ["embedding"], name="sif/output", axis=1))
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", None]))
    del graph.value_info[:]


def run(model: onnx.ModelProto, pixels: np.ndarray, path: Path) -> np.ndarray:
    def work() -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"image": pixels})[0])

    return guarded(work, path)


def guarded(work: Callable[[], np.ndarray], path: Path) -> np.ndarray:
    try:
        return work()
    except Exception as error:  # onnxruntime raises its own untyped exceptions
        raise SifBatchError(
            f"{path} cannot be run on photos ({first_line(error)})", remedy="export it again"
        ) from error


def quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

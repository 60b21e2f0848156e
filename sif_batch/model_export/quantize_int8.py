"""A network in 8 bits: static quantization, calibrated on real images. Imports onnx, so it runs in a child process.

Weights are int8 by output channel, activations uint8. What rounding the weights adds to each convolution's mean output
is taken off its bias, computed from the channel means of its input in float (Nagel et al. 2019, Data-Free Quantization
Through Weight Equalization and Bias Correction, section 4.2).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from sif_batch.model_export.onnx_graph import quiet
from sif_batch.model_export.plain_onnx import write_plain

RECIPE = 2  # raised when the rules below change a vector
BATCH = 4
LEAD_CONVOLUTIONS, LEAD_SHARE = 3, 0.06  # so many of the first stay in float, as long as they are so little of the work
WORK = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Clip", "Relu")


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: np.ndarray):
        self._batches: Iterator[np.ndarray] = iter(np.split(pixels, range(BATCH, len(pixels), BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def quantize_network(model: Path, pixels: np.ndarray, out: Path) -> None:
    """Write the network in 8 bits, same input and output. pixels: (n, s, s, 3) uint8, to calibrate on."""
    plain = out.with_suffix(".plain.onnx")
    _fold(model, plain)
    network = onnx.load(plain)
    maps = _mean_inputs(network, pixels)
    in_float = _left_in_float(network, maps)
    _correct_biases(network, maps, in_float)
    onnx.save(network, plain)
    quantize_static(
        plain,
        out,
        _Batches(pixels),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=sorted(in_float),
        extra_options={"CalibMovingAverage": True},
    )
    write_plain(onnx.load(out), out)


def _fold(model: Path, out: Path) -> None:
    """Constants and batch normalisation folded, so that each convolution has its weights and bias as they are."""
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    network = onnx.load(out)
    for number, node in enumerate(network.graph.node):
        node.name = node.name or f"node{number}"
    onnx.save(network, out)


def _mean_inputs(network: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """By convolution, the mean of its input over the images: (channels, h, w) float64."""
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    names = sorted({node.input[0] for node in convolutions})
    watched = onnx.ModelProto()
    watched.CopyFrom(network)
    for name in names:
        watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(watched.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
    sums: list[Any] = [0.0] * len(names)
    for start in range(0, len(pixels), BATCH):
        found = session.run(names, {"image": pixels[start : start + BATCH]})
        sums = [total + value.sum(axis=0, dtype=np.float64) for total, value in zip(sums, found, strict=True)]
    means = dict(zip(names, (total / len(pixels) for total in sums), strict=True))
    return {node.name: means[node.input[0]] for node in convolutions}


def _left_in_float(network: onnx.ModelProto, maps: dict[str, np.ndarray]) -> set[str]:
    """The nodes up to the first convolutions, and what follows the last layer: sensitive, and little of the work."""
    nodes = list(network.graph.node)
    weights = {w.name: w for w in network.graph.initializer}
    work = {}
    for node in nodes:
        if node.op_type == "Conv" and node.input[1] in weights:
            strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1, 1])
            size = float(np.prod(list(weights[node.input[1]].dims)))
            work[node.name] = size * float(np.prod(maps[node.name].shape[1:])) / float(np.prod(strides))
    lead: list[str] = []
    for name in list(work)[:LEAD_CONVOLUTIONS]:
        if sum(work[n] for n in [*lead, name]) <= LEAD_SHARE * sum(work.values()):
            lead.append(name)
    places = {node.name: place for place, node in enumerate(nodes)}
    first = min((places[name] for name in work), default=0)
    last = places[lead[-1]] + 1 if lead else first  # without any, what normalises the image stays in float
    after = [n for n in nodes if lead and n.op_type in ACTIVATIONS and n.input[0] in nodes[last - 1].output]
    left = {node.name for node in [*nodes[:last], *after]}
    end = max((places[node.name] for node in nodes if node.op_type in WORK), default=len(nodes))
    return left | {node.name for node in nodes[end + 1 :] if node.op_type not in ACTIVATIONS}


def _correct_biases(network: onnx.ModelProto, maps: dict[str, np.ndarray], in_float: set[str]) -> None:
    graph = network.graph
    weights = {w.name: w for w in graph.initializer}
    for node in graph.node:
        if node.name not in maps or node.name in in_float or node.input[1] not in weights:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        flat = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        scale = np.where(flat > 0, flat / 127, 1).reshape(-1, *[1] * (weight.ndim - 1))
        added = (np.rint(weight / scale) * scale - weight).reshape(*weight.shape[:2], -1).sum(axis=2)
        means = maps[node.name].reshape(len(maps[node.name]), -1).mean(axis=1)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        inputs = np.repeat(means.reshape(groups, -1), len(weight) // groups, axis=0)  # of each output channel
        bias = np.zeros(len(weight))
        if len(node.input) > 2:
            bias = numpy_helper.to_array(weights[node.input[2]]).astype(np.float64)
        corrected = numpy_helper.from_array((bias - (added * inputs).sum(axis=1)).astype(np.float32), f"{node.name}/b8")
        graph.initializer.append(corrected)
        del node.input[2:]
        node.input.append(corrected.name)

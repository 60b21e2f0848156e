"""An ONNX network as a torch module, by onnx2torch, for what torch itself and the encoders here export."""

import onnx
import onnx2torch
import torch
from onnx import numpy_helper

from sif_batch.errors import SifBatchError

OPSET = 17  # the newest whose operators onnx2torch knows; of 18 the encoders use what `_lower` undoes
REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceProd", "ReduceLogSumExp"}


def to_torch(path: str) -> torch.nn.Module:
    """The network of an ONNX file in float32. Raises SifBatchError where it holds an operator that is not known."""
    model = onnx.load(path)
    _lower(model)
    try:
        network: torch.nn.Module = onnx2torch.convert(model).eval()
    except NotImplementedError as error:
        reason = " ".join(str(error).split())
        raise SifBatchError(f"the network cannot run in torch: {reason[:160]}", remedy="--device cpu") from error
    return network


def _lower(model: onnx.ModelProto) -> None:
    """Opset 18 as 17: reductions take their axes as an attribute; and a reshape need not say allowzero."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in REDUCTIONS and len(node.input) == 2 and node.input[1] in constants:
            axes = constants[node.input[1]].tolist()
            del node.input[1]
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        if node.op_type == "Reshape" and 0 not in constants.get(node.input[1], ()):
            kept = [a for a in node.attribute if a.name != "allowzero"]  # of no meaning unless a side is 0
            del node.attribute[:]
            node.attribute.extend(kept)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version == OPSET + 1:
            opset.version = OPSET

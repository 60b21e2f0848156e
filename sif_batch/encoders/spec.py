"""What an encoder is: network + weights + preprocessing + pooling + precision."""

import re
from typing import Literal

from pydantic import Field

from sif_batch.config import Frozen
from sif_batch.digests import digest

Fit = Literal["crop", "pad"]
Filter = Literal["bilinear", "bicubic", "lanczos", "hamming"]
Decoding = Literal["reduced", "exact"]
Pooling = Literal["avg", "gem", "max", "cls", "own"]
Order = Literal["rgb", "bgr"]
Precision = Literal["fp32", "int8"]
View = Literal["flip", "scales"]
Triple = tuple[float, float, float]


class EncoderSpec(Frozen):
    """Everything that decides a vector. The id is a digest of this, never of exported bytes."""

    name: str
    source: Literal["built-in", "torchvision", "timm", "onnx"]  # where the network's layers come from
    weights: str  # where they come from, with version
    weights_sha256: str
    licence: str
    dimension: int = Field(ge=1)
    input_size: int = Field(ge=1)  # the network takes (n, input_size, input_size, 3) uint8 RGB
    fit: Fit
    resize_to: int = Field(ge=1)  # crop: the shorter side, pad: the longer side, in pixels
    resample: Filter
    padding: Literal["border-mean"] = "border-mean"  # pad: the colour around the image
    decoding: Decoding = "reduced"  # a JPEG at 1/2, 1/4 or 1/8; exact: whole, resized and cropped as torchvision does
    rules: int = 2  # number of the rules in images/ and encoders/image_input, raised when they change a pixel
    mean: Triple  # normalisation stands in the graph: (pixel / 255 * range - mean) / std, channels in `order`
    std: Triple
    order: Order = "rgb"
    range: Literal[1, 255]
    pooling: Pooling  # own: what the network itself does before its last layer
    output: str | None = None  # own ONNX: the value taken as output
    views: tuple[View, ...] = ()  # averaged: the mirror image, three scales
    batch: int | None = None  # the most images that the network takes at once
    opset: int
    precision: Precision
    calibration: str | None = None  # int8: digest of the recipe and of the images that it was calibrated on

    @property
    def id(self) -> str:
        return f"{re.sub('[^A-Za-z0-9._]+', '-', self.name)}-{digest(self.canonical(), 12)}"


def in_float(spec: EncoderSpec) -> EncoderSpec:
    """The encoder that an int8 one was made from."""
    return spec.model_copy(update={"precision": "fp32", "calibration": None})

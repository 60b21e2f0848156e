"""What an encoder is: network + weights + preprocessing + pooling + precision."""

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from sif_batch.config import Frozen, SifBatchError
from sif_batch.storage.store import Store, digest

HERE = Path(__file__).parent
DEFAULT = "efficientnet_lite0"
BUILT_IN = {DEFAULT: HERE / DEFAULT}

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
    rules: int = 2  # number of the rules in images.py and runtime.py, raised when they change a pixel
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


def built_in_spec(name: str) -> EncoderSpec:
    """The specification of an encoder that the package carries. Raises SifBatchError with the nearest names."""
    from sif_batch.encoders.networks import nearest

    if name not in BUILT_IN:
        raise SifBatchError(
            f"unknown encoder {name!r}", remedy=f"the nearest that there are: {', '.join(nearest(name))}"
        )
    return EncoderSpec.model_validate_json((BUILT_IN[name] / "encoder.json").read_bytes())


def networks(spec: EncoderSpec) -> tuple[str, ...]:
    """The files of an encoder: with int8 the network in float too, for readers whose CPU cannot compute int8."""
    return ("model.onnx", "fp32.onnx") if spec.precision == "int8" else ("model.onnx",)


def in_float(spec: EncoderSpec) -> EncoderSpec:
    """The encoder that an int8 one was made from."""
    return spec.model_copy(update={"precision": "fp32", "calibration": None})


def install_encoder(
    store: Store, spec: EncoderSpec, model: bytes | None = None, float_model: bytes | None = None
) -> None:
    """Put the encoder into ROOT, encoders/<id>/: the networks, then encoder.json. model: None takes the package's."""
    folder = f"encoders/{spec.id}"
    if store.exists(f"{folder}/encoder.json"):
        return
    if model is None:
        model = model_bytes(store, spec)
    for name, data in zip(networks(spec), (model, float_model or b""), strict=False):
        store.create(f"{folder}/{name}", data)
        store.create(f"{folder}/{name.replace('.onnx', '.sha256')}", f"{digest(data)}\n".encode())
    store.create(f"{folder}/encoder.json", spec.canonical())


def model_bytes(store: Store, spec: EncoderSpec) -> bytes:
    """The network that ROOT or the package holds."""
    name = f"encoders/{spec.id}/model.onnx"
    return store.read(name) if store.exists(name) else (BUILT_IN[spec.name] / "model.onnx").read_bytes()


def check_encoder(store: Store, encoder_id: str) -> None:
    """Compare ROOT's encoder with its id and checksum. Raises SifBatchError, naming the damaged file."""
    folder = f"encoders/{encoder_id}"
    spec = read_spec(store, folder)
    if spec.id != encoder_id:
        raise _damaged(store, f"{folder}/encoder.json")
    for name in networks(spec):
        noted = f"{folder}/{name.replace('.onnx', '.sha256')}"
        try:
            fine = digest(store.read(f"{folder}/{name}")) == store.read(noted).decode().strip()
        except (FileNotFoundError, UnicodeDecodeError):
            fine = False
        if not fine:
            raise _damaged(store, f"{folder}/{name}")


def _damaged(store: Store, name: str) -> SifBatchError:
    return SifBatchError(
        f"{store.path(name)} is missing or damaged", remedy="copy it from encoder/ of one of the releases there"
    )


def read_spec(store: Store, folder: str) -> EncoderSpec:
    """The specification in `folder`/encoder.json of a ROOT or a release. Raises SifBatchError if it is damaged."""
    name = f"{folder}/encoder.json"
    try:
        return EncoderSpec.model_validate(json.loads(store.read(name)))
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(store, name) from error

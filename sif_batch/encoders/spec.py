"""What an encoder is: network + weights + preprocessing + pooling + precision."""

import difflib
import json
from pathlib import Path
from typing import Literal

from sif_batch.config import Frozen, SifBatchError
from sif_batch.storage import Store, digest

HERE = Path(__file__).parent
DEFAULT = "efficientnet_lite0"
BUILT_IN = {DEFAULT: HERE / DEFAULT}


class EncoderSpec(Frozen):
    """Everything that decides a vector. The id is a digest of this, never of exported bytes."""

    name: str
    weights: str  # where they come from, with version
    weights_sha256: str
    licence: str
    dimension: int
    input_size: int  # the network takes (n, input_size, input_size, 3) uint8 RGB
    fit: Literal["crop", "pad"]
    resize_to: int  # crop: the shorter side, pad: the longer side, in pixels
    resample: Literal["bilinear", "bicubic"]
    padding: Literal["border-mean"] = "border-mean"  # pad: the colour around the image
    decoding: int = 1  # number of the rules in images.py and runtime.py, raised when they change a pixel
    pooling: Literal["avg"]
    precision: Literal["fp32"]

    @property
    def id(self) -> str:
        return f"{self.name}-{digest(self.canonical(), 12)}"


def built_in_spec(name: str) -> EncoderSpec:
    """The specification of an encoder that the package carries. Raises SifBatchError with the nearest names."""
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, BUILT_IN, n=3, cutoff=0.3) or list(BUILT_IN)
        raise SifBatchError(f"unknown encoder {name!r}", remedy=f"the nearest that there are: {', '.join(near)}")
    return EncoderSpec.model_validate_json((BUILT_IN[name] / "encoder.json").read_bytes())


def install_encoder(store: Store, spec: EncoderSpec) -> None:
    """Put the encoder into ROOT, encoders/<id>/: model.onnx, then encoder.json."""
    folder = f"encoders/{spec.id}"
    if store.exists(f"{folder}/encoder.json"):
        return
    store.create(f"{folder}/model.onnx", (BUILT_IN[spec.name] / "model.onnx").read_bytes())
    store.create(f"{folder}/encoder.json", spec.canonical())


def read_spec(store: Store, folder: str) -> EncoderSpec:
    """The specification in `folder`/encoder.json of a ROOT or a release."""
    return EncoderSpec.model_validate(json.loads(store.read(f"{folder}/encoder.json")))

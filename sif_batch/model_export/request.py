"""What was asked for of an encoder, and what contradicts itself."""

import hashlib
import os
from pathlib import Path
from typing import Any

from sif_batch.config import Frozen
from sif_batch.encoders.networks import BUILT_IN, KINDS, TIMM, TORCHVISION, nearest
from sif_batch.encoders.spec import Fit, Pooling, Precision, View
from sif_batch.errors import SifBatchError
from sif_batch.model_export.stated_preprocessing import NORMALISATION, read_preprocess

EXACT = "exact"  # of --preprocess: the weights' own transforms, to the pixel; a file of that name is ./exact
FIELD_OF = {"size": "input_size", "resize": "resize_to", "filter": "resample"}  # Preprocess's name to EncoderSpec's


class EncoderRequest(Frozen):
    """The options that choose an encoder, as they were given. None: as ROOT records, else the network's own."""

    encoder: str | None = None
    weights: str | None = None
    random_weights: bool = False
    preprocess: str | None = None
    fit: Fit | None = None
    pooling: Pooling | None = None
    views: tuple[View, ...] | None = None
    precision: Precision | None = None

    def stated(self) -> dict[str, Any]:
        """What --preprocess, --fit and --pooling say: fields of Preprocess, normalisation as one."""
        found: dict[str, Any] = {}
        if self.preprocess == EXACT:
            found = {"decoding": "exact"}
        elif self.preprocess:
            spec = read_preprocess(self.preprocess)
            found = spec.model_dump(exclude_none=True, exclude=set(NORMALISATION))
            if spec.normalisation():
                found["normalisation"] = spec.normalisation()
        return found | {k: v for k, v in (("fit", self.fit), ("pooling", self.pooling)) if v is not None}


def source_of(name: str) -> str:
    """Where a network of this name comes from. Raises SifBatchError with the nearest names."""
    if name in BUILT_IN:
        return "built-in"
    if name.startswith(TIMM):
        return "timm"
    if name.endswith(".onnx") or os.path.isfile(name):
        return "onnx"
    if name in TORCHVISION:
        return "torchvision"
    raise SifBatchError(
        f"unknown encoder {name!r}", remedy=f"the nearest: {', '.join(nearest(name))}; it may be {KINDS}"
    )


def check_request(request: EncoderRequest, source: str) -> None:
    """Refuse options that contradict each other or the network, before anything is loaded."""
    if request.weights and request.random_weights:
        raise SifBatchError("--weights and --random-weights contradict each other", remedy="give one of them")
    if source in ("built-in", "onnx") and (request.weights or request.random_weights):
        option = "--weights" if request.weights else "--random-weights"
        raise SifBatchError(f"{option}: this network carries its weights", remedy=f"leave {option} out")
    for option, path in (("--encoder", request.encoder if source == "onnx" else None), ("--weights", request.weights)):
        if path and "://" not in path and not os.path.isfile(os.path.expanduser(path)):
            raise SifBatchError(f"{option} {path}: no such file", remedy="give the path of one that is there")


def asked_fields(request: EncoderRequest, stated: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, as fields of EncoderSpec; what was left open is not among them."""
    fields = {FIELD_OF.get(k, k): v for k, v in stated.items() if k not in ("normalisation", "licence")}
    fields |= stated.get("normalisation", {})
    if request.views is not None:
        fields["views"] = request.views
    for name, path in (("encoder", request.encoder), ("weights", request.weights)):
        if path and "://" not in path and os.path.isfile(os.path.expanduser(path)):
            fields["weights_sha256"] = sha256(path)
        elif path and name == "weights":
            fields["weights"] = weights_label(path)
    if request.encoder and source_of(request.encoder) != "onnx":
        fields["name"] = request.encoder
    if request.random_weights:
        fields["random"] = True
    return fields


def weights_label(place: str) -> str:
    """What the specification says of --weights: a URL without its secrets, or a file's name without its folder."""
    return shown(place) if "://" in place else Path(place).name


def shown(place: str) -> str:
    """A path or URL as a message may show it: without user, password and query."""
    if "://" not in place:
        return place
    scheme, _, rest = place.split("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rsplit('@', 1)[-1]}{slash}{path}"


def sha256(path: str) -> str:
    with open(os.path.expanduser(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

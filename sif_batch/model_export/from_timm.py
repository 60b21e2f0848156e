"""A network of timm, with timm's own features, weights and preprocessing. Runs in a child process."""

import difflib
import math
import os
from collections.abc import Callable
from typing import Any

import timm
import torch

from sif_batch.digests import digest
from sif_batch.encoders.networks import TIMM
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError
from sif_batch.model_export.features import Features
from sif_batch.model_export.request import shown, weights_label
from sif_batch.model_export.stated_preprocessing import fit_to, geometry
from sif_batch.model_export.torch_export import SEED, finish, wrap
from sif_batch.model_export.weights import REMEDY, fill, given_weights, parse_state, state_digest

GLOBAL_POOL = {"avg": "avg", "max": "max", "cls": "token"}  # our word to timm's


def export_timm(
    report: Callable[[Any], None], asked: dict[str, Any], stated: dict[str, Any], folder: str
) -> EncoderSpec:
    """Write folder/model.onnx of timm:NAME and return its specification."""
    name = asked["encoder"].removeprefix(TIMM)
    check_name(name)
    trained = not asked["random_weights"] and not asked["weights"]
    pooling = stated.get("pooling", "own")
    config = timm.get_pretrained_cfg(name)
    known = preprocessing_of(config)
    size = geometry(stated, known)["input_size"]
    network = build(name, trained, pooling, size if size != known["input_size"] else None)
    fields = known | {"name": asked["encoder"], "source": "timm", "pooling": pooling}
    fields["licence"] = getattr(config, "license", None) or "not stated (timm: Apache-2.0)"
    if trained:
        fields |= {"weights": f"timm {timm.__version__}: {getattr(config, 'tag', '') or name}"}
    elif asked["weights"]:
        data, label = given_weights(asked["weights"]), shown(asked["weights"])
        heads = config.classifier if isinstance(config.classifier, tuple) else (config.classifier or "",)
        state = {k: v for k, v in parse_state(data, label).items() if k.rpartition(".")[0] not in heads}
        fill(network, network, state, label)
        fields |= {"weights": weights_label(label), "weights_sha256": digest(data)}
        fields["licence"] = "unknown (given by --weights)"
    else:
        fields |= {"weights": f"random, seed {SEED}", "licence": "none needed"}
    fields.setdefault("weights_sha256", state_digest(network.state_dict()))
    normalisation = stated.get("normalisation") or {k: known[k] for k in ("mean", "std", "order", "range")}
    wrapped = wrap(Features(network, torch.nn.Identity(), own=network), "own", normalisation)
    return finish(report, wrapped, fields, stated, asked["views"], folder)


def check_name(name: str) -> None:
    """Raises SifBatchError with the nearest names."""
    if timm.is_model(name.split(".")[0]):
        return
    near = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), n=3, cutoff=0.4)
    raise SifBatchError(f"timm knows no network {name!r}", remedy=f"the nearest: {', '.join(near) or 'none'}")


def preprocessing_of(config: Any) -> dict[str, Any]:
    """What timm says of a network's weights, as fields of EncoderSpec."""
    size = config.input_size[-1]
    filters = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos"}
    return {
        "input_size": size,
        "fit": "crop",
        "resize_to": math.floor(size / config.crop_pct) if config.crop_pct else fit_to("crop", size),
        "resample": filters.get(config.interpolation, "bicubic"),
        "mean": tuple(config.mean),
        "std": tuple(config.std),
        "order": "rgb",
        "range": 1,
    }


def build(name: str, trained: bool, pooling: str, size: int | None) -> Any:
    """The network without its classifier, in eval mode. Raises SifBatchError."""
    options: dict[str, Any] = {} if pooling == "own" else {"global_pool": GLOBAL_POOL.get(pooling, pooling)}
    if size is not None:
        options["img_size"] = size
    torch.manual_seed(SEED)
    try:
        return timm.create_model(name, pretrained=trained, num_classes=0, exportable=True, **options).eval()
    except TypeError as error:
        if "img_size" in options and "img_size" in str(error):  # a network that takes images of any size
            return build(name, trained, pooling, None)
        raise SifBatchError(
            f"timm:{name} does not take that ({_first_line(error)})", remedy="leave --pooling out"
        ) from error
    except Exception as error:  # the hub's client and each network raise their own
        if pooling != "own" and not trained:
            raise SifBatchError(
                f"timm:{name} does not take --pooling {pooling} ({_first_line(error)})", remedy="leave it out"
            ) from error
        cache = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
        raise SifBatchError(
            f"the weights of timm:{name} are not in {os.path.expanduser(cache)} and cannot be fetched "
            f"({_first_line(error)})",
            remedy=REMEDY,
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

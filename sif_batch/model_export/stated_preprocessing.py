"""The preprocessing a user states for a network: a small TOML or JSON file, checked, and put over what is known."""

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from sif_batch.config import Frozen
from sif_batch.encoders.spec import Decoding, Filter, Fit, Order, Pooling, Triple
from sif_batch.errors import SifBatchError

NORMALISATION = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "order": "rgb", "range": 1}
CROP_MARGIN = 8 / 7  # the usual 256 for 224: the shorter side that a crop is taken from


class Preprocess(Frozen):
    """What --preprocess may say. mean, std: in units of `range`, in the order of `order`."""

    size: int | None = Field(default=None, ge=8, le=4096)
    fit: Fit | None = None
    resize: int | None = Field(default=None, ge=8, le=8192)
    filter: Filter | None = None
    decoding: Decoding | None = None
    mean: float | Triple | None = None
    std: float | Triple | None = None
    order: Order | None = None
    range: Literal[1, 255] | None = None
    pooling: Pooling | None = None
    output: str | None = None  # own ONNX: the name of the value to take
    licence: str | None = None

    def normalisation(self) -> dict[str, Any]:
        """mean, std, order, range as a whole: where one is stated, the others are neutral, not another network's."""
        stated = {name: getattr(self, name) for name in NORMALISATION if getattr(self, name) is not None}
        for name in ("mean", "std"):
            if isinstance(stated.get(name), float | int):
                stated[name] = (float(stated[name]),) * 3
        return NORMALISATION | stated if stated else {}


def read_preprocess(path: str) -> Preprocess:
    """The specification in a .toml or .json file. Raises SifBatchError that names what is wrong in it."""
    fields = ", ".join(Preprocess.model_fields)
    try:
        data = Path(path).expanduser().read_bytes()
        stated = json.loads(data) if path.endswith(".json") else tomllib.loads(data.decode())
        spec = Preprocess.model_validate(stated)
    except OSError as error:
        raise SifBatchError(f"--preprocess {path}: {error.strerror}", remedy="give a TOML or JSON file") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:3])
        raise SifBatchError(f"--preprocess {path}: {wrong}", remedy=f"it may hold {fields}") from error
    except ValueError as error:  # both parsers' errors, and bytes that are no text
        raise SifBatchError(
            f"--preprocess {path} is neither TOML nor JSON ({error})", remedy="see docs/encoders.md"
        ) from error
    check_normalisation(path, spec.normalisation())
    return spec


def check_normalisation(path: str, stated: dict[str, Any]) -> None:
    """Refuse what cannot be meant: a deviation of zero, or the means of 0..255 beside a range of 0..1."""
    if not stated:
        return
    if min(stated["std"]) <= 0:
        raise SifBatchError(f"--preprocess {path}: std {stated['std']} is not positive", remedy="give the divisors")
    if stated["range"] == 1 and max(map(abs, stated["mean"])) > 4:
        raise SifBatchError(
            f"--preprocess {path}: a mean of {max(stated['mean'])} does not belong to pixels in 0..1",
            remedy="say range = 255 if the network takes 0..255",
        )


def fit_to(fit: Fit, size: int) -> int:
    """The side that an image is scaled to, where nothing else is known."""
    return size if fit == "pad" else round(size * CROP_MARGIN)


def geometry(stated: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """input_size, fit, resize_to, resample, decoding: as stated, else as known, with a resize that belongs to both."""
    size = stated.get("size") or known["input_size"]
    fit = stated.get("fit") or known["fit"]
    same = fit == known["fit"] and size == known["input_size"]
    resize = stated.get("resize") or (known["resize_to"] if same else fit_to(fit, size))
    if (fit == "crop" and resize < size) or (fit == "pad" and resize > size):
        raise SifBatchError(
            f"resize {resize} does not fit size {size} with fit {fit}",
            remedy="with crop the shorter side is at least `size`, with pad the longer side at most `size`",
        )
    return {
        "input_size": size,
        "fit": fit,
        "resize_to": resize,
        "resample": stated.get("filter") or known["resample"],
        "decoding": stated.get("decoding") or known.get("decoding", "reduced"),
    }

"""Weights: a state dict from a file, a URL or torch's own cache, never running a pickle's code.

Imports torch, so only exporters import this, in a child process.
"""

import io
import os
import pickle
import pickletools
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import Tensor, nn

from sif_batch.digests import digest
from sif_batch.errors import SifBatchError
from sif_batch.model_export.request import shown

TIMEOUT_S = 30
SHOWN_KEYS = 4
HASH = re.compile(r"-([a-f0-9]{8,})\.")  # torch puts a prefix of the sha256 into its file names
WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")  # what training scripts wrap weights in
REMEDY = "--weights FILE_OR_URL gives them, --random-weights does without"
State = dict[str, Tensor]


def cache_folder() -> Path:
    """Where torch keeps the weights that it has fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_weights(label: str, url: str) -> bytes:
    """The bytes of one of torchvision's own weights files: from torch's cache, else fetched into it.

    Raises SifBatchError that says which, where it looked, and what to do.
    """
    name = url.rsplit("/", 1)[-1]
    path = cache_folder() / name
    where = f"{label} ({name}) are not in {path.parent}"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SifBatchError(f"{path} cannot be read ({error.strerror})", remedy=REMEDY) from error
    else:
        _check_hash(name, data, f"delete {path}, which is damaged, or give --weights FILE_OR_URL")
        return data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.NamedTemporaryFile(dir=path.parent)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise SifBatchError(f"{where}, which cannot be written ({error.strerror})", remedy=REMEDY) from error
    with temporary:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                data = answer.read()
        except (OSError, ValueError) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            raise SifBatchError(f"{where} and cannot be fetched ({reason})", remedy=REMEDY) from error
        _check_hash(name, data, "try again, or give --weights FILE_OR_URL")
        try:
            temporary.write(data)
            temporary.flush()
            os.link(temporary.name, path)
        except FileExistsError:
            pass
        except OSError as error:
            raise SifBatchError(f"{path} cannot be written ({error.strerror})", remedy=REMEDY) from error
    return data


def given_weights(place: str) -> bytes:
    """The bytes of --weights: a path or a URL that fsspec opens."""
    try:
        if place.startswith(("http:", "https:")):
            with urllib.request.urlopen(place, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read())
        with fsspec.open(os.path.expanduser(place), "rb") as file:
            return bytes(file.read())
    except ImportError as error:
        raise SifBatchError(
            f"--weights {shown(place)}: {error}", remedy="install that store's extra, or give a file"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise SifBatchError(
            f"--weights {shown(place)} cannot be read ({reason})", remedy="give a file or a URL"
        ) from error


def parse_state(data: bytes, label: str) -> State:
    """The state dict in a .pth or .safetensors file, without wrapper and DataParallel's prefix."""
    try:
        if data[8:9] == b"{":  # safetensors: the header's length, then its JSON
            from safetensors.torch import load

            state: Any = load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ImportError as error:
        raise SifBatchError(f"{label} is a safetensors file", remedy="install 'sif-batch[timm]'") from error
    except pickle.UnpicklingError as error:
        raise SifBatchError(
            f"{label}: {_wanted(str(error), data)}",
            remedy="save the state dict alone: torch.save(network.state_dict(), FILE)",
        ) from error
    except Exception as error:  # torch.load raises whatever a broken file leads it to
        raise SifBatchError(
            f"{label} is no file of weights ({_first_line(error)})", remedy="give a state dict saved by torch.save"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise SifBatchError(f"{label} holds no state dict", remedy="torch.save(network.state_dict(), FILE) writes one")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def fill(network: nn.Module, features: nn.Module, state: State, label: str) -> None:
    """Load `state` into the network; what its features use must be there and fit, a head of its own may differ."""
    known = network.state_dict()
    used = {id(value) for value in (*features.parameters(), *features.buffers())}
    by_name = dict([*network.named_parameters(), *network.named_buffers()])
    needed = {name for name, value in by_name.items() if id(value) in used and name in known}
    missing = [n for n in known if n in needed and n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in known]
    wrong = [n for n in known if n in needed and n in state and state[n].shape != known[n].shape]
    if missing or unexpected or wrong:
        faults = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in (
            ("keys missing", missing), ("unexpected", unexpected), ("of another shape", wrong)
        ) if keys]  # fmt: skip
        raise SifBatchError(
            f"{label} does not fit {type(network).__name__}: {', '.join(faults)}",
            remedy="give the --encoder that the weights were made for",
        )
    fitting = {name: value for name, value in state.items() if known[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)


def state_digest(state: State) -> str:
    """sha256 over names, types, shapes and bytes: of weights that lie in no file."""
    parts = []
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        parts.append(f"{name} {value.dtype} {tuple(value.shape)} {digest(value.numpy().tobytes())}")
    return digest("\n".join(parts).encode())


def _check_hash(name: str, data: bytes, remedy: str) -> None:
    found = HASH.search(name)
    if found and not digest(data).startswith(found[1]):
        raise SifBatchError(f"{name} has sha256 {digest(data, 8)}…, its name says {found[1]}", remedy=remedy)


def _wanted(message: str, data: bytes) -> str:
    """What a refused pickle wanted to run, by name."""
    found = re.search(r"GLOBAL (\S+)", message)
    name = found[1] if found else _named_in_pickle(data)
    if name:
        return f"refused: this pickle wants to run {name}, and weights are loaded as data alone"
    return "no file of weights that can be loaded as data alone"


def _named_in_pickle(data: bytes) -> str | None:
    """The first thing that a bare pickle of a newer protocol names, read without running it."""
    strings: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if isinstance(argument, str):
                strings.append(argument)
            if code.name == "GLOBAL":
                return strings[-1].replace(" ", ".")
            if code.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
    except ValueError:  # no pickle at all
        pass
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _few(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:SHOWN_KEYS]) + (", …" if len(keys) > SHOWN_KEYS else "")

"""Where networks run: on the CPU, or on the GPUs that CUDA sees."""

import ctypes
import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Literal

from sif_batch.errors import SifBatchError

Device = Literal["auto", "cpu", "cuda", "torch-cpu"]  # torch-cpu: the GPU's path without one, to try it
CPU_THREADS, GPU_THREADS = 8, 4  # of a process at most: beyond, Python's lock keeps them from one another
NEEDS = ("torch", "onnx2torch")


@dataclass(frozen=True)
class Lane:
    """A child process of its own. device: cpu, cuda:0 and so on, or torch-cpu; max_bytes: of memory, None: no limit."""

    device: str
    threads: int
    max_bytes: int | None = None


@dataclass(frozen=True)
class OwnLanes:
    """Lanes that each machine of a cluster plans for itself. threads: None: its cores; precision: the encoder's."""

    device: Device
    precision: str
    threads: int | None = None

    def plan(self) -> list[Lane]:
        threads = self.threads or usable_cores()
        return plan_lanes(choose_devices(self.device, self.precision)[0], threads, threads)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The names of the NVIDIA GPUs that CUDA sees here; empty without its driver. Needs no torch, and no second."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, handle, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        if cuda.cuDeviceGet(ctypes.byref(handle), number) or cuda.cuDeviceGetName(name, len(name), handle):
            return []
        found.append(name.value.decode(errors="replace"))
    return found


def choose_devices(asked: Device, precision: str) -> tuple[list[str], str]:
    """The devices to run on, and which and why in a few words. Raises SifBatchError for what is not here."""
    if asked == "cpu":
        return ["cpu"], "cpu"
    if asked == "torch-cpu":
        _check_usable(asked, precision)
        return [asked], "torch on the cpu"
    found = gpus()
    shown = ", ".join(found)
    if asked == "cuda":
        if not found:
            raise SifBatchError("--device cuda: CUDA sees no GPU here", remedy="--device cpu, or see to the driver")
        _check_usable(asked, precision)
    elif not found:
        return ["cpu"], "cpu (no GPU is seen)"
    elif reason := _unusable(precision):
        return ["cpu"], f"cpu, not {shown}: {reason[0]}"
    return [f"cuda:{number}" for number in range(len(found))], f"cuda ({shown})"


def _check_usable(asked: str, precision: str) -> None:
    if reason := _unusable(precision):
        raise SifBatchError(f"--device {asked}: {reason[0]}", remedy=reason[1])


def _unusable(precision: str) -> tuple[str, str] | None:
    """Why torch cannot run this encoder, and what to do; None: it can."""
    if precision == "int8":
        return "int8 encoders run on the CPU alone", "--device cpu, or --precision fp32"
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return f"{missing[0]} is not installed", "install 'sif-batch[torch]', or --device cpu"
    return None


def plan_lanes(devices: list[str], workers: int, shards: int) -> list[Lane]:
    """The child processes that share `workers` threads: one for each GPU at least, and no more than there are shards.

    A GPU's process gets a thread more, which waits for the GPU while the others decode.
    """
    on_gpu = devices != ["cpu"]
    number = max(len(devices), math.ceil(workers / (GPU_THREADS if on_gpu else CPU_THREADS)))
    number = min(number, max(1, shards))
    threads = [workers // number + (lane < workers % number) for lane in range(number)]
    return [Lane(devices[lane % len(devices)], max(1, n) + on_gpu) for lane, n in enumerate(threads)]

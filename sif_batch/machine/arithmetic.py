"""Which arithmetic this machine does: BLAS and instruction set, chosen on purpose and named in fingerprints."""

import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable
from types import ModuleType

import numpy as np

# OpenBLAS core types by the flags they need; newer names are taken for Prescott by the copy inside faiss-cpu.
CORE_TYPES = (("SkylakeX", {"avx512f", "avx512bw", "avx512dq", "avx512vl"}), ("Haswell", {"avx2", "fma"}))
BLOCK_ROWS = 1024


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags; empty where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def computes_int8() -> bool:
    """Whether 8-bit products are summed exactly here: AVX2 alone saturates at 16 bits (no VNNI)."""
    return bool({"avx512_vnni", "avx_vnni"} & cpu_flags()) or platform.machine() in ("aarch64", "arm64")


def instruction_set() -> str:
    """The level that decides which kernels run: avx512-vnni, avx512, avx2, or the machine's name."""
    flags = cpu_flags()
    if "avx512f" in flags:
        return "avx512-vnni" if "avx512_vnni" in flags else "avx512"
    return "avx2" if "avx2" in flags else platform.machine()


@functools.cache
def import_faiss() -> ModuleType:
    """faiss, with its BLAS told which kernels to use and its threads told not to spin.

    faiss-cpu carries an OpenBLAS that picks the slowest kernels on CPUs it does not know. numpy has
    loaded its own copy by now, so the variables are set for this one import and then taken back.
    """
    core = next((name for name, needs in CORE_TYPES if needs <= cpu_flags()), None)
    wanted = {"OMP_WAIT_POLICY": "PASSIVE"} | ({"OPENBLAS_CORETYPE": core} if core else {})
    wanted = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(wanted)
    try:
        import faiss
    finally:
        for name in wanted:
            del os.environ[name]
    return faiss  # type: ignore[no-any-return]


def embedding_fingerprint(network: dict[str, str]) -> dict[str, str]:
    """What the bytes of a part depend on, beside its images and encoder. network: of what runs it."""
    from PIL import features

    return {
        "isa": instruction_set(),
        "jpeg": features.version("jpg") or "none",
        "pillow": importlib.metadata.version("pillow"),
        **network,
    }


def quantizing_fingerprint() -> dict[str, str]:
    """What the bytes of a quantizer and its codes depend on, beside the vectors: the BLAS kernels in use too."""
    from threadpoolctl import threadpool_info

    import_faiss()
    blas = {
        f"{lib['internal_api']} {lib['version']} {lib.get('architecture')}"
        for lib in threadpool_info()
        if lib["user_api"] == "blas"
    }
    return {
        "blas": ", ".join(sorted(blas)),
        "faiss": importlib.metadata.version("faiss-cpu"),
        "isa": instruction_set(),
    }


def in_blocks(x: np.ndarray, work: Callable[[np.ndarray], np.ndarray], dtype: type) -> np.ndarray:
    """work(x) row by row: (n, d) to (n, m), each row's bits independent of its neighbours and its place.

    BLAS kernels treat the rows at a block's edge apart, so `work` is given zero-padded blocks of 1,024 rows.
    """
    block: np.ndarray = np.zeros((BLOCK_ROWS, x.shape[1]), dtype)
    results = []
    for start in range(0, max(len(x), 1), BLOCK_ROWS):
        rows = x[start : start + BLOCK_ROWS]
        block[: len(rows)], block[len(rows) :] = rows, 0
        results.append(work(block)[: len(rows)].copy())
    return np.concatenate(results)


def project(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """x @ matrix in float64, rounded: x (n, d), matrix (d, m) to (n, m) float32, each row's bits independent."""
    return in_blocks(x, lambda block: (block @ matrix).astype(np.float32), np.float64)


def project_few(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """As `project`, but that a last bit may depend on the other rows: a query alone would be padded to 1,024."""
    return (x @ matrix).astype(np.float32)

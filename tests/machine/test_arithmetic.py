import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REPOSITORY
from synthetic import checked

from sif_batch.machine.arithmetic import (
    BLOCK_ROWS,
    CORE_TYPES,
    cpu_flags,
    embedding_fingerprint,
    import_faiss,
    in_blocks,
    instruction_set,
    project,
    quantizing_fingerprint,
)

ROWS, WIDTH, COLUMNS = 2500, 160, 24
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(ROWS, WIDTH))
MATRIX = RANDOM.normal(size=(WIDTH, COLUMNS))
WHOLE = project(X, MATRIX)


def test_project_is_the_product_rounded_to_float32() -> None:
    exact = np.array([[float(np.sum(row * column)) for column in MATRIX.T] for row in X[:50]])
    assert WHOLE.dtype == np.float32 and WHOLE.shape == (ROWS, COLUMNS)
    assert np.abs(WHOLE[:50] - exact).max() < 1e-6 * np.abs(exact).max()


@settings(checked, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, ROWS))
def test_a_rows_bits_do_not_depend_on_its_neighbours_or_its_place(seed: int, count: int) -> None:
    picked = np.random.default_rng(seed).permutation(ROWS)[:count]
    assert project(X[picked], MATRIX).tobytes() == WHOLE[picked].tobytes()


@settings(checked, max_examples=25)
@given(st.integers(0, ROWS), st.integers(0, ROWS))
def test_a_rows_bits_do_not_depend_on_the_slice_it_is_in(start: int, end: int) -> None:
    start, end = min(start, end), max(start, end)
    found = project(X[start:end], MATRIX)
    assert found.shape == (end - start, COLUMNS) and found.tobytes() == WHOLE[start:end].tobytes()


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_rows_bits_do_not_depend_on_how_the_array_lies(layout: str, dtype: type) -> None:
    x = X.astype(dtype)
    assert project(np.array(x, order=layout), MATRIX).tobytes() == project(x.astype(np.float64), MATRIX).tobytes()


def test_many_columns_are_as_steady() -> None:
    matrix = RANDOM.normal(size=(1280, 500))
    x = RANDOM.normal(size=(300, 1280))
    whole = project(x, matrix)
    order = RANDOM.permutation(300)
    assert project(x[order], matrix).tobytes() == whole[order].tobytes()
    assert project(x[17:18], matrix).tobytes() == whole[17:18].tobytes()


@pytest.mark.parametrize("count", [0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS])
def test_work_is_given_whole_zero_padded_blocks(count: int) -> None:
    seen: list[np.ndarray] = []

    def work(block: np.ndarray) -> np.ndarray:
        seen.append(block.copy())
        return block[:, :1] * 2

    x = np.arange(1, count + 1, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    assert in_blocks(x, work, np.float32)[:, 0].tolist() == [2.0 * i for i in range(1, count + 1)]
    assert all(block.shape == (BLOCK_ROWS, 3) and block.dtype == np.float32 for block in seen)
    flat = np.concatenate(seen)
    assert np.array_equal(flat[:count], x) and not flat[count:].any()


def test_the_instruction_set_is_named_by_its_level() -> None:
    flags = cpu_flags()
    if "avx512f" in flags:
        assert instruction_set() == ("avx512-vnni" if "avx512_vnni" in flags else "avx512")
    else:
        assert instruction_set() == ("avx2" if "avx2" in flags else os.uname().machine)


def test_fingerprints_say_what_bytes_depend_on() -> None:
    embedding, quantizing = embedding_fingerprint({"onnxruntime": "1"}), quantizing_fingerprint()
    assert set(embedding) == {"isa", "onnxruntime", "pillow", "jpeg"}
    assert {"isa", "faiss", "blas"} <= set(quantizing)
    assert all(isinstance(value, str) and value for value in [*embedding.values(), *quantizing.values()])
    import faiss

    assert quantizing["faiss"].startswith(faiss.__version__)


def faiss_in_a_new_process(**environment: str) -> dict[str, object]:
    """What BLAS faiss uses there, and what is left in its environment."""
    code = """
import json, os
import numpy
from sif_batch.machine.arithmetic import import_faiss
faiss = import_faiss()
assert import_faiss() is faiss
from threadpoolctl import threadpool_info
pools = threadpool_info()
names = ("OPENBLAS_CORETYPE", "OMP_WAIT_POLICY")
left = {name: os.environ.get(name) for name in names}
blas = [pool["architecture"] for pool in pools if pool["user_api"] == "blas" and "faiss" in pool["filepath"]]
own = [pool["architecture"] for pool in pools if pool["user_api"] == "blas" and "numpy" in pool["filepath"]]
print(json.dumps({"faiss": blas, "numpy": own, "left": left}))
"""
    env = {name: value for name, value in os.environ.items() if name not in ("OPENBLAS_CORETYPE", "OMP_WAIT_POLICY")}
    env |= {"PYTHONPATH": str(REPOSITORY)} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=900, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_faiss_is_imported_with_the_fastest_kernels_that_the_cpu_has() -> None:
    wanted = next((name for name, needs in CORE_TYPES if needs <= cpu_flags()), None)
    if wanted is None:
        pytest.skip("no core type of OpenBLAS is known for this CPU")
    found = faiss_in_a_new_process()
    assert found["faiss"] == [wanted]
    assert found["left"] == {"OPENBLAS_CORETYPE": None, "OMP_WAIT_POLICY": None}


def test_a_core_type_that_the_user_set_is_kept() -> None:
    if "avx2" not in cpu_flags():
        pytest.skip("needs a CPU with AVX2")
    found = faiss_in_a_new_process(OPENBLAS_CORETYPE="Haswell", OMP_WAIT_POLICY="ACTIVE")
    assert found["faiss"] == ["Haswell"]
    assert found["left"] == {"OPENBLAS_CORETYPE": "Haswell", "OMP_WAIT_POLICY": "ACTIVE"}


def test_faiss_is_imported_once() -> None:
    assert import_faiss() is sys.modules["faiss"]

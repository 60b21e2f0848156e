import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.index.rerank_rows import (
    encode_rows,
    exact_squared_distances,
    row_width,
    squared_distances,
    vectors_of_rows,
)
from sif_batch.index.similarity import normalise


def numbers_of(rows: np.ndarray) -> np.ndarray:
    return rows[:, :-4]


def test_int8_rows_are_in_units_of_their_largest_part() -> None:
    x = np.array([[1.0, -0.5, 0.2], [0, 0, 0], [-2.0, 1.0, 0.1], [1e-9, 5e-10, 0]])
    for unit in (False, True):
        rows = encode_rows(x, "int8", unit)
        assert numbers_of(rows).tolist() == [[127, -64, 25], [0, 0, 0], [-127, 64, 6], [127, 64, 0]]
        assert rows.dtype == np.int8 and rows.shape[1] == row_width("int8", 3)
    assert np.allclose(
        vectors_of_rows(rows, True),
        numbers_of(rows) / np.maximum(np.linalg.norm(numbers_of(rows), axis=1), 1e-9)[:, None],
    )


@checked
@given(st.integers(0, 10**6), st.booleans())
def test_int8_rows_keep_the_vector(seed: int, unit: bool) -> None:
    x = 30 * np.random.default_rng(seed).normal(size=(4, 256))
    x = normalise(x) if unit else x
    kept = vectors_of_rows(encode_rows(x, "int8", unit), unit).astype(np.float64)
    assert ((x * kept).sum(axis=1) / np.linalg.norm(kept, axis=1) / np.linalg.norm(x, axis=1)).min() > 0.999
    assert np.allclose(np.linalg.norm(kept, axis=1), np.linalg.norm(x, axis=1), rtol=2e-3)


def test_float16_rows_are_rounded_vectors() -> None:
    x = normalise(np.random.default_rng(0).normal(size=(10, 64)))
    assert encode_rows(x, "float16", True).tobytes() == x.astype(np.float16).tobytes()


@pytest.mark.parametrize("form", ["int8", "float16"])
@pytest.mark.parametrize("unit", [False, True])
def test_distances_are_those_of_the_kept_vectors(form: str, unit: bool) -> None:
    random = np.random.default_rng(1)
    x, q = random.normal(size=(60, 32)), random.normal(size=(3, 32))
    if unit:
        x, q = normalise(x), normalise(q)
    rows = encode_rows(x, form, unit)  # type: ignore[arg-type]
    kept = vectors_of_rows(rows, unit)
    expected = ((q[:, None] - kept.astype(np.float64)) ** 2).sum(axis=2)
    rough = squared_distances(np.stack([rows] * 3), q.astype(np.float32), unit)
    assert np.allclose(rough, expected, atol=1e-4 * expected.max())
    for query, wanted in zip(q, expected, strict=True):
        found = exact_squared_distances(kept, query, unit)
        assert np.allclose(found, wanted, rtol=1e-5, atol=1e-6)
        picked = random.permutation(60)[:7]
        assert exact_squared_distances(kept[picked], query, unit).tobytes() == found[picked].tobytes()


def test_nothing_kept_takes_no_bytes() -> None:
    assert encode_rows(np.ones((5, 8)), "none", True).shape == (5, 0) and row_width("none", 8) == 0

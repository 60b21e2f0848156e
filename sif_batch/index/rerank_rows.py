"""Rows kept for re-ranking: compared vectors in a form that is small, and how they come back."""

from typing import Literal

import numpy as np

RowForm = Literal["float16", "int8", "none"]
FACTOR = 4  # bytes at the end of an 8-bit row: a float32, by which its numbers are to be multiplied


def row_width(form: RowForm, dimensions: int) -> int:
    """The numbers in a kept row."""
    return {"float16": dimensions, "int8": dimensions + FACTOR, "none": 0}[form]


def row_type(form: RowForm) -> np.dtype:
    """The type of these numbers."""
    return np.dtype("float16" if form == "float16" else "int8")


def encode_rows(x: np.ndarray, form: RowForm, unit: bool) -> np.ndarray:
    """Vectors (n, d) float64 as they are kept: (n, row_width) float16 or int8.

    8-bit rows are in units of a row's largest number / 127, and end in a factor: that unit, or what brings the
    rounded row to unit length.
    """
    if form == "none":
        return np.empty((len(x), 0), np.int8)
    if form == "float16":
        return x.astype(np.float16)
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0)
    kept = np.rint(127 * x / np.where(largest > 0, largest, 1))
    factor = largest[:, 0] / 127
    if unit:
        length = np.sqrt(np.einsum("ij,ij->i", kept, kept))
        factor = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    return np.hstack([kept.astype(np.int8), factor.astype(np.float32)[:, None].view(np.int8)])


def decode_rows(rows: np.ndarray, unit: bool) -> tuple[np.ndarray, np.ndarray]:
    """Kept rows (..., row_width) as numbers (..., d) float32 and factors (...) float32; their product is the vector."""
    if rows.dtype == np.int8:
        numbers = rows[..., :-FACTOR].astype(np.float32)
        factor = np.ascontiguousarray(rows[..., -FACTOR:]).view(np.float32)[..., 0]
        return numbers, factor
    numbers = rows.astype(np.float32)
    if not unit:
        return numbers, np.ones(rows.shape[:-1], np.float32)
    length = np.sqrt(np.einsum("...j,...j->...", numbers, numbers))
    return numbers, np.divide(1, length, out=np.zeros_like(length), where=length > 0)


def vectors_of_rows(rows: np.ndarray, unit: bool) -> np.ndarray:
    """Kept rows as vectors: (n, d) float32."""
    numbers, factor = decode_rows(rows, unit)
    return numbers * factor[..., None]


def squared_distances(rows: np.ndarray, queries: np.ndarray, unit: bool) -> np.ndarray:
    """From queries (q, d) float32 to kept rows (q, r, row_width), a group each: (q, r) float32, roughly."""
    numbers, factor = decode_rows(rows, unit)
    products = np.matmul(numbers, queries[:, :, None])[:, :, 0] * factor
    if unit:
        return 2 - 2 * products
    lengths = np.einsum("qrd,qrd->qr", numbers, numbers) * factor * factor
    return np.einsum("ij,ij->i", queries, queries)[:, None] + lengths - 2 * products


def exact_squared_distances(rows: np.ndarray, query: np.ndarray, unit: bool) -> np.ndarray:
    """From one query (d,) to kept rows (r, row_width): (r,) float64, each one's bits independent of the others.

    Of unit vectors by their cosine, so that a zero vector is like none.
    """
    q = query.astype(np.float64)
    if rows.dtype == np.int8:
        x = rows[:, :-FACTOR].astype(np.float64)
        factor = np.ascontiguousarray(rows[:, -FACTOR:]).view(np.float32)[:, 0].astype(np.float64)
    else:
        x = rows.astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", x, x)) if unit else np.ones(len(x))
        factor = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    if unit:
        return np.maximum(2 - 2 * factor * np.einsum("ij,j->i", x, q), 0)
    apart = x * factor[:, None] - q
    return np.einsum("ij,ij->i", apart, apart)

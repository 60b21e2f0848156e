"""What the training sample tells of a shape before any row is quantized: truth, radii, and the recall it allows.

A sample is sparser than the collection, so what it allows is an upper limit: a target above it is out of reach.
"""

import math
from collections.abc import Callable

import numpy as np

from sif_batch.config import Frozen, IndexSettings
from sif_batch.errors import SifBatchError
from sif_batch.index.codebooks import encoder_of
from sif_batch.index.quantizer_spec import FLOAT16_ABOVE, QuantizerSpec
from sif_batch.index.recall import NEIGHBOURS, lower_and_upper
from sif_batch.index.rerank_rows import encode_rows, vectors_of_rows
from sif_batch.index.similarity import Transform
from sif_batch.machine.arithmetic import import_faiss

SPARE = 8  # neighbours more than a radius needs
BLOCK = 8192
CODE_BYTES = 32  # of a code that finds what rows then put in order
FEWEST_TO_PROMISE = 10  # held-out queries below which nothing is refused beforehand


class Prospect(Frozen):
    """recall@k in the sample, of exact search over: the dimensions that codes see, the dimensions that rows keep,
    and what decides the final order (rows as kept, or codes)."""

    rows: int
    k: int
    reduced: float | None = None
    kept: float | None = None
    ranking: float | None = None


def prospect_of(
    spec: QuantizerSpec,
    transform: Transform,
    trained: bytes | None,
    x: np.ndarray,
    queries: np.ndarray,
    k: int,
    rows: int,
) -> tuple[np.ndarray, Prospect]:
    """The radius of each query, (q,) float32, and what the sample allows.

    x: (n, d) compared vectors of the sample, of `rows` in the collection; queries: (q, d).
    """
    if not len(x) or not len(queries):
        return np.full(len(queries), np.inf, np.float32), Prospect(rows=len(x), k=k)
    depth = min(math.ceil(2 * NEIGHBOURS * len(x) / rows) + SPARE, len(x))
    deep = _nearest(queries, x, max(depth, min(k, len(x))))[0]
    enough = depth * rows >= 2 * NEIGHBOURS * len(x)
    radii = deep[:, depth - 1].astype(np.float32) if enough else np.full(len(queries), np.inf, np.float32)
    reached: dict[str, float | None] = {}
    k = min(k, len(x))
    for name, view in _views(spec, transform, trained).items():
        shares = _shares(queries, x, view, k)
        reached[name] = round(float(shares.mean()), 4)
    return radii, Prospect(rows=len(x), k=k, **reached)


View = Callable[[np.ndarray], np.ndarray]


def _views(spec: QuantizerSpec, transform: Transform, trained: bytes | None) -> dict[str, tuple[View, View]]:
    """What a vector is in each comparison: as a row, and as a query. Those that lose nothing are left out."""
    views: dict[str, tuple[View, View]] = {}

    if spec.rows == "none":
        views["reduced"] = transform.to_code, transform.to_code
    if spec.row_dimension:

        def kept(y: np.ndarray) -> np.ndarray:
            return transform.reduce(y, spec.row_dimension)

        views["kept"] = kept, kept
        views["ranking"] = (
            lambda y: vectors_of_rows(encode_rows(kept(y).astype(np.float64), spec.rows, False), False),
            kept,
        )
    if spec.rows == "none" and trained is not None:
        index = import_faiss().deserialize_index(np.frombuffer(trained, np.uint8))
        coder = encoder_of(index)

        def coded(y: np.ndarray) -> np.ndarray:
            assert index is not None  # keeps what `coder` is a part of
            return coder.sa_decode(coder.sa_encode(transform.to_code(y)))

        views["ranking"] = coded, transform.to_code
    return views


def _shares(queries: np.ndarray, x: np.ndarray, view: tuple[View, View], k: int) -> np.ndarray:
    """For each query the share of its k nearest that a comparison of views finds, counted by distance: (q,)."""
    nearest = _nearest(queries, x, k)[0][:, -1:]
    as_row, as_query = view
    rows = np.concatenate([as_row(x[at : at + BLOCK]) for at in range(0, len(x), BLOCK)])
    found = _nearest(as_query(queries), rows, k)[1]
    apart = np.stack([((x[f] - q) ** 2).sum(axis=1) for f, q in zip(found, queries, strict=True)])
    return (apart <= nearest * (1 + 1e-4) + 1e-6).mean(axis=1)


def _nearest(queries: np.ndarray, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and places of each query's k nearest, nearest first: (q, k) each, in float32."""
    q = queries.astype(np.float32)
    own = np.einsum("ij,ij->i", q, q)[:, None]
    best, place = np.empty((len(q), 0), np.float32), np.empty((len(q), 0), np.int64)
    for at in range(0, len(x), BLOCK):
        block = x[at : at + BLOCK].astype(np.float32)
        apart = own + np.einsum("ij,ij->i", block, block) - 2 * (q @ block.T)
        best = np.hstack([best, apart])
        place = np.hstack([place, np.broadcast_to(np.arange(at, at + len(block)), apart.shape)])
        if best.shape[1] > k:
            top = np.argpartition(best, k - 1, axis=1)[:, :k]
            best, place = np.take_along_axis(best, top, 1), np.take_along_axis(place, top, 1)
    order = np.argsort(best, axis=1, kind="stable")
    return np.maximum(np.take_along_axis(best, order, 1), 0), np.take_along_axis(place, order, 1)


def promise(
    spec: QuantizerSpec,
    settings: IndexSettings,
    transform: Transform,
    trained: bytes | None,
    x: np.ndarray,
    queries: np.ndarray,
    prospect: Prospect,
) -> None:
    """Raise SifBatchError, saying what can be had, where the sample shows that so few bytes a row miss the target."""
    if prospect.ranking is None or len(queries) < FEWEST_TO_PROMISE:
        return
    view = _views(spec, transform, trained)["ranking"]
    shares = _shares(queries, x, view, prospect.k)
    if lower_and_upper(shares)[1] >= settings.recall:
        return
    raise SifBatchError(
        f"recall@{settings.k} {settings.recall:g} cannot be had at {settings.max_bytes_per_row} bytes a row: "
        f"{prospect.ranking:.3f} is the most, on a sample of {len(x)} rows ({spec.explain()})",
        remedy=f"--recall {math.floor(100 * prospect.ranking) / 100:g}, or --max-bytes-per-row "
        f"{_enough(spec, settings, transform, x, queries)}",
    )


def _enough(
    spec: QuantizerSpec, settings: IndexSettings, transform: Transform, x: np.ndarray, queries: np.ndarray
) -> int:
    """The fewest bytes a row, in steps, whose kept rows reach the target in the sample."""
    fixed = max(spec.bytes_per_row - spec.row_bytes, CODE_BYTES)
    for kept in range(64, spec.dimension, 64):
        tried = spec.model_copy(update={"rows": "int8", "row_dimension": kept})
        shares = _shares(queries, x, _views(tried, transform, None)["ranking"], min(settings.k, len(x)))
        if shares.mean() >= settings.recall:
            return fixed + tried.row_bytes
    form = "float16" if settings.recall > FLOAT16_ABOVE else "int8"
    return fixed + spec.model_copy(update={"rows": form, "row_dimension": 0}).row_bytes

"""The shape of a quantizer: which family, how many cells, how many bytes a row. Pure; nothing is trained here."""

import math
import operator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sif_batch.config import Frozen, IndexSettings
from sif_batch.errors import SifBatchError
from sif_batch.index.rerank_rows import FACTOR, RowForm, row_type, row_width

FLAT_BELOW = 10_000
FLAT_AT_LEAST = 1_000  # below, no other kind is quicker
FLAT_BYTES_PER_MS = 12_000_000  # of float16 rows that a core compares: see docs/decisions.md
BACK_TO_FLAT = 0.8  # of the rows from which on an index is no longer exact: near the line the kind in use stays
RETRAIN_AT = 2.0  # times the rows that the quantizer was trained for
ROWS_PER_CELL = 39  # faiss warns below this many training rows a centroid
REDUCED = 256
DIMENSIONS_PER_CODE = 4  # of 4 bits each: what FastScan reads fastest
MIN_TRAINING = 64
FEWEST_KEPT = 32  # dimensions of a kept row; with fewer the bytes do more in the code
HNSW_LINKS = 32
RABITQ_FACTORS = 8
FLOAT16_ABOVE = 0.995  # recall that 8-bit rows cannot promise

OneFamily = Literal["flat", "ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw"]
BITS: dict[str, tuple[int, ...]] = {"ivf-pq": (4, 8), "ivf-flat": (8, 32), "ivf-rabitq": (), "hnsw": (), "flat": ()}


class QuantizerSpec(Frozen):
    """The shape of a quantizer. rows: the form of the vector that is kept for exact re-ranking."""

    family: OneFamily
    metric: Literal["cosine", "euclidean", "pearson"]
    power: bool = False
    whitening: float = 0.0
    encoder: str
    dimension: int
    rows: RowForm
    row_dimension: int = 0  # dimensions of the kept rows after PCA; 0: all, as they are compared
    reduced: int = 0  # dimensions after PCA that codes are made of
    cells: int = 0  # 0: the family has none
    # Of a PQ, a number of the code each, which components are dealt to. Without any they stay in order, and shapes from
    # before this was known keep their names and releases.
    pieces: int = Field(0, exclude_if=operator.not_)
    bits: int = 0  # of each number of a code
    code_bytes: int = 0

    @property
    def unit_rows(self) -> bool:
        """Whether kept rows are of unit length."""
        return self.metric != "euclidean" and not self.row_dimension

    @property
    def kept_dimension(self) -> int:
        return self.row_dimension or self.dimension

    @property
    def coded(self) -> np.ndarray:
        """The components that a code is made of, in its order: (reduced,) int64.

        A PQ's pieces are dealt them by falling variance, back and forth, so that each has about as much to tell: a
        simple form of the eigenvalue allocation of Ge et al., Optimized Product Quantization, CVPR 2013.
        """
        if not self.pieces:
            return np.arange(self.reduced)
        rounds = np.arange(self.reduced).reshape(-1, self.pieces)
        rounds[1::2] = rounds[1::2, ::-1]
        return rounds.T.ravel()

    @property
    def row_bytes(self) -> int:
        return row_width(self.rows, self.kept_dimension) * row_type(self.rows).itemsize

    @property
    def bytes_per_row(self) -> int:
        """Code and kept row; hnsw: with its links. The 8 bytes of a row's number in an ivf are not counted."""
        links = 2 * HNSW_LINKS * 4 if self.family == "hnsw" else 0
        return self.code_bytes + links + self.row_bytes

    def explain(self) -> str:
        """The shape in one line, for people."""
        rows = {"float16": "float16 rows", "int8": "8-bit rows", "none": "no rows"}[self.rows]
        kept = f"{rows} of {self.row_dimension} of {self.dimension} dimensions" if self.row_dimension else rows
        if self.family == "flat":
            return f"flat: exact, {kept}, {self.bytes_per_row} bytes a row"
        cells = f", {self.cells} cells" if self.cells else ""
        codes = f"{self.code_bytes}-byte codes of {self.reduced} dimensions"
        return f"{self.family}{cells}, {codes}, {kept} for re-ranking, {self.bytes_per_row} bytes a row"


def choose_family(settings: IndexSettings, rows: int, dimension: int, current: str | None) -> OneFamily:
    """Exact below about 10,000 rows, fewer where a query must be quicker, unless asked otherwise; near the line the
    family in use stays."""
    if settings.family != "auto":
        return settings.family
    limit = flat_below(settings.max_query_ms, dimension)
    if current not in (None, "flat"):
        limit = int(BACK_TO_FLAT * limit)
    return "flat" if rows < limit else "ivf-pq"


def flat_below(max_query_ms: float | None, dimension: int) -> int:
    """The rows below which an index is exact: no more than a query has time to compare with."""
    if max_query_ms is None:
        return FLAT_BELOW
    readable = int(max_query_ms * FLAT_BYTES_PER_MS / (2 * dimension))
    return min(FLAT_BELOW, max(FLAT_AT_LEAST, readable))


def choose_spec(settings: IndexSettings, family: str, encoder: str, dimension: int, rows: int) -> QuantizerSpec:
    """The shape for this many rows and bytes a row.

    Raises SifBatchError when there are too few rows to train it, or nothing fits into the bytes.
    """
    check_bits(settings.bits, family)
    common: dict[str, Any] = {"family": family, "metric": settings.metric, "encoder": encoder, "dimension": dimension}
    common |= {"power": settings.power, "whitening": settings.whitening}
    trainable = rows * 15 // 16
    if (family != "flat" or settings.whitening) and trainable < MIN_TRAINING:
        what = f"--family {family}" if family != "flat" else "--whitening"
        raise SifBatchError(
            f"{what} needs at least {MIN_TRAINING * 16 // 15 + 1} usable images, there are {rows}",
            remedy=f"leave {what.split()[0]} out: below 10,000 images the exact index is smaller and faster",
        )
    if family == "flat":
        return _fit(QuantizerSpec(rows="float16", **common), settings)
    reduced = min(REDUCED, dimension, trainable // 2) // DIMENSIONS_PER_CODE * DIMENSIONS_PER_CODE
    bits = settings.bits or {"ivf-pq": 4, "ivf-rabitq": 1}.get(family, 8)
    if family == "ivf-flat" and bits == 32:
        reduced = min(dimension, trainable // 2)
    common["rows"] = "float16" if settings.recall > FLOAT16_ABOVE else "int8"
    if family != "hnsw":
        common["cells"] = 2 ** int(math.log2(max(1.0, min(math.sqrt(rows), trainable / ROWS_PER_CELL))))
    if family == "ivf-pq":
        common["pieces"] = reduced // DIMENSIONS_PER_CODE
    spec = QuantizerSpec(reduced=reduced, bits=bits, code_bytes=code_bytes(family, reduced, bits), **common)
    spec = _fit(spec, settings)
    if family == "ivf-pq" and 2**spec.bits > trainable:
        raise SifBatchError(
            f"a codebook of {2**spec.bits} entries needs at least {2**spec.bits * 16 // 15 + 1} usable images, "
            f"there are {rows}",
            remedy="--bits 4, or more bytes a row" if settings.max_bytes_per_row else "--bits 4",
        )
    return spec


def check_bits(bits: int | None, family: str) -> None:
    if bits is not None and family in BITS and bits not in BITS[family]:
        takes = " or ".join(map(str, BITS[family]))
        raise SifBatchError(
            f"--bits {bits} does not go with --family {family}",
            remedy=f"it takes {takes}" if takes else "--bits auto, or leave it out",
        )


def code_bytes(family: str, reduced: int, bits: int) -> int:
    """Bytes of a row's code without its cell."""
    if family == "ivf-pq":
        return math.ceil(reduced // DIMENSIONS_PER_CODE * bits / 8)
    if family == "ivf-rabitq":
        return math.ceil(reduced / 8) + RABITQ_FACTORS
    return reduced * bits // 8


def _fit(spec: QuantizerSpec, settings: IndexSettings) -> QuantizerSpec:
    """The shape within the bytes asked for: kept rows are cut first, then left out, then the code shrinks."""
    limit = settings.max_bytes_per_row
    if limit is None or spec.bytes_per_row <= limit:
        return spec
    if spec.family == "flat":
        if settings.family == "auto" or not (fewer := (limit - FACTOR) // 4 * 4) >= FEWEST_KEPT:
            exact = settings.family == "auto"  # which loses nothing
            raise _too_few_bytes(spec, limit, spec.dimension * 2 if exact else FEWEST_KEPT + FACTOR)
        return spec.model_copy(update={"rows": "int8", "row_dimension": 0 if fewer >= spec.dimension else fewer})
    left = limit - (spec.bytes_per_row - spec.row_bytes)
    kept = (left - FACTOR) // 4 * 4
    if kept >= spec.dimension:
        return spec.model_copy(update={"rows": "int8"})
    if kept >= FEWEST_KEPT:
        return spec.model_copy(update={"rows": "int8", "row_dimension": kept})
    spec = spec.model_copy(update={"rows": "none"})
    if spec.bytes_per_row <= limit:
        return spec
    if spec.family != "ivf-pq":
        raise _too_few_bytes(spec, limit, spec.bytes_per_row)
    each = math.ceil(spec.reduced / limit)  # 8 bits a number say more than two of 4
    pieces = spec.reduced // each
    return spec.model_copy(update={"bits": 8, "pieces": pieces, "code_bytes": pieces, "reduced": pieces * each})


def _too_few_bytes(spec: QuantizerSpec, limit: int, needs: int) -> SifBatchError:
    return SifBatchError(
        f"{limit} bytes a row hold no {spec.family} index of {spec.dimension} dimensions, {needs} are the fewest",
        remedy=f"--max-bytes-per-row {needs}, or another --family",
    )

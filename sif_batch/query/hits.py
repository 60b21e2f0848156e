"""Hits: what an answer says of each image that it found."""

import base64
import math
from dataclasses import dataclass
from datetime import UTC, date, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.query.image_table import PLAIN, Roster


@dataclass(frozen=True)
class Hit:
    """An image of the release: similarity is the cosine or correlation, or of the metric euclidean 1 / (1 + distance),
    so 1 for the same vector; columns: what is known of it."""

    key: str
    uri: str
    similarity: float
    columns: dict[str, Any]


def make_hits(roster: Roster, rows: np.ndarray, similarities: np.ndarray) -> list[Hit]:
    """Some rows of a release as hits, in their order. rows: (k,) int64; similarities: (k,) float32."""
    table = roster.take(rows, roster.schema.names)
    values = {name: python_values(table[name]) for name in table.column_names}
    found = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return [
        Hit(
            image["key"],
            image["uri"],
            round(float(similarity), 6),
            {name: value for name, value in image.items() if name not in PLAIN},
        )
        for image, similarity in zip(found, similarities, strict=True)
    ]


def python_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """The values of a column as Python has them; times finer than microseconds, which it has not, as text."""
    kind = column.type
    if pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns":
        zone = "Z" if pa.types.is_timestamp(kind) and kind.tz else ""
        plain = column.cast(pa.int64()).cast(pa.timestamp("ns")) if zone else column
        return [None if text is None else text + zone for text in plain.cast(pa.string()).to_pylist()]
    if pa.types.is_timestamp(kind) and kind.tz:  # whether or not this computer has the zones of the world
        plain = column.cast(pa.int64()).cast(pa.timestamp(kind.unit)).to_pylist()
        return [None if value is None else value.replace(tzinfo=UTC) for value in plain]
    return list(column.to_pylist())


def json_value(value: Any) -> Any:
    """A value of a column as JSON has it: decimals, times and numbers that are not finite as text, bytes in base64."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def shown_value(value: Any) -> str:
    """A value of a column for people: bytes as the text that they are, if they are one."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return str(json_value(value))
    return str(value)

"""Hits: what an answer says of each image that it found."""

from dataclasses import dataclass
from typing import Any

import numpy as np

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
    found = roster.take(rows, roster.schema.names).to_pylist()
    return [
        Hit(
            image["key"],
            image["uri"],
            round(float(similarity), 6),
            {name: value for name, value in image.items() if name not in PLAIN},
        )
        for image, similarity in zip(found, similarities, strict=True)
    ]

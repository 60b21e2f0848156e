"""Settings and records: frozen, validated models that ROOT and releases store as JSON."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sif_batch.digests import canonical_json

LAYOUT = 1
Family = Literal["auto", "flat", "ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw"]
Metric = Literal["cosine", "euclidean", "pearson"]


class Frozen(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical(self) -> bytes:
        """The settings as the one JSON text that digests are made of."""
        return canonical_json(self.model_dump(mode="json"))


class Source(Frozen):
    """A named place of images: a directory, or a glob of files or containers, as an absolute path or fsspec URL.

    Of Parquet files: image_column holds the images (None: the only one that can), keep: columns that become fields.
    inventory: Parquet or CSV files that list its entries, so that nobody walks through it.
    """

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    url: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_column: str | None = None
    keep: tuple[str, ...] = ()
    inventory: str | None = None


class IndexSettings(Frozen):
    """What decides the bytes of an index, beside the vectors: kind, similarity and targets.

    recall: of the k nearest, the share that a query is to find; bits: of a code's number (ivf-pq: 4 or 8, ivf-flat:
    8 or 32); power: signed square root first; whitening: exponent, 0 none, 1 full. None: no limit, or the default.
    """

    family: Family = "auto"
    metric: Metric = "cosine"
    power: bool = False
    whitening: float = Field(default=0.0, ge=0, le=1)
    recall: float = Field(default=0.95, gt=0, lt=1)
    k: int = Field(default=10, ge=1, le=100)
    bits: Literal[4, 8, 32] | None = None
    max_bytes_per_row: int | None = Field(default=None, ge=1)
    max_query_ms: float | None = Field(default=None, gt=0)


class GateSettings(Frozen):
    """What a candidate must show before it is published, beside the recall that the index is asked for.

    max_shrink: the share of the last release's images that may be gone.
    """

    max_failures: float = Field(default=0.05, ge=0, le=1)
    max_shrink: float = Field(default=0.5, ge=0, le=1)
    enabled: bool = True


class Int8Settings(Frozen):
    """What int8 must show before an encoder is lowered to it. labels: judged by their mAP, else by neighbours kept."""

    min_kept: float = Field(default=0.9, ge=0, le=1)
    max_map_loss: float = Field(default=0.003, ge=0, le=1)
    labels: Literal["folder"] | None = None


class RootRecord(Frozen):
    """root.json: what ROOT has chosen once, so that a new default or other hardware never changes it.

    metadata: where a table lies whose columns join the images by key.
    """

    layout: int = LAYOUT
    sources: tuple[Source, ...]
    encoder: str
    index: IndexSettings
    metadata: str | None = None

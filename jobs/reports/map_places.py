"""The map: a sample of a release in two dimensions, by t-SNE and by PCA, with a small picture of each image.

A map begins with the last one where most of the sample is the same: what was there stays in its place, and what is new
goes among its nearest neighbours. So the map of a collection changes as little as the collection. Needs the extra
`report`.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sif_batch.failures import ImageError
from sif_batch.images.thumbnails import thumbnail
from sif_batch.query.index import Index
from sif_batch.sources.originals import read_uri

SEED = 0
COMPONENTS = 50  # that t-SNE begins with
PERPLEXITY = 30.0
KEPT_FROM = 0.9  # share of the sample that must be the same for places to be kept
PLACED_BY = 5  # nearest neighbours
TILE, SMALL_TILE, MANY = 64, 32, 10_000  # pixels; the small one where there are more points
READERS = 4
SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("sha256", pa.binary(32)),
        ("label", pa.large_string()),
        *((f"{way}_{axis}", pa.float32()) for way in ("tsne", "pca") for axis in "xy"),
        ("tile", pa.binary()),  # WebP; null where the image cannot be read
    ]
)


@dataclass(frozen=True)
class Map:
    """points: SCHEMA, in order of rows; moved: False where the places of the last map were kept."""

    encoder: str
    points: pa.Table
    moved: bool = True

    def __len__(self) -> int:
        return len(self.points)

    def places(self, way: str) -> np.ndarray:
        """(n, 2) float32 of `tsne` or `pca`."""
        return np.stack([self.points[f"{way}_{axis}"].to_numpy() for axis in "xy"], axis=1)

    def encode(self) -> bytes:
        sink = io.BytesIO()
        pq.write_table(self.points.replace_schema_metadata({b"encoder": self.encoder.encode()}), sink)
        return sink.getvalue()

    @staticmethod
    def decode(data: bytes) -> "Map":
        table = pq.read_table(pa.BufferReader(data))
        encoder = (table.schema.metadata or {}).get(b"encoder", b"").decode()
        return Map(encoder, table.replace_schema_metadata(None).cast(SCHEMA))


def make_map(
    index: Index,
    size: int,
    label: str | None = "folder",
    last: Map | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Map:
    """The map of a uniform sample: the first rows in order of hash. last: an earlier map, whose places are kept."""
    n = min(size, len(index))
    encoder = str(index.manifest["quantizer"]["encoder"])
    vectors = index.vectors_of(np.arange(n))
    table = pa.table({name: index.column(name).slice(0, n) for name in ("key", "sha256", "uri")})
    known = _known(table, last) if last is not None and last.encoder == encoder else np.full(n, -1)
    pca = reduce_to(vectors, min(COMPONENTS, *vectors.shape))
    stays = last is not None and (known >= 0).mean() >= KEPT_FROM and n <= len(last) / KEPT_FROM
    if stays:
        assert last is not None
        tsne = place_among(vectors, known, last.places("tsne"))
    else:
        say(f"map: placing {n} images by t-SNE")
        tsne = place_by_tsne(pca)
    side = TILE if n <= MANY else SMALL_TILE
    say(f"map: {n} pictures")
    tiles = _tiles(table["uri"].to_pylist(), known, last, side)
    columns = [
        table["key"],
        table["sha256"],
        pa.array(labels_of(index, n, label), pa.large_string()),
        *(pa.array(places[:, axis], pa.float32()) for places in (tsne, pca) for axis in (0, 1)),
        pa.array(tiles, pa.binary()),
    ]
    return Map(encoder, pa.table(columns, schema=SCHEMA), moved=not stays)


def labels_of(index: Index, n: int, label: str | None) -> list[str | None]:
    """What the points are coloured by: `folder` is its last component; None: nothing."""
    if label is None:
        return [None] * n
    values = index.column(label).slice(0, n).to_pylist()
    if label == "folder":
        return [value.rpartition("/")[2] for value in values]
    return [None if value is None else str(value) for value in values]


def _known(table: pa.Table, last: Map) -> np.ndarray:
    """For each row its place in the last map, -1 for none: the same key and bytes. (n,) int64."""
    places = {
        (key, sha256): i
        for i, (key, sha256) in enumerate(
            zip(last.points["key"].to_pylist(), last.points["sha256"].to_pylist(), strict=True)
        )
    }
    named = zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    return np.array([places.get(name, -1) for name in named], np.int64)


def reduce_to(vectors: np.ndarray, components: int) -> np.ndarray:
    """Vectors (n, d) on their first principal components, each with its largest entry positive: (n, >= 2) float32."""
    x = vectors - vectors.mean(axis=0, dtype=np.float64)
    if len(x) < x.shape[1]:
        values, found = np.linalg.eigh(x @ x.T)
        scores = found * np.sqrt(np.maximum(values, 0))
    else:
        scores = x @ np.linalg.eigh(x.T @ x)[1]
    scores = scores[:, ::-1][:, :components]
    scores = scores * np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])])
    return np.pad(scores, ((0, 0), (0, max(0, 2 - components)))).astype(np.float32)


def place_by_tsne(x: np.ndarray) -> np.ndarray:
    """(n, d) to (n, 2) float32 by t-SNE (van der Maaten, Hinton 2008), from the first two components."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(x) < 5:
        return x[:, :2].copy()
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    begin = x[:, :2] / max(1e-12, float(x[:, 0].std())) * 1e-4
    with threadpool_limits(1):  # beside a busy neighbour spinning threads take many times as long
        found = TSNE(2, perplexity=perplexity, init=begin, random_state=SEED, max_iter=500, n_jobs=1).fit_transform(x)
    return np.asarray(found, np.float32)


def place_among(vectors: np.ndarray, known: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Places (n, 2) float32: of a known row its own, of another the mean of its nearest known rows'."""
    found = np.empty((len(vectors), 2), np.float32)
    stays = np.flatnonzero(known >= 0)
    found[stays] = places[known[stays]]
    for row in np.flatnonzero(known < 0):
        nearest = stays[np.argsort(-(vectors[stays] @ vectors[row]), kind="stable")[:PLACED_BY]]
        found[row] = found[nearest].mean(axis=0)
    return found


def _tiles(uris: Sequence[str], known: np.ndarray, last: Map | None, side: int) -> list[bytes | None]:
    """A small WebP of each image, those of the last map again where they have the same size."""
    tiles: list[bytes | None] = [None] * len(uris)
    if last is not None and (len(last) <= MANY) == (side == TILE):
        before = last.points["tile"]
        for row in np.flatnonzero(known >= 0).tolist():
            tiles[row] = before[int(known[row])].as_py()
    missing = [row for row, tile in enumerate(tiles) if tile is None]
    with ThreadPoolExecutor(READERS) as pool:
        for row, tile in zip(missing, pool.map(lambda row: _tile(uris[row], side), missing), strict=True):
            tiles[row] = tile
    return tiles


def _tile(uri: str, side: int) -> bytes | None:
    """The image as a WebP of `side` pixels at most; None where it cannot be read."""
    try:
        small = thumbnail(read_uri(uri), side)
    except (ImageError, OSError):
        return None
    sink = io.BytesIO()
    small.save(sink, "WEBP", quality=70, method=2)
    return sink.getvalue()


def open_tile(tile: bytes | None) -> Image.Image | None:
    return None if tile is None else Image.open(io.BytesIO(tile)).convert("RGB")

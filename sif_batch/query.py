"""Ask a release what looks like this. Needs numpy, pyarrow, faiss, onnxruntime, Pillow and fsspec; no torch, no Beam.

from sif_batch.query import Index
index = Index.open("s3://bucket/root")
for hit in index.search(image="query.jpg", k=10):
    print(hit.uri, hit.similarity)
"""

import functools
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from sif_batch.config import SifBatchError, canonical_json
from sif_batch.encoders import Encoder, read_spec
from sif_batch.encoders.spec import in_float
from sif_batch.failures import ImageError
from sif_batch.history import read_top
from sif_batch.images import MAX_BYTES, checked_rgb
from sif_batch.kernels import computes_int8, import_faiss, project
from sif_batch.quantizer import normalise
from sif_batch.release import MANIFEST, check_release, damaged
from sif_batch.sources.names import hash_of, local_of
from sif_batch.storage import Store, digest, open_filesystem, sha256_of

BLOCK = 8192
SCORES_AT_ONCE = 2**24  # ranked rows in memory: queries x k
SPARE = 32  # rows beyond k that a rough comparison keeps, so that rounding and ties decide nothing
PER_HIT = 4  # codes scanned and rows re-ranked for each hit asked for, where that is more than the operating point
PLAIN = ("key", "hash", "uri", "sha256")  # what is no column of a hit


@dataclass(frozen=True)
class Hit:
    """An image of the release: similarity is the cosine, 1 for the same direction; columns: what is known of it."""

    key: str
    uri: str
    similarity: float
    columns: dict[str, Any]


@dataclass(frozen=True)
class OperatingPoint:
    """How hard to look: cells probed in each segment, and candidates re-ranked from the rows kept."""

    cells: int
    rerank: int


@dataclass(frozen=True)
class _Segment:
    start: int
    rows: np.ndarray  # (n, d) as kept, mapped
    ivf: Any  # faiss index, None: exact


class Index:
    """An open release. Safe to ask from several threads."""

    def __init__(self, store: Store, folder: str, manifest: dict[str, Any]):
        self.manifest = manifest
        self.release = digest(canonical_json(manifest))
        self._store, self._folder = store, folder
        self._place: str | None = None  # where it was opened
        self._copies = None if store.local else tempfile.TemporaryDirectory(prefix="sif-batch-")
        local = self._local
        quantizer = manifest["quantizer"]
        self._exact = quantizer["family"] == "flat"
        self._cells = quantizer["cells"]
        if not self._exact:
            self._mean, self._components = (np.load(local(f"quantizer/{n}.npy")) for n in ("mean", "components"))
        self._segments = []
        start = 0
        for number in range(manifest["segments"]):
            rows = np.load(local(f"segments/{number:03d}/rows.npy"), mmap_mode="r")
            ivf = None if self._exact else self._read_ivf(f"segments/{number:03d}/index.faiss")
            self._segments.append(_Segment(start, rows, ivf))
            start += len(rows)
        self._images = pa.ipc.open_file(pa.memory_map(str(local("images.arrow")))).read_all()
        self._hashes = self._images["hash"].to_numpy()
        self.point = OperatingPoint(**manifest["operating_point"]) if manifest.get("operating_point") else None

    @staticmethod
    def open(url: str | os.PathLike[str]) -> "Index":
        """Open the current release of a ROOT, or a release: a path or fsspec URL.

        The sizes of all files and the checksums of the faiss indexes are compared with release.json.
        """
        store, folder = find_release(os.fspath(url))
        try:
            opened = Index(store, folder, check_release(store, folder))
            opened._place = os.fspath(url)
            return opened
        except SifBatchError:
            if find_release(os.fspath(url))[1] != folder:  # another was published, and this one removed, meanwhile
                return Index.open(url)
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise SifBatchError(
                f"{store.path(folder)}: the release is damaged ({type(error).__name__}: {error})",
                remedy="sif-batch verify lists all damage; open an older release or run again",
            ) from error

    def refresh(self) -> "Index":
        """The current release of the ROOT that this one was opened from: itself, or a new Index beside it.

        `index = index.refresh()` switches at once; whoever still asks the old one gets its answers whole.
        """
        if not self._folder or self._place is None:
            return self
        folder = find_release(self._place)[1]
        return self if folder == self._folder else Index.open(self._place)

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def dimension(self) -> int:
        return int(self.manifest["quantizer"]["dimension"])

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder that the release carries, loaded at the first image: of int8 the network in float, with a
        warning, where the CPU cannot compute int8."""
        folder = f"{self._folder}/encoder" if self._folder else "encoder"
        spec = read_spec(self._store, folder)
        if spec.precision == "int8" and not computes_int8():
            warnings.warn("this CPU has no VNNI: images are embedded in float, not in int8", stacklevel=2)
            return Encoder(in_float(spec), self._local("encoder/fp32.onnx"))
        return Encoder(spec, self._local("encoder/model.onnx"))

    def search(
        self,
        *,
        image: str | os.PathLike[str] | bytes | Image.Image | None = None,
        images: Sequence[str | os.PathLike[str] | bytes | Image.Image] | None = None,
        vector: np.ndarray | Sequence[float] | None = None,
        key: str | None = None,
        k: int = 10,
    ) -> Any:
        """The k most similar images, best first: a list of Hit, for `images` a list of such lists.

        Exactly one of: image (path or fsspec URL, encoded bytes, or PIL image), images, vector ((dimension,), as
        the encoder gives it), key (of an image in the release, which is itself left out).
        """
        given = [name for name, value in locals().items() if name not in ("self", "k") and value is not None]
        if len(given) != 1:
            raise SifBatchError(
                f"search takes one of image, images, vector and key; given: {', '.join(given) or 'none'}"
            )
        if images is not None:
            return [self._hits(*found) for found in self.ranked(self.embed(images), k)]
        if key is not None:
            row = self.row_of(key)
            return self._hits(*self.ranked(self.vectors_of(np.array([row])), k, np.array([row]))[0])
        vectors = self.embed([image]) if image is not None else np.asarray(vector, np.float32)[None]
        return self._hits(*self.ranked(vectors, k)[0])

    def search_vectors(self, x: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """x: (n, dimension) float32. Returns keys, (n, k) object, and similarities, (n, k) float32; None and NaN
        where there are fewer than k."""
        ranked = self.ranked(np.asarray(x), k)
        keys, similarities = np.full((len(x), k), None, object), np.full((len(x), k), np.nan, np.float32)
        for i, (rows, found) in enumerate(ranked):
            keys[i, : len(rows)] = self._images["key"].take(pa.array(rows)).to_pylist()
            similarities[i, : len(rows)] = found
        return keys, similarities

    def embed(self, images: Sequence[str | os.PathLike[str] | bytes | Image.Image]) -> np.ndarray:
        """The encoder's vectors of some images: (n, dimension) float32. An image that cannot be used raises."""
        if not len(images):
            return np.empty((0, self.dimension), np.float32)
        return self.encoder.embed(np.stack([self._pixels(image) for image in images]))

    def row_of(self, key: str) -> int:
        """The row of an image by its key."""
        wanted = np.uint64(hash_of(key))
        for row in range(*(int(np.searchsorted(self._hashes, wanted, side)) for side in ("left", "right"))):  # type: ignore[call-overload]
            if self._images["key"][row].as_py() == key:
                return row
        raise SifBatchError(
            f"no image of the release has the key {key!r}", remedy="keys look like source/folder/name.jpg"
        )

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """The kept vectors of some rows at unit length: (n, dimension) float32."""
        vectors = np.empty((len(rows), self.dimension), np.float32)
        for segment in self._segments:
            mine = np.flatnonzero((rows >= segment.start) & (rows < segment.start + len(segment.rows)))
            vectors[mine] = _unit(segment.rows[rows[mine] - segment.start])
        return vectors

    def kept_rows(self) -> list[np.ndarray]:
        """The rows kept for re-ranking, segment by segment, mapped."""
        return [segment.rows for segment in self._segments]

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the images, in order of rows: key, uri, folder, ..."""
        if name not in self._images.column_names:
            has = [column for column in self._images.column_names if column not in PLAIN]
            raise SifBatchError(f"the release has no column {name!r}", remedy=f"it has: {', '.join(has)}")
        return self._images[name]

    def ranked(
        self, vectors: np.ndarray, k: int, without: np.ndarray | None = None, point: OperatingPoint | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each vector the rows and similarities of its k nearest, best first, equal ones by row.

        vectors: (n, dimension); without: (n,) a row to leave out for each, -1 for none; point: the operating point,
        by default the release's.
        """
        if k < 1:
            raise SifBatchError(f"k is {k}, expected at least 1")
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise SifBatchError(f"a query has shape {vectors.shape[1:]}, expected ({self.dimension},)")
        if not np.isfinite(vectors).all():
            raise SifBatchError("a query vector is not finite")
        queries = normalise(vectors).astype(np.float32)
        without = np.full(len(queries), -1) if without is None else without
        wanted = min(k + 1, len(self))  # one more, for the row to leave out
        exhaustive, point = self._effort(wanted, point or self.point)
        found = []
        at_once = max(1, min(256, SCORES_AT_ONCE // wanted))
        for start in range(0, len(queries), at_once):
            block = queries[start : start + at_once]
            ranked = self._scan(block, wanted) if exhaustive else self._probe(block, wanted, point)
            for (rows, similarities), left_out in zip(ranked, without[start : start + at_once], strict=True):
                kept = rows != left_out
                found.append((rows[kept][:k], similarities[kept][:k]))
        return found

    def _effort(self, k: int, point: OperatingPoint | None) -> tuple[bool, OperatingPoint]:
        """Whether to compare with every row, and the operating point that k needs at least."""
        if self._exact or point is None:
            return True, OperatingPoint(0, 0)
        rows = len(self)
        cells = min(self._cells, max(point.cells, math.ceil(PER_HIT * k * self._cells / rows)))
        rerank = min(rows, max(point.rerank, PER_HIT * k))
        return rerank == rows and cells == self._cells, OperatingPoint(cells, rerank)

    def _scan(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Compare (n, d) queries with every kept row: all at once where most are wanted, else roughly first."""
        at_once = PER_HIT * k >= len(self)
        kept = k if at_once else k + SPARE
        rows = np.empty((len(queries), 0), np.int64)
        best = np.empty((len(queries), 0), np.float32)
        for segment in self._segments:
            for start in range(0, len(segment.rows), BLOCK):
                unit = _unit(segment.rows[start : start + BLOCK])
                similarities = project(unit, queries.T.astype(np.float64)).T if at_once else queries @ unit.T
                numbers = np.arange(segment.start + start, segment.start + start + similarities.shape[1])
                rows = np.hstack([rows, np.broadcast_to(numbers, similarities.shape)])
                best = np.hstack([best, similarities])
                if best.shape[1] > kept:
                    top = np.argpartition(-best, kept - 1, axis=1)[:, :kept]
                    rows, best = np.take_along_axis(rows, top, 1), np.take_along_axis(best, top, 1)
        if not at_once:
            best = np.stack([self._similarities(q, r) for q, r in zip(queries, rows, strict=True)])
        ordered = (_in_order(r, s) for r, s in zip(rows, best, strict=True))
        return [(r[:k], s[:k]) for r, s in ordered]

    def _similarities(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The query's similarity to some rows, (n,) float32, each one's bits independent of the others."""
        return np.einsum("ij,j->i", self.vectors_of(rows).astype(np.float64), query.astype(np.float64)).astype(
            np.float32
        )

    def _probe(self, queries: np.ndarray, k: int, point: OperatingPoint) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ask the codes of each segment for candidates and re-rank these from the kept rows."""
        faiss = import_faiss()
        reduced = ((queries - self._mean) @ self._components).astype(np.float32)
        found: list[list[np.ndarray]] = [[] for _ in queries]
        for segment in self._segments:
            candidates = min(point.rerank, len(segment.rows))
            if not candidates:
                continue
            parameters = faiss.SearchParametersIVF(nprobe=point.cells)
            _, ids = segment.ivf.search(reduced, candidates, params=parameters)
            for i, candidate in enumerate(ids):
                found[i].append(candidate[(candidate >= 0) & (candidate < len(segment.rows))] + segment.start)
        results = []
        for query, candidates_of in zip(queries, found, strict=True):
            rows = np.concatenate(candidates_of) if candidates_of else np.empty(0, np.int64)
            rows, similarities = _in_order(rows, self._similarities(query, rows))
            results.append((rows[:k], similarities[:k]))
        return results

    def codes_scanned(self, vectors: np.ndarray, cells: int) -> float:
        """The mean number of codes that a query compares with when it probes so many cells a segment."""
        reduced = ((normalise(vectors) - self._mean) @ self._components).astype(np.float32)
        total = 0
        for segment in self._segments:
            _, probed = segment.ivf.quantizer.search(reduced, cells)
            sizes = np.array([segment.ivf.invlists.list_size(cell) for cell in range(self._cells)])
            total += int(sizes[probed[probed >= 0]].sum())
        return total / max(1, len(vectors))

    def _hits(self, rows: np.ndarray, similarities: np.ndarray) -> list[Hit]:
        found = self._images.take(pa.array(rows)).to_pylist()
        return [
            Hit(
                image["key"],
                image["uri"],
                round(float(similarity), 6),
                {name: value for name, value in image.items() if name not in PLAIN},
            )
            for image, similarity in zip(found, similarities, strict=True)
        ]

    def _local(self, name: str) -> Path:
        """A local path of a file of the release; fetched once where the release is not local."""
        into = Path(self._copies.name) if self._copies else Path()
        return self._store.fetch(f"{self._folder}/{name}" if self._folder else name, into)

    def _read_ivf(self, name: str) -> Any:
        """A faiss index, its checksum compared first: most flipped bits in one open silently."""
        path = self._local(name)
        files = self.manifest.get("files")  # none yet where a candidate is measured
        if files and sha256_of(path) != files[name]["sha256"]:
            raise damaged(self._store.path(f"{self._folder}/{name}" if self._folder else name))
        return import_faiss().read_index(str(path))

    def _pixels(self, image: str | os.PathLike[str] | bytes | Image.Image) -> np.ndarray:
        name = "the query"
        try:
            if isinstance(image, Image.Image):
                return self.encoder.prepare(checked_rgb(image))
            if not isinstance(image, bytes):
                name = os.fspath(image)
                image = _read(name)
            return self.encoder.read_image(image)[0]
        except ImageError as error:
            raise SifBatchError(f"{name}: not usable as an image: {error.kind} ({error})") from error


def find_release(url: str) -> tuple[Store, str]:
    """The store of a ROOT or release, and the folder in it of the release to open: history's top, or itself."""
    store = Store(url)
    if store.exists(MANIFEST):
        return store, ""
    if not store.exists("root.json"):
        raise SifBatchError(
            f"{store.url}: neither a ROOT nor a release (it holds no root.json or release.json)",
            remedy="give the ROOT that sif-batch run wrote, or a folder in its releases/",
        )
    top = read_top(store)
    if top is None:
        raise SifBatchError(f"{store.url}: no release is published yet", remedy=f"sif-batch run {store.url}")
    return store, f"releases/{top['release']}"


def _unit(rows: np.ndarray) -> np.ndarray:
    """Kept rows of any form as unit vectors, float32."""
    x = np.asarray(rows, np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def _in_order(rows: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarities = np.clip(similarities, -1, 1)
    order = np.lexsort((rows, -similarities))
    return rows[order], similarities[order]


def _read(name: str) -> bytes:
    try:
        path = local_of(name)
        if os.path.lexists(path) and not os.path.isfile(path):
            raise SifBatchError(f"{name}: cannot be read (it is no file)", remedy="give an image file, or a URL of one")
        fs, path = (open_filesystem(name)[0], path) if os.path.lexists(path) else open_filesystem(name)
        if fs.size(path) > MAX_BYTES:
            raise SifBatchError(f"{name}: {fs.size(path)} bytes, the limit is {MAX_BYTES}")
        return bytes(fs.cat_file(path))
    except OSError as error:
        raise SifBatchError(
            f"{name}: cannot be read ({error.strerror or error})", remedy="check the path of the image"
        ) from error

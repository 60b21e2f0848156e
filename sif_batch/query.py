"""Ask a release what looks like this. Needs numpy, pyarrow, faiss, onnxruntime, Pillow and fsspec; no torch, no Beam.

from sif_batch.query import Index
index = Index.open("s3://bucket/root")
for hit in index.search(image="query.jpg", k=10):
    print(hit.uri, hit.similarity)
"""

import bisect
import functools
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from sif_batch.config import SifBatchError, canonical_json
from sif_batch.copies import Copies
from sif_batch.encoders import Encoder, read_spec
from sif_batch.encoders.spec import in_float
from sif_batch.failures import ImageError
from sif_batch.history import read_top
from sif_batch.images import MAX_BYTES, checked_rgb
from sif_batch.kernels import computes_int8, import_faiss
from sif_batch.quantizer import ARRAYS, transform_of
from sif_batch.release import MANIFEST, check_release, damaged, shape_of
from sif_batch.rows import row_type, vectors_of_rows
from sif_batch.segments import OperatingPoint, Ranked, Segment, Segments
from sif_batch.sources.names import hash_of, local_of
from sif_batch.storage import Store, digest, open_filesystem, sha256_of
from sif_batch.transform import SIMILARITY

SCORES_AT_ONCE = 2**24  # ranked rows in memory: queries x k
PER_HIT = 4  # codes scanned and rows re-ranked for each hit asked for, where that is more than the operating point
PLAIN = ("key", "hash", "uri", "sha256")  # what is no column of a hit


@dataclass(frozen=True)
class Hit:
    """An image of the release: similarity is the cosine or correlation, or of the metric euclidean 1 / (1 + distance),
    so 1 for the same vector; columns: what is known of it."""

    key: str
    uri: str
    similarity: float
    columns: dict[str, Any]


class Index:
    """An open release. Safe to ask from several threads."""

    def __init__(self, store: Store, folder: str, manifest: dict[str, Any]):
        self.manifest = manifest
        self.release = digest(canonical_json(manifest))
        self._store, self._folder = store, folder
        self._place: str | None = None  # where it was opened
        self._copies = None if store.local else Copies(store, folder, self.release, manifest["files"])
        local = self._local
        self.spec = shape_of(manifest)
        trained = self.spec.family != "flat" or self.spec.whitening or self.spec.row_dimension
        arrays = [np.load(self._checked(f"quantizer/{name}.npy")) for name in ARRAYS] if trained else []
        self.transform = transform_of(self.spec, *arrays)
        self._reducer = None
        if self.spec.reduced and not self.spec.whitening:
            matrix = self.transform.components[:, : self.spec.reduced]  # type: ignore[index]
            self._reducer = matrix.astype(np.float32), (self.transform.mean @ matrix).astype(np.float32)
        opened, start = [], 0
        for number in range(manifest["segments"]):
            segment = self._open_segment(f"segments/{number:03d}", start)
            opened.append(segment)
            start += segment.size
        self.segments = Segments(opened, self.spec.unit_rows, self.spec.kept_dimension)
        self._open_images(local("images.arrow"))
        if start != manifest["rows"] or len(self) != start:
            raise ValueError(f"{start} rows in segments, {len(self)} images, {manifest['rows']} in release.json")
        self.point = OperatingPoint(**manifest["operating_point"]) if manifest.get("operating_point") else None

    def _open_segment(self, folder: str, start: int) -> Segment:
        index: Any = None if self.spec.family == "flat" else self._read_index(f"{folder}/index.faiss")
        if self.spec.rows == "none":
            return Segment(start, int(index.ntotal), None, index)
        path = self._local(f"{folder}/rows.npy")
        rows = np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
        kind = row_type(self.spec.rows)
        if rows.dtype != kind or rows.shape[1:] != (self.spec.row_bytes // kind.itemsize,):
            raise ValueError(f"{folder}/rows.npy holds {rows.shape} of {rows.dtype}")
        if index is not None and index.ntotal != len(rows):
            raise ValueError(f"{folder}: {index.ntotal} codes, {len(rows)} rows")
        return Segment(start, len(rows), np.asarray(rows), index)

    def _open_images(self, path: Path) -> None:
        """Map images.arrow; what its batches hold is checked as each is first looked at."""
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._batch_starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._schema: pa.Schema = file.schema
        self._sound: set[int] = set()

    def _batch(self, number: int) -> pa.RecordBatch:
        """A batch of images. Damaged offsets in it would end the process when they are followed."""
        if number not in self._sound:
            try:
                self._batches[number].validate(full=True)
            except pa.ArrowException as error:
                raise damaged(self._path("images.arrow")) from error
            self._sound.add(number)
        return self._batches[number]

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
        except Exception as error:  # whatever a damaged file makes its reader raise
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
        return int(self._batch_starts[-1])

    @property
    def dimension(self) -> int:
        return self.spec.dimension

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
            return self._hits(*self.neighbours_of(np.array([self.row_of(key)]), k)[0])
        vectors = self.embed([image]) if image is not None else np.asarray(vector, np.float32)[None]
        return self._hits(*self.ranked(vectors, k)[0])

    def search_vectors(self, x: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """x: (n, dimension) float32. Returns keys, (n, k) object, and similarities, (n, k) float32; None and NaN
        where there are fewer than k."""
        ranked = self.ranked(np.asarray(x), k)
        keys, similarities = np.full((len(x), k), None, object), np.full((len(x), k), np.nan, np.float32)
        for i, (rows, found) in enumerate(ranked):
            keys[i, : len(rows)] = self._take(rows, ["key"])["key"].to_pylist()
            similarities[i, : len(rows)] = found
        return keys, similarities

    def embed(self, images: Sequence[str | os.PathLike[str] | bytes | Image.Image]) -> np.ndarray:
        """The encoder's vectors of some images: (n, dimension) float32. An image that cannot be used raises."""
        if not len(images):
            return np.empty((0, self.dimension), np.float32)
        return self.encoder.embed(np.stack([self._pixels(image) for image in images]))

    def row_of(self, key: str) -> int:
        """The row of an image by its key."""
        wanted = hash_of(key)
        firsts = [batch["hash"][0].as_py() if len(batch) else 0 for batch in self._batches]
        for number in range(max(0, bisect.bisect_left(firsts, wanted) - 1), bisect.bisect_right(firsts, wanted)):
            batch = self._batch(number)
            hashes = batch["hash"].to_numpy()
            for place in np.flatnonzero(hashes == np.uint64(wanted)).tolist():
                if batch["key"][place].as_py() == key:
                    return int(self._batch_starts[number]) + place
        raise SifBatchError(
            f"no image of the release has the key {key!r}", remedy="keys look like source/folder/name.jpg"
        )

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """Some rows as they are compared: (n, ...) float32, of rows kept at fewer dimensions as far as these tell."""
        if not self.segments.keeps_rows:
            raise SifBatchError(
                "this release keeps codes alone, no rows to ask with", remedy="ask with the image itself"
            )
        vectors = vectors_of_rows(self.segments.take(rows), self.spec.unit_rows)
        return self.transform.restore(vectors).astype(np.float32) if self.spec.row_dimension else vectors

    def kept_rows(self) -> list[np.ndarray]:
        """The rows kept for re-ranking, segment by segment, mapped; none where codes alone are kept."""
        return [segment.rows for segment in self.segments.all if segment.rows is not None]

    @property
    def columns(self) -> list[str]:
        """The names that `column` takes."""
        return list(self._schema.names)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the images, in order of rows: key, uri, folder, ..."""
        if name not in self._schema.names:
            has = [column for column in self._schema.names if column not in PLAIN]
            raise SifBatchError(f"the release has no column {name!r}", remedy=f"it has: {', '.join(has)}")
        batches = [self._batch(number) for number in range(len(self._batches))]
        return pa.chunked_array([batch[name] for batch in batches], self._schema.field(name).type)

    def ranked(
        self, vectors: np.ndarray, k: int, without: np.ndarray | None = None, point: OperatingPoint | None = None
    ) -> Ranked:
        """For each vector the rows and similarities of its k nearest, best first, equal ones by row.

        vectors: (n, dimension), as the encoder gives them; without: (n,) a row to leave out for each, -1 for none;
        point: the operating point, by default the release's.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise SifBatchError(f"a query has shape {vectors.shape[1:]}, expected ({self.dimension},)")
        if not np.isfinite(vectors).all():
            raise SifBatchError("a query vector is not finite")
        return self._ranked(self.transform.apply(vectors), k, without, point)

    def neighbours_of(self, rows: np.ndarray, k: int, point: OperatingPoint | None = None) -> Ranked:
        """As `ranked`, asked with some rows of the release, each left out of its own answer."""
        return self._ranked(self.vectors_of(rows).astype(np.float64), k, rows, point)

    def _ranked(self, y: np.ndarray, k: int, without: np.ndarray | None, point: OperatingPoint | None) -> Ranked:
        """`ranked` for compared vectors, (n, ...) float64."""
        if k < 1:
            raise SifBatchError(f"k is {k}, expected at least 1")
        if not len(self):
            return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(y)
        wanted = min(k + 1, len(self))  # one more, for the row to leave out
        exhaustive, point = self._effort(wanted, point or self.point)
        found: Ranked = []
        at_once = max(1, min(256, SCORES_AT_ONCE // wanted))
        for start in range(0, len(y), at_once):
            block = y[start : start + at_once]
            queries = self.kept_view(block)
            if exhaustive:
                ranked = self.segments.scan(queries, wanted, PER_HIT * wanted >= len(self))
            else:
                ranked = self.segments.probe(self.reduced(block), queries, wanted, point)
            for i, (rows, apart) in enumerate(ranked, start):
                kept = slice(k) if without is None else np.flatnonzero(rows != without[i])[:k]
                found.append((rows[kept], SIMILARITY[self.spec.metric](apart[kept]).astype(np.float32)))
        return found

    def reduced(self, y: np.ndarray) -> np.ndarray:
        """Compared vectors as codes are asked: (n, reduced) float32."""
        if self._reducer is None:
            return np.ascontiguousarray(y[:, : self.spec.reduced], np.float32)
        matrix, offset = self._reducer
        return y.astype(np.float32) @ matrix - offset

    def kept_view(self, y: np.ndarray) -> np.ndarray:
        """Compared vectors as kept rows are asked: (n, kept_dimension) float32."""
        cut = self.spec.row_dimension
        return self.transform.reduce(y, cut) if cut else y.astype(np.float32)

    def _effort(self, k: int, point: OperatingPoint | None) -> tuple[bool, OperatingPoint]:
        """Whether to compare with every row, and the operating point that k needs at least."""
        if self.spec.family == "flat" or (point is None and self.segments.keeps_rows):
            return True, OperatingPoint(0, 0)
        rows, all_cells = len(self), self.spec.cells or len(self)
        point = point or OperatingPoint(all_cells, rows)
        cells = min(all_cells, max(point.cells, math.ceil(PER_HIT * k * all_cells / rows)))
        rerank = min(rows, max(point.rerank, PER_HIT * k))
        return rerank == rows and cells == all_cells and self.segments.keeps_rows, OperatingPoint(cells, rerank)

    def codes_scanned(self, vectors: np.ndarray, point: OperatingPoint) -> float:
        """The mean number of codes that a query compares with at an operating point. vectors: as for `ranked`."""
        return self.segments.codes_scanned(self.reduced(self.transform.apply(vectors)), point)

    def _take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Some columns of some images, in the order of `rows`."""
        number = np.searchsorted(self._batch_starts, rows, side="right") - 1
        taken, places = [], []
        for batch in np.unique(number).tolist():
            mine = np.flatnonzero(number == batch)
            within = pa.array(rows[mine] - self._batch_starts[batch])
            taken.append(self._batch(batch).select(list(columns)).take(within))
            places.append(mine)
        if not taken:
            return self._schema.empty_table().select(list(columns))
        table = pa.Table.from_batches(taken)
        return table.take(pa.array(np.argsort(np.concatenate(places)))) if len(taken) > 1 else table

    def _hits(self, rows: np.ndarray, similarities: np.ndarray) -> list[Hit]:
        found = self._take(rows, self._schema.names).to_pylist()
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
        return self._copies.path(name) if self._copies else Path(self._path(name))

    def _path(self, name: str) -> str:
        return self._store.path(f"{self._folder}/{name}" if self._folder else name)

    def _checked(self, name: str) -> Path:
        """The local path of a file, its checksum compared first."""
        path = self._local(name)
        files = self.manifest.get("files")  # none yet where a candidate is measured
        if files and sha256_of(path) != files[name]["sha256"]:
            if self._copies is None:
                raise damaged(self._path(name))
            path = self._copies.path(name, again=True)
        return path

    def _read_index(self, name: str) -> Any:
        """A faiss index; most flipped bits in one would open silently."""
        return import_faiss().read_index(str(self._checked(name)))

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

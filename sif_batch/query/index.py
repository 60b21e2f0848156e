"""Ask a release what looks like this. Needs numpy, pyarrow, faiss, onnxruntime, Pillow and fsspec; no torch, no Beam.

from sif_batch.query import Index
index = Index.open("s3://bucket/root")
for hit in index.search(image="query.jpg", k=10):
    print(hit.uri, hit.similarity)
"""

import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from sif_batch.digests import canonical_json, digest
from sif_batch.encoders.installed import networks, read_spec
from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import EncoderSpec, in_float
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.images.decode import checked_rgb
from sif_batch.index.quantizer import ARRAYS, transform_of
from sif_batch.index.rerank_rows import vectors_of_rows
from sif_batch.machine.arithmetic import computes_int8, project_few
from sif_batch.query import feedback
from sif_batch.query.filtered_search import Selection
from sif_batch.query.hits import make_hits
from sif_batch.query.image_table import Roster
from sif_batch.query.opening import find_release, read_query_image
from sif_batch.query.question import Picture, Question
from sif_batch.query.ranking import Ranking
from sif_batch.query.release_files import ReleaseFiles
from sif_batch.query.segments import OperatingPoint, Ranked, Segments
from sif_batch.release.manifest import check_release, shape_of
from sif_batch.storage.store import Store

SELECTIONS = 8  # filters whose rows are kept at hand


class Index:
    """An open release. Safe to ask from several threads."""

    def __init__(self, store: Store, folder: str, manifest: dict[str, Any]):
        self.manifest = manifest
        self.release = digest(canonical_json(manifest))
        self._place: str | None = None  # where it was opened
        self._files = files = ReleaseFiles(store, folder, self.release, manifest.get("files"))
        self.spec = shape_of(manifest)
        trained = self.spec.family != "flat" or self.spec.whitening or self.spec.row_dimension
        arrays = [np.load(files.checked(f"quantizer/{name}.npy")) for name in ARRAYS] if trained else []
        self.transform = transform_of(self.spec, *arrays)
        opened, start = [], 0
        for number in range(manifest["segments"]):
            segment = files.open_segment(number, start, self.spec)
            opened.append(segment)
            start += segment.size
        self.segments = Segments(opened, self.spec.unit_rows, self.spec.kept_dimension)
        self.roster = Roster(files.local("images.arrow"), files.path("images.arrow"))
        self._selections = functools.lru_cache(SELECTIONS)(self._select)
        if start != manifest["rows"] or len(self) != start:
            raise ValueError(f"{start} rows in segments, {len(self)} images, {manifest['rows']} in release.json")
        self.point = OperatingPoint(**manifest["operating_point"]) if manifest.get("operating_point") else None
        self.ranking = Ranking(self.segments, self.transform, self.spec, self.point)

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
        if not self._files.folder or self._place is None:
            return self
        folder = find_release(self._place)[1]
        return self if folder == self._files.folder else Index.open(self._place)

    def __len__(self) -> int:
        return len(self.roster)

    @property
    def dimension(self) -> int:
        return self.spec.dimension

    @property
    def url(self) -> str:
        """Where this release lies, whatever is published meanwhile."""
        return self._files.url

    def encoder_files(self) -> tuple[EncoderSpec, list[bytes]]:
        """The encoder's specification and its networks."""
        spec = read_spec(self._files.store, self._files.name("encoder"))
        return spec, [self._files.local(f"encoder/{name}").read_bytes() for name in networks(spec)]

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder that the release carries, loaded at the first image: of int8 the network in float, with a
        warning, where the CPU cannot compute int8."""
        spec = read_spec(self._files.store, self._files.name("encoder"))
        if spec.precision == "int8" and not computes_int8():
            warnings.warn("this CPU has no VNNI: images are embedded in float, not in int8", stacklevel=2)
            return Encoder(in_float(spec), self._files.local("encoder/fp32.onnx"))
        return Encoder(spec, self._files.local("encoder/model.onnx"))

    def search(
        self,
        *,
        image: Picture | None = None,
        images: Sequence[Picture] | None = None,
        vector: np.ndarray | Sequence[float] | None = None,
        key: str | None = None,
        keys: Sequence[str] | None = None,
        k: int = 10,
        together: bool = False,
        right: Sequence[str] = (),
        wrong: Sequence[str] = (),
        expand: int = 0,
        where: str | pc.Expression | None = None,
    ) -> Any:
        """The k most similar images, best first: a list of Hit; for `images` and `keys` a list of such lists.

        Exactly one of: image (path or fsspec URL, encoded bytes, or PIL image), images, vector ((dimension,), as
        the encoder gives it), key (of an image in the release, which is itself left out), keys; none where marks ask.

        together: images or keys are one query, answered by one list. right, wrong: keys of images that were marked
        so: the query moves towards the right ones and away from the wrong ones, which are left out. expand: so many
        first hits are averaged into the query, which is then asked again. where: a filter (`sif_batch.query.filters`);
        fewer than k are found where fewer qualify.
        """
        question = Question(image, images, vector, key, keys, together, right, wrong, expand)
        selection = None if where is None else self._selection(where)
        own, good, bad = (self.rows_of(keys) for keys in (question.own_keys, right, wrong))
        y = self._asked(question, own)
        without = own[:, None] if len(own) else np.empty((len(y), 0), np.int64)
        if not question.several:
            y, without = self._one_query(y, good, bad), np.concatenate([own, bad])[None]
        if expand and len(y):
            y = self._expanded(y, expand, without)
        found = [make_hits(self.roster, *answer) for answer in self.ranking.ranked(y, k, without, None, selection)]
        return found if question.several else found[0]

    def _asked(self, question: Question, own: np.ndarray) -> np.ndarray:
        """What is asked with, as it is compared: (n, d) float64; n is 0 where marks alone ask. own: its rows."""
        if question.vector is not None:
            return self._compared(np.asarray(question.vector, np.float32)[None])
        if question.pictures:
            return self._compared(self.embed(question.pictures))
        return self.vectors_of(own).astype(np.float64) if len(own) else np.empty((0, self.dimension))

    def _one_query(self, y: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        """Compared vectors (n, d) as one, after marks: (1, d) float64. right, wrong: rows."""
        unit = self.transform.unit
        if not (len(right) or len(wrong)):
            return feedback.merge(y, unit)[None] if len(y) > 1 else y
        query = feedback.merge(y, unit) if len(y) else None
        return feedback.learn(query, self.vectors_of(right), self.vectors_of(wrong), unit)[None]

    def _expanded(self, y: np.ndarray, expand: int, without: np.ndarray | None) -> np.ndarray:
        """Compared queries (n, d), each with its first hits averaged in."""
        found = self.ranking.ranked(y, expand, without, None)
        pairs = zip(y, found, strict=True)
        return np.stack([feedback.expand(q, self.vectors_of(r), s, self.transform.unit) for q, (r, s) in pairs])

    def _selection(self, where: str | pc.Expression) -> Selection:
        return self._selections(where) if isinstance(where, str) else self._select(where)

    def _select(self, where: str | pc.Expression) -> Selection:
        return Selection(self.segments, self.rows_where(where))

    def search_vectors(self, x: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """x: (n, dimension) float32. Returns keys, (n, k) object, and similarities, (n, k) float32; None and NaN
        where there are fewer than k."""
        ranked = self.ranked(np.asarray(x), k)
        keys, similarities = np.full((len(x), k), None, object), np.full((len(x), k), np.nan, np.float32)
        for i, (rows, found) in enumerate(ranked):
            keys[i, : len(rows)] = self.roster.take(rows, ["key"])["key"].to_pylist()
            similarities[i, : len(rows)] = found
        return keys, similarities

    def embed(self, images: Sequence[Picture]) -> np.ndarray:
        """The encoder's vectors of some images: (n, dimension) float32. An image that cannot be used raises."""
        if not len(images):
            return np.empty((0, self.dimension), np.float32)
        return self.encoder.embed(np.stack([self._pixels(image) for image in images]))

    def row_of(self, key: str) -> int:
        """The row of an image by its key."""
        return self.roster.row_of(key)

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """The rows of images by their keys: (n,) int64. Raises SifBatchError for one that is not in the release."""
        return np.array([self.roster.row_of(key) for key in keys], np.int64)

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
        return list(self.roster.schema.names)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the images, in order of rows: key, uri, folder, ..."""
        return self.roster.column(name)

    def rows_where(self, where: str | pc.Expression) -> np.ndarray:
        """The rows that a filter lets through, rising: (m,) int64. Raises SifBatchError."""
        return self.roster.rows_where(where)

    def ranked(
        self,
        vectors: np.ndarray,
        k: int,
        without: np.ndarray | None = None,
        point: OperatingPoint | None = None,
        among: np.ndarray | None = None,
        expand: int = 0,
    ) -> Ranked:
        """For each vector the rows and similarities of its k nearest, best first, equal ones by row.

        vectors: (n, dimension), as the encoder gives them; without: (n,) or (n, w) rows to leave out for each, -1 for
        none; point: the operating point, by default the release's; among: (m,) rising, the only rows to find;
        expand: so many first hits are averaged in, and it is asked again.
        """
        y = self._compared(vectors)
        if expand and len(y):
            y = self._expanded(y, expand, without)
        return self.ranking.ranked(y, k, without, point, self._among(among))

    def neighbours_of(
        self, rows: np.ndarray, k: int, point: OperatingPoint | None = None, among: np.ndarray | None = None
    ) -> Ranked:
        """As `ranked`, asked with some rows of the release, each left out of its own answer."""
        return self.ranking.ranked(self.vectors_of(rows).astype(np.float64), k, rows, point, self._among(among))

    def _among(self, rows: np.ndarray | None) -> Selection | None:
        return None if rows is None else Selection(self.segments, rows)

    def _compared(self, vectors: np.ndarray) -> np.ndarray:
        """An encoder's vectors as they are compared, (n, ...) float64. Raises SifBatchError for what is none."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise SifBatchError(f"a query has shape {vectors.shape[1:]}, expected ({self.dimension},)")
        if not np.isfinite(vectors).all():
            raise SifBatchError("a query vector is not finite")
        return self.transform.apply(vectors, project_few)

    def codes_scanned(self, vectors: np.ndarray, point: OperatingPoint) -> float:
        """The mean number of codes that a query compares with at an operating point. vectors: as for `ranked`."""
        return self.ranking.codes_scanned(self.transform.apply(vectors), point)

    def _pixels(self, image: Picture) -> np.ndarray:
        name = "the query"
        try:
            if isinstance(image, Image.Image):
                return self.encoder.prepare(checked_rgb(image))
            if not isinstance(image, bytes):
                name = os.fspath(image)
                image = read_query_image(name)
            return self.encoder.read_image(image)[0]
        except ImageError as error:
            raise SifBatchError(f"{name}: not usable as an image: {error.kind} ({error})") from error


@functools.lru_cache(maxsize=1)
def opened(place: str) -> Index:
    """The index at a place, opened once: for children that are asked again and again."""
    return Index.open(place)

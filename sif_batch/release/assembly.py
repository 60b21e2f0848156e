"""Assembly: the live rows' codes, part by part, into the segments of a release. Bounded in memory, written in order.

Each part is read once. Where the rows do not fit into memory, they are first spread over files of hash ranges, each
small enough to be put in order in memory, and these are read in order once.
"""

import io
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.errors import SifBatchError
from sif_batch.index.codebooks import fill_codebook
from sif_batch.index.codes import Codes, codes_path, read_codes
from sif_batch.index.quantizer import ARRAYS, Quantizer, array_bytes
from sif_batch.index.recall import NEIGHBOURS
from sif_batch.index.rerank_rows import row_type
from sif_batch.index.training_sample import SAMPLED
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.release.columns import column_types, make_columns
from sif_batch.storage.store import Store

SEGMENT_ROWS = 16 * 2**20
IN_MEMORY_BYTES = 2**27  # of rows that need no files
BUCKET_BYTES = 2**25  # of rows that are put in order at a time
MOST_BUCKETS = 256  # files open at once
READERS = 2
READ_AHEAD = 4
TABLE_ROWS = 16_384  # rows in a batch of images.arrow
WRITE_BYTES = 2**20  # at a time
RESERVE = 2**26  # bytes of disk that are left alone

T = TypeVar("T")


def segment_ends(hashes: np.ndarray, max_rows: int) -> np.ndarray:
    """Where segments end: equal ranges of the hash, a power of two of them, the fewest that hold `max_rows` at most.

    hashes: (n,) uint64 in order. Returns (segments,) int64, the last is n.
    """
    bits = 0
    while True:
        bounds = np.array([(i + 1) << (64 - bits) for i in range(2**bits - 1)], np.uint64)
        ends = np.append(np.searchsorted(hashes, bounds), len(hashes))
        if np.diff(ends, prepend=0).max(initial=0) <= max_rows:
            return ends
        bits += 1


class Placement:
    """Which release row each part's rows become. part, row, hashes: (n,) of the live rows, in order."""

    def __init__(self, part: np.ndarray, row: np.ndarray, hashes: np.ndarray, parts: Sequence[str]):
        self.parts, self.row, self.hashes = parts, row, hashes
        narrow = part.astype(np.uint16) if len(parts) < 2**16 else part  # 16 bits are sorted ten times faster
        order = np.argsort(narrow, kind="stable").astype(np.uint32)
        bounds = np.searchsorted(part, np.arange(len(parts) + 1), sorter=order)
        self._order, self._bounds = order, bounds
        self.used = np.flatnonzero(np.diff(bounds)).tolist()

    @staticmethod
    def of(live: pa.Table, parts: Sequence[str]) -> "Placement":
        return Placement(live["part"].to_numpy(), live["row"].to_numpy(), live["hash"].to_numpy(), parts)

    def __len__(self) -> int:
        return len(self.row)

    def rows_of(self, number: int) -> np.ndarray:
        """The release rows of a part, rising."""
        return self._order[self._bounds[number] : self._bounds[number + 1]]

    def released(self, number: int, numbers: np.ndarray) -> np.ndarray:
        """The release row of each of some rows of a part, (n,) int64, -1 for a dead one. numbers: rising."""
        at = self.rows_of(number)
        rows = self.row[at]
        place = np.searchsorted(numbers, rows)
        if place.max(initial=-1) >= len(numbers) or not np.array_equal(numbers[place], rows):
            raise LookupError
        found = np.full(len(numbers), -1, np.int64)
        found[place] = at
        return found


@dataclass
class Assembled:
    """What the gate needs of the parts that were assembled.

    row, query, part, distance: the live ones of the rows that lie near to held-out queries; last: (parts, q) float32,
    the squared distance at which a part's list breaks off. constant: vectors all of whose numbers are equal; lengths
    and errors: (s,) float32 and likeness (s,) uint64 of the first rows, a uniform sample, as codes have them; in_cells:
    (cells,) rows by cell.
    """

    row: np.ndarray
    query: np.ndarray
    part: np.ndarray
    distance: np.ndarray
    last: np.ndarray
    constant: int
    lengths: np.ndarray
    likeness: np.ndarray
    errors: np.ndarray
    in_cells: np.ndarray


def assemble(
    store: Store,
    into: Path,
    quantizer: Quantizer,
    placement: Placement,
    max_rows: int = SEGMENT_ROWS,
    scratch: str | None = None,
) -> Assembled:
    """Write the segments and the quantizer of a release; the codes of the live rows must stand.

    scratch: a folder for rows that do not fit into memory; by default beside `into`.
    """
    spec = quantizer.spec
    widths = quantizer.code_width, spec.row_bytes
    ends = segment_ends(placement.hashes, max_rows)
    near = _Near(quantizer, placement)
    (into / "segments").mkdir(parents=True)
    with Buckets(bucket_ends(ends, sum(widths)), widths, scratch or into.parent) as buckets:
        for number, codes in read_all(store, quantizer, placement):
            try:
                released = placement.released(number, codes.numbers)
            except LookupError as error:
                path = codes_path(quantizer.record.id, placement.parts[number])
                raise SifBatchError(f"{path} is not of its part", remedy="remove that file and run again") from error
            live: Any = released >= 0
            if live.all():
                live = slice(None)  # no copies
            buckets.put(released[live], codes.code[live], codes.rerank[live])
            near.add(number, codes, released)
        for segment, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
            write_segment(quantizer, buckets, start, end, into / f"segments/{segment:03d}")
    write_transform(quantizer, into)
    return near.done()


def read_all(store: Store, quantizer: Quantizer, placement: Placement) -> Iterator[tuple[int, Codes]]:
    """The codes of each part with live rows, a few read ahead."""

    def read(number: int) -> Codes:
        return read_codes(store, quantizer.spec, quantizer.record.id, placement.parts[number])

    return ahead(read, placement.used, READERS, READ_AHEAD)


def ahead(work: Callable[[int], T], numbers: Iterable[int], threads: int, most: int) -> Iterator[tuple[int, T]]:
    """Each number and work(number), in order; `most` more are in work meanwhile."""
    with ThreadPoolExecutor(threads) as pool:
        jobs: deque[tuple[int, Future[T]]] = deque()
        for number in numbers:
            jobs.append((number, pool.submit(work, number)))
            if len(jobs) > most:
                number, job = jobs.popleft()
                yield number, job.result()
        for number, job in jobs:
            yield number, job.result()


def bucket_ends(ends: np.ndarray, width: int) -> np.ndarray:
    """Where buckets end: at the ends of segments, and often enough between that none is too large."""
    rows = max(1, BUCKET_BYTES // max(1, width), -(-int(ends[-1]) // MOST_BUCKETS))
    inner = np.arange(rows, int(ends[-1]), rows)
    return np.unique(np.concatenate([inner, ends]))


class Buckets:
    """Rows by ranges of release rows, in memory if they are few, else in files of one range each.

    A record is a row's place in its bucket (uint32), its code and its kept row.
    """

    def __init__(self, ends: np.ndarray, widths: tuple[int, int], scratch: str | os.PathLike[str]):
        self.ends = ends
        self.record = np.dtype([("place", "<u4"), ("code", "u1", widths[0]), ("rerank", "u1", widths[1])])
        self._starts = np.concatenate([[0], ends[:-1]])
        total = int(ends[-1]) * self.record.itemsize
        self._stack = ExitStack()
        self._files: list[BinaryIO] = []
        if total <= IN_MEMORY_BYTES:
            self._files = [io.BytesIO() for _ in ends]
            return
        os.makedirs(scratch, exist_ok=True)
        check_scratch(scratch, total)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix=".tmp-buckets-", dir=scratch))
        for number in range(len(ends)):
            file = open(Path(folder, f"{number}"), "w+b", buffering=2**16)  # noqa: SIM115 (closed by the stack)
            self._files.append(self._stack.enter_context(file))

    def __enter__(self) -> "Buckets":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def put(self, at: np.ndarray, code: np.ndarray, rerank: np.ndarray) -> None:
        """Rows of a part: at: release rows, rising; code (n, c) uint8; rerank: (n, w) of any type."""
        bounds = np.searchsorted(at, self.ends)
        records = np.empty(len(at), self.record)
        records["code"] = code
        records["rerank"] = np.ascontiguousarray(rerank).view(np.uint8)
        start = 0
        for bucket, end in enumerate(bounds.tolist()):
            if end > start:
                records["place"][start:end] = at[start:end] - self._starts[bucket]
                self._files[bucket].write(records[start:end].tobytes())
            start = end

    def take(self, bucket: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, c) and kept rows (n, w) of a bucket in order, uint8; what held them is given back."""
        file = self._files[bucket]
        file.seek(0)
        found = np.frombuffer(file.read(), self.record)
        size = int(self.ends[bucket] - self._starts[bucket])
        order = np.argsort(found["place"], kind="stable")
        if len(found) != size or not np.array_equal(found["place"][order], np.arange(size)):
            raise SifBatchError(f"{size} rows were to be assembled, {len(found)} came", remedy="run again")
        file.seek(0)
        file.truncate()
        return found["code"][order], found["rerank"][order]


def check_scratch(folder: str | os.PathLike[str], needed: int) -> None:
    """Fail now, not after hours, where the disk is too full."""
    free = shutil.disk_usage(folder).free - RESERVE
    if free < needed:
        raise SifBatchError(
            f"{os.fspath(folder)}: {needed / 1e9:.1f} GB are needed there, {max(0, free) / 1e9:.1f} GB are free",
            remedy="make room, or give --scratch DIR on a larger disk",
        )


def write_segment(quantizer: Quantizer, buckets: Buckets, start: int, end: int, folder: Path) -> None:
    """index.faiss and rows.npy of the release rows from `start` to `end`."""
    folder.mkdir()
    spec = quantizer.spec
    code = np.empty((end - start, quantizer.code_width), np.uint8)
    kind = row_type(spec.rows)
    with open(folder / "rows.npy", "wb") if spec.rows != "none" else io.BytesIO() as file:
        shape = (end - start, spec.row_bytes // kind.itemsize)
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        if spec.rows != "none":
            check_scratch(folder, shape[0] * spec.row_bytes)
        within = np.flatnonzero((buckets.ends > start) & (buckets.ends <= end)).tolist()
        for bucket, (some, kept) in ahead(buckets.take, within, 1, 1):  # one is put in order while another is written
            last = int(buckets.ends[bucket]) - start
            code[last - len(some) : last] = some
            file.write(kept.data)
    if quantizer.index is not None:
        write_index(fill_codebook(spec.family, quantizer.index, code), folder / "index.faiss")


def write_index(index: Any, path: Path) -> None:
    """Write a faiss index through a file of Python's: faiss itself does not tell when the last bytes find no room."""
    failed: list[OSError] = []
    with open(path, "wb") as file:

        def write(data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                failed.append(error)
                raise

        try:
            import_faiss().write_index(index, import_faiss().PyCallbackIOWriter(write, WRITE_BYTES))
        except RuntimeError:
            if failed:
                raise failed[0] from None
            raise


def write_transform(quantizer: Quantizer, into: Path) -> None:
    if quantizer.transform.mean is not None:
        (into / "quantizer").mkdir()
        for name in ARRAYS:
            (into / f"quantizer/{name}.npy").write_bytes(array_bytes(getattr(quantizer.transform, name)))


@dataclass
class _Near:
    """Collects what parts know of their rows: those near to the held-out queries, and what all look like."""

    quantizer: Quantizer
    placement: Placement
    found: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    last: dict[int, np.ndarray] = field(default_factory=dict)
    constant: int = 0

    def __post_init__(self) -> None:
        sampled = min(SAMPLED, len(self.placement))
        self.lengths, self.errors = np.empty(sampled, np.float32), np.empty(sampled, np.float32)
        self.likeness = np.empty(sampled, np.uint64)
        self.in_cells = np.zeros(self.quantizer.spec.cells, np.int64)

    def add(self, number: int, codes: Codes, released: np.ndarray) -> None:
        place, query = codes.near[:, 0], codes.near[:, 1]
        rows = released[place]
        live = rows >= 0
        part = np.full(int(live.sum()), number, np.int32)
        self.found.append((rows[live], query[live], part, codes.near_distance[live]))
        self.constant += int((codes.lengths[released >= 0] <= 0).sum())
        sampled = (released >= 0) & (released < len(self.lengths))
        self.lengths[released[sampled]] = codes.lengths[sampled]
        self.likeness[released[sampled]] = codes.likeness[sampled]
        self.errors[released[sampled]] = codes.errors[sampled]
        self.in_cells += self.quantizer.count_cells(codes.code[released >= 0])
        # A list ends at the radius, or before it where it is full; one that holds the whole part never ends.
        queries = len(self.quantizer.queries)
        count = np.bincount(query, minlength=queries)
        furthest = np.full(queries, -np.inf, np.float32)
        np.maximum.at(furthest, query, codes.near_distance)
        last = np.where(count >= 2 * NEIGHBOURS, furthest, self.quantizer.radii)
        self.last[number] = np.where(count == len(codes.numbers), np.float32(np.inf), last).astype(np.float32)

    def done(self) -> Assembled:
        columns = [np.concatenate(c) for c in zip(*self.found, strict=True)] if self.found else [np.empty(0)] * 4
        row, query, part, distance = columns
        last = np.stack([self.last[number] for number in self.placement.used]) if self.last else np.empty((0, 0))
        looks = self.lengths, self.likeness, self.errors, self.in_cells
        return Assembled(row, query.astype(np.int64), part, distance, last, self.constant, *looks)


def write_images(live: pa.Table, path: Path) -> None:
    """images.arrow: who each row is, and its columns; uncompressed, to be mapped."""
    member = pc.replace_substring_regex(live["member"], r"^(\./+)+", "")
    inside = pc.case_when(
        pc.make_struct(member.is_null()), live["path"], pc.binary_join_element_wise(live["path"], member, "/")
    )
    folder = pc.replace_substring_regex(inside, "/?[^/]*$", "")
    wide = {name: live[name].cast(pa.large_string()) for name in ("key", "uri", "source")}
    table = pa.table(
        {
            "key": wide["key"],
            "hash": live["hash"],
            "uri": wide["uri"],
            "sha256": live["sha256"],
            "source": wide["source"],
            "folder": folder.cast(pa.large_string()),
            "width": live["width"],
            "height": live["height"],
        }
    )
    types = column_types(live["fields"])
    named = [pa.field(f"{name}_" if name in table.column_names else name, type_) for name, type_ in types.items()]
    schema = pa.schema([*table.schema, *named])
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, max(1, len(table)), TABLE_ROWS):
            rows = table.slice(start, TABLE_ROWS)
            own = make_columns(live["fields"].slice(start, TABLE_ROWS), types)
            writer.write_table(pa.table([*rows.columns, *own], schema=schema).combine_chunks())


def copy_encoder(store: Store, encoder_id: str, into: Path) -> None:
    into.mkdir()
    lowered = ["fp32.onnx"] if store.exists(f"encoders/{encoder_id}/fp32.onnx") else []
    for name in ("model.onnx", *lowered, "encoder.json"):
        if store.local:
            shutil.copyfile(store.path(f"encoders/{encoder_id}/{name}"), into / name)
        else:
            (into / name).write_bytes(store.read(f"encoders/{encoder_id}/{name}"))

"""Assembly: the live rows' codes, part by part, into the segments of a release. Bounded in memory, written in order.

Each part is read once. Where the rows do not fit into memory, they are first spread over files of hash ranges, each
small enough to be put in order in memory, and these are read in order once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sif_batch.errors import SifBatchError
from sif_batch.index.codes import Codes, codes_path, read_codes
from sif_batch.index.quantizer import Quantizer
from sif_batch.index.recall import NEIGHBOURS
from sif_batch.index.training_sample import SAMPLED
from sif_batch.machine.read_ahead import ahead
from sif_batch.release.external_sort import Buckets, bucket_ends
from sif_batch.release.placement import SEGMENT_ROWS, Placement, segment_ends
from sif_batch.release.write_files import write_segment, write_transform
from sif_batch.storage.store import Store

READERS = 2
READ_AHEAD = 4


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

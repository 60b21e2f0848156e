"""Which live rows to train on and to ask with, and reading just those."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from sif_batch.errors import SifBatchError
from sif_batch.ledger.parts import FIRST_ROWS, part_path, read_columns
from sif_batch.storage.store import Store

HELD_OUT_FROM = 15 << 60  # hashes from 15/16 of the range up are never trained on
HELD_OUT = 500
FEWEST_HELD_OUT = 16  # where no hash lies in that band
TRAINING_ROWS = 16_384
TRAINING_ROWS_PER_CELL = 64
READERS = 4  # parts read at once
SAMPLED = 65_536  # rows whose looks are kept: a prefix in order of hash


def held_out_from(hashes: np.ndarray) -> int:
    """The first row of the held-out band. hashes: (n,) uint64 in order.

    A collection so small that the band is empty has its last rows held out.
    """
    split = int(np.searchsorted(hashes, np.uint64(HELD_OUT_FROM)))
    return split if split < len(hashes) else max(0, len(hashes) - FEWEST_HELD_OUT)


def sample_rows(live: pa.Table, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Which live rows to train on and which to hold out: disjoint bands of the row hash, so both stay stable.

    live: rows in order of hash. Returns positions in it.
    """
    hashes = live["hash"].to_numpy()
    split = held_out_from(hashes)
    training = min(split, max(TRAINING_ROWS, TRAINING_ROWS_PER_CELL * cells))
    return np.arange(training), np.arange(max(split, len(hashes) - HELD_OUT), len(hashes))


def read_rows(store: Store, encoder_id: str, parts: list[str], live: pa.Table, picked: np.ndarray) -> np.ndarray:
    """The embeddings of some live rows, (n, d) float16, in the order asked for.

    A part whose wanted rows all lie in its first row group is read only that far.
    """
    row = live["row"].to_numpy()[picked].astype(np.int64)
    part = live["part"].to_numpy()[picked]
    order = np.argsort(part, kind="stable")
    numbers, starts = np.unique(part[order], return_index=True)
    places = np.split(order, starts[1:])

    def read(job: tuple[int, np.ndarray]) -> np.ndarray:
        number, at = job
        with store.open(part_path(encoder_id, parts[number])) as file:
            groups = [0] if row[at].max() < FIRST_ROWS else None
            column = read_columns(file, parts[number], ["embedding"], groups)["embedding"].combine_chunks()
        values = column.take(pa.array(row[at])).flatten().to_numpy()
        if len(values) % len(at):
            raise SifBatchError(
                f"part {parts[number]} holds vectors of several dimensions",
                remedy="remove that file; the next run embeds its images again",
            )
        return values.reshape(len(at), -1)

    vectors: np.ndarray | None = None
    with ThreadPoolExecutor(READERS) as pool:
        jobs = list(zip(numbers.tolist(), places, strict=True)) if len(picked) else []
        for (number, at), found in zip(jobs, pool.map(read, jobs), strict=True):
            if vectors is None:
                vectors = np.empty((len(picked), found.shape[1]), np.float16)
            if found.shape[1] != vectors.shape[1]:
                raise _unlike({parts[n]: x.shape[1] for (n, _), x in zip(jobs, map(read, jobs), strict=True)})
            if not np.isfinite(found).all():
                raise SifBatchError(
                    f"part {parts[number]} holds vectors that are not finite", remedy="remove that file and run again"
                )
            vectors[at] = found
    return np.empty((0, 0), np.float16) if vectors is None else vectors


def _unlike(dimensions: dict[str, int]) -> SifBatchError:
    """Names the part that the fewest are like. dimensions: by part."""
    usual, odd = (Counter(dimensions.values()).most_common()[at][0] for at in (0, -1))
    part = next(part for part, found in dimensions.items() if found == odd)
    return SifBatchError(
        f"part {part} holds vectors of {odd} dimensions, others {usual}",
        remedy="remove that file; the next run embeds its images again",
    )


def likeness(vectors: np.ndarray) -> np.ndarray:
    """(n,) uint64 of (n, d) float16: equal for equal vectors (multilinear hashing; Lemire and Kaser 2014)."""
    weights = np.random.default_rng(0).integers(2**64, size=vectors.shape[1], dtype=np.uint64)
    return np.einsum("ij,j->i", np.ascontiguousarray(vectors).view(np.uint16).astype(np.uint64), weights)

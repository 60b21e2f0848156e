"""The roster of a release: its images.arrow, memory-mapped. Row i is what is known of image i."""

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.errors import SifBatchError
from sif_batch.query.filters import parse_filter, qualifying
from sif_batch.release.manifest import damaged
from sif_batch.sources.names import hash_of, keys_by

PLAIN = ("key", "hash", "uri", "sha256")  # what is no column of a hit


class Roster:
    """The images, in order of hash and key. shown: how errors name the file."""

    def __init__(self, path: Path, shown: str):
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._shown = shown
        self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self.schema: pa.Schema = file.schema
        self._sound: set[int] = set()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _batch(self, number: int) -> pa.RecordBatch:
        """A batch, checked as it is first looked at: damaged offsets in it would end the process when followed."""
        if number not in self._sound:
            try:
                self._batches[number].validate(full=True)
            except pa.ArrowException as error:
                raise damaged(self._shown) from error
            self._sound.add(number)
        return self._batches[number]

    def row_of(self, key: str) -> int:
        """The row of an image by its key, or by its name as it stands on disk."""
        tried = keys_by(key)
        row = next((row for one in tried if (row := self._row_of(one)) is not None), None)
        if row is None:
            raise SifBatchError(
                f"no image of the release has the key {tried[0]!r}", remedy="keys look like source/folder/name.jpg"
            )
        return row

    def _row_of(self, key: str) -> int | None:
        wanted = hash_of(key)
        firsts = [batch["hash"][0].as_py() if len(batch) else 0 for batch in self._batches]
        for number in range(max(0, bisect.bisect_left(firsts, wanted) - 1), bisect.bisect_right(firsts, wanted)):
            batch = self._batch(number)
            hashes = batch["hash"].to_numpy()
            for place in np.flatnonzero(hashes == np.uint64(wanted)).tolist():
                if batch["key"][place].as_py() == key:
                    return int(self._starts[number]) + place
        return None

    def column(self, name: str) -> pa.ChunkedArray:
        """A column, in order of rows: key, uri, folder, ..."""
        if name not in self.schema.names:
            has = [column for column in self.schema.names if column not in PLAIN]
            raise SifBatchError(f"the release has no column {name!r}", remedy=f"it has: {', '.join(has)}")
        batches = [self._batch(number) for number in range(len(self._batches))]
        return pa.chunked_array([batch[name] for batch in batches], self.schema.field(name).type)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Some columns of some images, in the order of `rows`."""
        number = np.searchsorted(self._starts, rows, side="right") - 1
        taken, places = [], []
        for batch in np.unique(number).tolist():
            mine = np.flatnonzero(number == batch)
            within = pa.array(rows[mine] - self._starts[batch])
            taken.append(self._batch(batch).select(list(columns)).take(within))
            places.append(mine)
        if not taken:
            return self.schema.empty_table().select(list(columns))
        table = pa.Table.from_batches(taken)
        return table.take(pa.array(np.argsort(np.concatenate(places)))) if len(taken) > 1 else table

    def rows_where(self, where: str | pc.Expression) -> np.ndarray:
        """The rows that a filter lets through, rising: (m,) int64. As text see `sif_batch.query.filters`."""
        condition = parse_filter(where, self.schema) if isinstance(where, str) else where
        batches = [self._batch(number) for number in range(len(self._batches))]
        return np.flatnonzero(qualifying(pa.Table.from_batches(batches, self.schema), condition))

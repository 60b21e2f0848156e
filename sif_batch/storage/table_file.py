"""A Parquet file as a table whose columns are read as they are asked for: of ten million rows few are held at once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEPT_BITS = 32  # columns of numbers as narrow as this stay in memory once they were read


class TableFile:
    """Answers as a pyarrow.Table would. source: an open file, or bytes; mask: which of its rows count."""

    def __init__(self, source: pa.NativeFile, mask: pa.BooleanArray | None = None):
        self._source, self._mask = source, mask
        self._file = pq.ParquetFile(source)
        self._kept: dict[str, pa.ChunkedArray] = {}
        self.schema: pa.Schema = self._file.schema_arrow.remove_metadata()
        self.metadata: dict[bytes, bytes] = self._file.metadata.metadata or {}

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows if self._mask is None else self._mask.true_count)

    @property
    def column_names(self) -> list[str]:
        return list(self.schema.names)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        if name not in self._kept:
            column = self._read(name)
            kind = column.type
            if not (pa.types.is_integer(kind) and kind.bit_width <= KEPT_BITS):
                return column
            self._kept[name] = pa.chunked_array([column.combine_chunks()], kind)
        return self._kept[name]

    def _read(self, name: str) -> pa.ChunkedArray:
        column = self._file.read([name], use_threads=False)[name]
        return column if self._mask is None else column.filter(self._mask)

    def select(self, names: list[str]) -> pa.Table:
        return pa.table([self[name] for name in names], pa.schema([self.schema.field(name) for name in names]))

    def batches(self, names: list[str]) -> Iterator[pa.Table]:
        """Some columns, a row group at a time."""
        start = 0
        for group in range(self._file.num_row_groups):
            table = self._file.read_row_group(group, names).select(names).replace_schema_metadata(None)
            mask = None if self._mask is None else self._mask.slice(start, len(table))
            start += len(table)
            yield table if mask is None else table.filter(mask)

    def take(self, rows: pa.Array) -> pa.Table:
        return pa.table([self[name].take(rows) for name in self.schema.names], self.schema)

    def filter(self, mask: pa.Array | pa.ChunkedArray) -> "TableFile":
        chosen = np.asarray(mask)
        if self._mask is not None:
            whole = np.zeros(len(self._mask), bool)
            whole[np.flatnonzero(self._mask.to_numpy(zero_copy_only=False))] = chosen
            chosen = whole
        return TableFile(self._source, pa.array(chosen))

    def equals(self, other: Any) -> bool:
        return bool(self.select(self.schema.names).equals(other.select(self.schema.names)))

    def to_pylist(self) -> list[dict[str, Any]]:
        return self.select(self.schema.names).to_pylist()

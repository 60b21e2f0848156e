"""Columns from a table of the user's own, joined to the images by key when a release is assembled."""

import json
import os
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.sources.names import keys_by, text_of
from sif_batch.storage.urls import open_filesystem

ESCAPED = r'["\\\x00-\x1f]'  # what a JSON string writes otherwise


def read_metadata(url: str) -> pa.Table:
    """The table at a path or URL, Parquet or CSV, by its column `key`. Raises SifBatchError."""
    fs, path = open_filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            is_parquet = url.lower().endswith(".parquet")
            table = pq.ParquetFile(file).read(use_threads=False) if is_parquet else pa.csv.read_csv(file)
    except (OSError, pa.ArrowException) as error:
        raise SifBatchError(
            f"--metadata {url}: cannot be read ({error})", remedy="give a Parquet or CSV file, or none to leave it out"
        ) from error
    if "key" not in table.column_names or len(table.column_names) < 2:
        raise SifBatchError(
            f"--metadata {url}: it has the columns {', '.join(table.column_names)}, expected key and others",
            remedy="keys look like source/folder/name.jpg, as sif-batch search shows them",
        )
    keys = table["key"]
    if pa.types.is_binary(keys.type) or pa.types.is_large_binary(keys.type):  # a name that is not UTF-8
        keys = pa.chunked_array([[name and text_of(os.fsdecode(name)) for name in keys.to_pylist()]], pa.large_string())
    keys = keys.cast(pa.large_string())
    if twice := pc.value_counts(keys).filter(pc.greater(pc.value_counts(keys).field("counts"), 1)).to_pylist():
        raise SifBatchError(
            f"--metadata {url}: {twice[0]['values']!r} is there {twice[0]['counts']} times", remedy="keep one row a key"
        )
    return table.set_column(table.column_names.index("key"), "key", keys)


def join_metadata(live: pa.Table, table: pa.Table) -> tuple[pa.Table, int]:
    """The live rows with the table's columns among their fields, and how many have a row there.

    A column of the table stands before a field of the same name that came with the image.
    """
    place = _rows_of(live["key"].cast(pa.large_string()), table["key"].combine_chunks())
    fields, given = live["fields"].combine_chunks(), _texts_of(table.drop_columns(["key"])).take(place)
    both = pc.and_(fields.is_valid(), given.is_valid()).to_numpy(zero_copy_only=False).nonzero()[0]
    merged = [
        canonical_json(json.loads(own) | json.loads(more)).decode()
        for own, more in zip(fields.take(both).to_pylist(), given.take(both).to_pylist(), strict=True)
    ]
    mask = np.zeros(len(live), bool)
    mask[both] = True
    joined = pc.replace_with_mask(pc.coalesce(given, fields), mask, pa.array(merged, pa.large_string()))
    column = live.column_names.index("fields")
    return live.set_column(column, "fields", joined), len(place) - place.null_count


def _rows_of(wanted: pa.ChunkedArray, keys: pa.Array) -> pa.ChunkedArray:
    """The row of each key, null for none: by the key itself, else by the name as it stands on disk."""
    place = pc.index_in(wanted, keys)
    odd = pc.and_(keys.is_valid(), pc.or_(pc.invert(pc.string_is_ascii(keys)), pc.match_substring(keys, "::")))
    row_of: dict[str, int] = {}
    for row in np.flatnonzero(pc.fill_null(odd, False).to_numpy(zero_copy_only=False)).tolist():
        for key in keys_by(keys[row].as_py()):
            row_of.setdefault(key, row)
    if not row_of:
        return place
    others = pa.array(list(row_of.values()), place.type).take(
        pc.index_in(wanted, pa.array(list(row_of), pa.large_string()))
    )
    return pc.coalesce(place, others)


def _texts_of(table: pa.Table) -> pa.Array:
    """Each row as a canonical JSON object of what it holds, large_string; null where it holds nothing."""
    pieces = [_pieces_of(name, table[name].combine_chunks()) for name in sorted(table.column_names)]
    inside = pc.binary_join_element_wise(*pieces, pa.scalar(",", pa.large_string()), null_handling="skip")
    inside = pc.if_else(pc.equal(pc.binary_length(inside), 0), pa.scalar(None, pa.large_string()), inside)
    braces = pa.scalar("{", pa.large_string()), pa.scalar("}", pa.large_string()), pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(braces[0], inside, *braces[1:])


def _pieces_of(name: str, column: pa.Array) -> pa.Array:
    """`"name":value` of each row, null where there is none: each value is written once, however many rows have it."""
    start = pa.scalar(canonical_json({name: 0})[1:-2].decode(), pa.large_string())
    wide, nothing = pa.large_string(), pa.scalar("", pa.large_string())
    if pa.types.is_integer(column.type):
        return pc.binary_join_element_wise(start, column.cast(wide), nothing)
    if column.type in (pa.string(), wide) and not pc.any(pc.match_substring_regex(column, ESCAPED)).as_py():
        quote = pa.scalar('"', wide)
        return pc.binary_join_element_wise(start, quote, column.cast(wide), quote, nothing)
    try:
        encoded = column.dictionary_encode()
        values, place = encoded.dictionary.to_pylist(), encoded.indices
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists and the like
        values, place = column.to_pylist(), pa.array(np.arange(len(column)))
    texts = [None if value is None else canonical_json({name: _plain(value)})[1:-1].decode() for value in values]
    return pa.array(texts, pa.large_string()).take(place)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    return json.loads(json.dumps(value, default=str))

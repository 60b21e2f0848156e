"""Columns from a table of the user's own, joined to the images by key when a release is assembled."""

import json
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.release.columns import fields_of
from sif_batch.release.csv_table import read_csv_table
from sif_batch.sources.names import keys_by, text_of
from sif_batch.storage.urls import open_filesystem


def read_metadata(url: str) -> pa.Table:
    """The table at a path or URL, Parquet or CSV, by its column `key`; rows without one are left out.

    Raises SifBatchError.
    """
    fs, path = open_filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            is_parquet = url.lower().endswith(".parquet")
            table = pq.ParquetFile(file).read(use_threads=False) if is_parquet else read_csv_table(file)
        names = table.column_names
        if len(set(names)) == len(names) > 1 and "key" in names:
            table = table.set_column(names.index("key"), "key", _key_texts(table["key"]))
            table["key"].validate(full=True)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SifBatchError(
            f"--metadata {url}: cannot be read ({error})", remedy="give a Parquet or CSV file, or none to leave it out"
        ) from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise SifBatchError(
            f"--metadata {url}: two columns are named {twice[0]!r}", remedy="give each column a name of its own"
        )
    if "key" not in names or len(names) < 2:
        raise SifBatchError(
            f"--metadata {url}: it has the columns {', '.join(names)}, expected key and others",
            remedy="keys look like source/folder/name.jpg, as sif-batch search shows them",
        )
    table = table.filter(table["key"].is_valid())
    counts = table["key"].value_counts()
    if more := counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        raise SifBatchError(
            f"--metadata {url}: {more[0]['values']!r} is there {more[0]['counts']} times", remedy="keep one row a key"
        )
    return table


def _key_texts(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys as text; bytes are a name as it stands on disk, which need not be UTF-8."""
    if pa.types.is_binary(keys.type) or pa.types.is_large_binary(keys.type):
        return pa.chunked_array([[name and text_of(os.fsdecode(name)) for name in keys.to_pylist()]], pa.large_string())
    return keys.cast(pa.large_string())


def join_metadata(live: pa.Table, table: pa.Table) -> tuple[pa.Table, int]:
    """The live rows with the table's columns among their fields, and how many have a row there.

    A column of the table stands before a field of the same name that came with the image.
    """
    place = _rows_of(live["key"].cast(pa.large_string()), table["key"].combine_chunks())
    table = table.take(used := pc.unique(place.drop_null()))  # a table of a whole shop, for some of its photos
    place = pc.index_in(place, used)
    fields, given = live["fields"].combine_chunks(), fields_of(table.drop_columns(["key"])).take(place)
    both = pc.and_(fields.is_valid(), given.is_valid()).to_numpy(zero_copy_only=False).nonzero()[0]
    merged = [
        canonical_json(_merged(json.loads(own), json.loads(more))).decode()
        for own, more in zip(fields.take(both).to_pylist(), given.take(both).to_pylist(), strict=True)
    ]
    mask = np.zeros(len(live), bool)
    mask[both] = True
    joined = pc.replace_with_mask(pc.coalesce(given, fields), mask, pa.array(merged, pa.large_string()))
    column = live.column_names.index("fields")
    return live.set_column(column, "fields", joined), len(place) - place.null_count


def _merged(own: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return own | {name: value for name, value in given.items() if value is not None or name not in own}


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

"""Columns from a table of the user's own, joined to the images by key when a release is assembled."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.release.columns import fields_of
from sif_batch.release.csv_table import read_csv_table
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
            table = table.set_column(names.index("key"), "key", table["key"].cast(pa.large_string()))
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


def join_metadata(live: pa.Table, table: pa.Table) -> tuple[pa.Table, int]:
    """The live rows with the table's columns among their fields, and how many have a row there.

    A column of the table stands before a field of the same name that came with the image.
    """
    keys = live["key"].cast(pa.large_string())
    table = table.filter(pc.is_in(table["key"], keys))
    place = pc.index_in(keys, table["key"].combine_chunks())
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

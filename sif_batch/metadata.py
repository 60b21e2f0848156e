"""Columns from a table of the user's own, joined to the images by key when a release is assembled."""

import json
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from sif_batch.config import SifBatchError, canonical_json
from sif_batch.storage import open_filesystem


def read_metadata(url: str) -> pa.Table:
    """The table at a path or URL, Parquet or CSV, by its column `key`. Raises SifBatchError."""
    fs, path = open_filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            table = pq.read_table(file) if url.lower().endswith(".parquet") else pa.csv.read_csv(file)
    except (OSError, pa.ArrowException) as error:
        raise SifBatchError(
            f"--metadata {url}: cannot be read ({error})", remedy="give a Parquet or CSV file, or none to leave it out"
        ) from error
    if "key" not in table.column_names or len(table.column_names) < 2:
        raise SifBatchError(
            f"--metadata {url}: it has the columns {', '.join(table.column_names)}, expected key and others",
            remedy="keys look like source/folder/name.jpg, as sif-batch search shows them",
        )
    keys = table["key"].cast(pa.large_string())
    if twice := pc.value_counts(keys).filter(pc.greater(pc.value_counts(keys).field("counts"), 1)).to_pylist():
        raise SifBatchError(
            f"--metadata {url}: {twice[0]['values']!r} is there {twice[0]['counts']} times", remedy="keep one row a key"
        )
    return table.set_column(table.column_names.index("key"), "key", keys)


def join_metadata(live: pa.Table, table: pa.Table) -> tuple[pa.Table, int]:
    """The live rows with the table's columns among their fields, and how many have a row there.

    A column of the table stands before a field of the same name that came with the image.
    """
    place = pc.index_in(live["key"].cast(pa.large_string()), table["key"].combine_chunks())
    values = table.drop_columns(["key"]).take(pc.fill_null(place, 0)).to_pylist() if len(table) else []
    found = place.is_valid().to_numpy()
    fields = live["fields"].to_pylist()
    for number in found.nonzero()[0].tolist():
        own = json.loads(fields[number]) if fields[number] else {}
        given = {name: _plain(value) for name, value in values[number].items() if value is not None}
        fields[number] = canonical_json(own | given).decode() if own or given else None
    column = live.column_names.index("fields")
    return live.set_column(column, "fields", pa.array(fields, pa.large_string())), int(found.sum())


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    return json.loads(json.dumps(value, default=str))

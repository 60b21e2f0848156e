"""Judgements: what people marked as right or wrong for a query, kept as small Parquet files in a folder.

Each time marks are kept a file is added, so that many may write at once and none is ever changed. Of several
judgements of one (query, key) the newest holds. `evaluate --labels FOLDER` takes them as labels.
"""

import io
import time
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.digests import digest
from sif_batch.errors import SifBatchError
from sif_batch.storage.store import Store

SCHEMA = pa.schema(
    [("query", pa.string()), ("key", pa.string()), ("right", pa.bool_()), ("time", pa.timestamp("us", "UTC"))]
)


def keep_judgements(place: str, query: str, right: Sequence[str], wrong: Sequence[str] = ()) -> str | None:
    """Add a file to the folder, a path or fsspec URL: right and wrong, keys of images, for a query.

    query: the key asked with, or any name of another image. Returns the file's name, None where nothing was marked.
    """
    if not (right or wrong):
        return None
    now = time.time_ns() // 1000
    marked = [*((key, True) for key in right), *((key, False) for key in wrong)]
    rows = [{"query": query, "key": key, "right": good, "time": now} for key, good in marked]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink)
    data = sink.getvalue()
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now / 1e6))}-{digest(data)[:12]}.parquet"
    try:
        Store(place).create(name, data)
    except OSError as error:
        raise SifBatchError(
            f"{place}: the marks cannot be kept there ({error.strerror or error})",
            remedy="give a folder that this user may write",
        ) from error
    return name


def read_judgements(place: str) -> pa.Table:
    """SCHEMA, the newest of each (query, key), in that order. place: such a folder, or one Parquet file of it."""
    folder, _, file = place.rpartition("/") if place.endswith(".parquet") else (place, "", "")
    store = Store(folder or ("/" if place.startswith("/") else "."))
    names = [file] if file else [name for name in store.sizes("") if name.endswith(".parquet")]
    if not names:
        raise SifBatchError(
            f"{place}: it holds no judgements", remedy="sif-batch search --judgements keeps marks there"
        )
    tables = [_read(store, name) for name in names]
    rows = pa.concat_tables(tables).sort_by([("query", "ascending"), ("key", "ascending"), ("time", "ascending")])
    if len(rows) < 2:
        return rows
    same = pc.and_(pc.equal(rows["query"][1:], rows["query"][:-1]), pc.equal(rows["key"][1:], rows["key"][:-1]))
    return rows.filter(pa.chunked_array([*pc.invert(same).chunks, pa.array([True])]))


def _read(store: Store, name: str) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(store.read(name))).select(SCHEMA.names).cast(SCHEMA)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SifBatchError(
            f"{store.path(name)}: these are no judgements ({' '.join(str(error).split())[:200]})",
            remedy=f"they have the columns {', '.join(SCHEMA.names)}",
        ) from error

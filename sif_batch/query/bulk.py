"""Questions in bulk: vectors from Parquet, a piece at a time, and the hits of each piece as a file."""

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.errors import SifBatchError
from sif_batch.query.index import Index, opened
from sif_batch.storage.store import Store
from sif_batch.storage.urls import open_filesystem

AT_ONCE = 1024
HITS = pa.schema(
    [
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("key", pa.large_string()),
        ("uri", pa.large_string()),
        ("similarity", pa.float32()),
        ("error", pa.string()),
    ]
)
ANSWERS = HITS.append(pa.field("row", pa.int64()))  # the row of the query in its piece
VECTORS, NAMES = ("embedding", "vector"), ("key", "query", "id", "name", "path", "uri")  # columns taken first


@dataclass(frozen=True)
class Columns:
    """vectors: the column of lists of numbers; names: what queries are called by, empty: by their row."""

    vectors: str
    names: str = ""
    errors: str = ""  # why a row has no vector


def find_columns(schema: pa.Schema) -> Columns | None:
    """The columns to ask with; None: no column holds vectors. Raises SifBatchError where several may."""
    lists = [field.name for field in schema if _is_vectors(field.type)]
    named = [name for name in VECTORS if name in lists] or lists
    if len(named) > 1:
        raise SifBatchError(
            f"{', '.join(named)}: several columns hold vectors", remedy=f"call the one to ask with {VECTORS[0]}"
        )
    names = [name for name in NAMES if name in schema.names and name not in lists]
    errors = "error" if "error" in schema.names else ""
    return Columns(named[0], names[0] if names else "", errors) if named else None


def _is_vectors(type_: pa.DataType) -> bool:
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return bool(is_list and pa.types.is_floating(type_.value_type))


def answer_piece(
    report: Callable[[Any], None],
    place: str,
    work: str,
    folder: str,
    columns: dict[str, str],
    k: int,
    where: str | None,
    expand: int,
    file: str,
    group: int,
    name: str,
) -> int:
    """Write the hits of one piece, a row group of a file or (-1) all of it, into `work`, unless they stand. Runs in
    the child. Returns how many rows asked."""
    store = Store(work)
    if store.exists(name):
        return 0
    index, asked = opened(place), 0
    among = None if where is None else _among(place, where)
    tables = [ANSWERS.empty_table()]
    for names, vectors, errors in read_queries(f"{folder}/{file}", Columns(**columns), group):
        tables.append(_answer(index, asked, names, vectors, errors, k, among, expand))
        asked += len(names)
        report(asked)
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    store.create(name, sink.getvalue())
    return asked


@functools.lru_cache(maxsize=1)
def _among(place: str, where: str) -> np.ndarray:
    return opened(place).rows_where(where)


Queries = tuple[list[str], list[Any], list[str | None]]  # names, vectors, errors


def read_queries(url: str, columns: Columns, group: int = -1) -> Iterator[Queries]:
    """Names, vectors ((d,) each, None where there is none) and errors of the rows, some at a time."""
    fs, path = open_filesystem(url)
    wanted = [name for name in (columns.vectors, columns.names, columns.errors) if name]
    try:
        with fs.open(path, "rb") as opened:
            file = pq.ParquetFile(opened)
            first = 0 if group < 0 else sum(file.metadata.row_group(g).num_rows for g in range(group))
            for batch in file.iter_batches(AT_ONCE, None if group < 0 else [group], wanted):
                numbered = range(first, first + len(batch))
                names = batch[columns.names].to_pylist() if columns.names else numbered
                errors = batch[columns.errors].to_pylist() if columns.errors else [None] * len(batch)
                vectors = [_vector(value) for value in batch[columns.vectors]]
                yield [f"{name}" for name in names], vectors, errors
                first += len(batch)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SifBatchError(
            f"{url}: cannot be read ({' '.join(str(error).split())[:200]})", remedy="give a Parquet file"
        ) from error


def _vector(value: pa.ListScalar) -> np.ndarray | None:
    return value.values.to_numpy(zero_copy_only=False) if value.is_valid else None


def _answer(
    index: Index,
    first: int,
    names: list[str],
    vectors: list[Any],
    errors: list[str | None],
    k: int,
    among: np.ndarray | None,
    expand: int,
) -> pa.Table:
    """The hits of some queries: ANSWERS. A query that cannot be asked has one row that says why."""
    why = [_error(index, vector, error) for vector, error in zip(vectors, errors, strict=True)]
    good = [i for i, text in enumerate(why) if text is None]
    x = np.stack([vectors[i] for i in good]).astype(np.float32) if good else np.empty((0, index.dimension), np.float32)
    ranked = dict(zip(good, index.ranked(x, k, among=among, expand=expand), strict=True))
    rows = np.concatenate([np.empty(0, np.int64), *(found for found, _ in ranked.values())])
    known = index.roster.take(rows, ["key", "uri"])
    hits = np.array([len(ranked[i][0]) if i in ranked else 1 for i in range(len(names))], np.int64)
    query = np.repeat(np.arange(len(names)), hits)
    is_hit = np.isin(query, good)
    place = np.full(len(query), -1)
    place[is_hit] = np.arange(len(rows))
    rank = np.arange(len(query)) - np.repeat(np.cumsum(hits) - hits, hits) + 1
    taken = known.take(pa.array(place, mask=~is_hit))
    similarity = np.zeros(len(query), np.float32)
    similarity[is_hit] = np.concatenate([np.empty(0, np.float32), *(s for _, s in ranked.values())])
    columns = [
        pa.array(names, pa.string()).take(pa.array(query)),
        pa.array(rank, pa.int32(), mask=~is_hit),
        taken["key"],
        taken["uri"],
        pa.array(similarity, mask=~is_hit),
        pa.array(why, pa.string()).take(pa.array(query)),
        pa.array(first + query),
    ]
    return pa.table(columns, schema=ANSWERS)


def _error(index: Index, vector: Any, error: str | None) -> str | None:
    if vector is None:
        return error or "it has no vector"
    if len(vector) != index.dimension:
        return f"a vector of {len(vector)} numbers, expected {index.dimension}"
    return None if np.isfinite(vector.astype(np.float32)).all() else "a vector that is not finite"

"""Parts: the Parquet file of one shard, a row for every image: an embedding, or the reason why not."""

import io
import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.digests import canonical_json, digest
from sif_batch.errors import SifBatchError
from sif_batch.sources.containers import container_kind
from sif_batch.sources.fields import unicode_of
from sif_batch.storage.store import Store

PART_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("version", pa.string(), nullable=False),
        pa.field("attempt", pa.int8(), nullable=False),
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("sha256", pa.binary(32)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("fields", pa.large_string()),
        pa.field("embedding", pa.list_(pa.float16())),
        pa.field("error_kind", pa.string()),
        pa.field("error", pa.string()),
    ]
)
SPAN = ["source", "path", "version", "first", "last", "end"]
LIGHT = [name for name in PART_SCHEMA.names if name != "embedding"]
FIRST_ROWS = 128  # a small first row group: reading a prefix takes 2 ms instead of 17


def part_path(encoder_id: str, part: str) -> str:
    return f"parts/{encoder_id}/{part}.parquet"


def encode_part(
    rows: list[dict[str, Any]],
    spans: Sequence[dict[str, Any]],
    encoder_id: str,
    fingerprint: dict[str, str],
    superseded: int = 0,
) -> bytes:
    """The part's bytes: rows in order of (hash, key), whatever order they come in.

    rows: one dict of PART_SCHEMA's names each, `embedding` as (d,) float16 or None; spans: dicts of SPAN_SCHEMA;
    superseded: members left out because a later one of their container has the same name.
    """
    rows = sorted(rows, key=lambda row: (row["hash"], row["key"], row["path"]))
    columns = [
        _embedding_column([row["embedding"] for row in rows])
        if field.name == "embedding"
        else pa.array([_written(row[field.name]) for row in rows], field.type)
        for field in PART_SCHEMA
    ]
    made_of = [([span[name] for name in SPAN], span["attempt"]) for span in spans]
    metadata = _metadata(encoder_id.encode(), canonical_json(fingerprint), made_of, superseded)
    return _encode(pa.table(columns, schema=PART_SCHEMA.with_metadata(metadata)))


def _written(value: Any) -> Any:
    """What a message or a field says that cannot be written stops no night."""
    return unicode_of(value) if isinstance(value, str) else value


def _metadata(
    encoder: bytes, fingerprint: bytes, spans: Sequence[tuple[list[Any], int]], superseded: int
) -> dict[bytes, bytes]:
    """What a part says of itself. spans: each with its attempt."""
    return {
        b"encoder": encoder,
        b"fingerprint": fingerprint,
        b"spans": canonical_json([span for span, _ in spans]),
        b"attempts": canonical_json([attempt for _, attempt in spans]),
        b"superseded": str(superseded).encode(),
    }


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression=dict.fromkeys(LIGHT, "zstd") | {"embedding.list.element": "none"},
        use_dictionary=["source", "version", "error_kind", "error"],
        write_statistics=LIGHT,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table.slice(0, FIRST_ROWS))
        if len(table) > FIRST_ROWS:
            writer.write_table(table.slice(FIRST_ROWS), row_group_size=len(table))
    return sink.getvalue()


def copy_rows(parts: dict[str, bytes], kept: dict[str, np.ndarray]) -> tuple[str, bytes]:
    """A part of some rows of others, as they are, and its name. parts: of one encoder and fingerprint; kept: (n,) bool.

    The spans of containers stay; of files, those of the rows that are kept. The new part says which it replaces: it
    takes their place at once, since what stands in both counts in the new one.
    """
    tables = {name: read_columns(pa.BufferReader(data), name, PART_SCHEMA.names) for name, data in parts.items()}
    rows = pa.concat_tables([table.filter(pa.array(kept[name])) for name, table in tables.items()])
    order = [(name, "ascending") for name in ("hash", "key", "path")]
    rows = rows.take(pc.sort_indices(rows, order)).combine_chunks()
    about = [table.schema.metadata for table in tables.values()]
    spans = [(span[: len(SPAN)], span[len(SPAN)]) for one in about for span in container_spans(one)]
    for row in rows.select(["source", "path", "version", "attempt"]).to_pylist() if not spans else ():
        spans.append(([row["source"], row["path"], row["version"], 0, 0, True], row["attempt"]))
    superseded = sum(int(one[b"superseded"]) for one in about)
    metadata = _metadata(about[0][b"encoder"], about[0][b"fingerprint"], spans, superseded)
    replaced = {*parts, *(name for one in about for name in replaces(one))}
    metadata[b"replaces"] = canonical_json(sorted(replaced))
    numbers = [[name, np.flatnonzero(kept[name]).tolist()] for name in sorted(parts)]
    return digest(canonical_json(numbers), 32), _encode(rows.replace_schema_metadata(metadata))


def read_columns(file: BinaryIO, part: str, columns: list[str], groups: list[int] | None = None) -> pa.Table:
    """Some columns of a part, of all or some row groups. A damaged part raises SifBatchError."""
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        table = parquet.read(columns) if groups is None else parquet.read_row_groups(groups, columns)
        return table.select(columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SifBatchError(
            f"part {part} is damaged ({error})", remedy="remove that file; the next run embeds its images again"
        ) from error


def read_light(file: BinaryIO, part: str) -> pa.Table:
    """All columns of a part but the embedding; the schema's metadata holds its spans and fingerprint."""
    return read_columns(file, part, LIGHT)


def read_embeddings(store: Store, encoder_id: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The part's good rows: their numbers, (n,) uint16, and embeddings, (n, d) float16."""
    return embeddings_of(store.read(part_path(encoder_id, part)), part, encoder_id)


def embeddings_of(data: bytes, part: str, encoder_id: str) -> tuple[np.ndarray, np.ndarray]:
    """As `read_embeddings`, from the part's bytes. A damaged part, or one of another encoder, raises SifBatchError."""
    table = read_columns(pa.BufferReader(data), part, ["embedding"])
    made_by = (table.schema.metadata or {}).get(b"encoder", b"none").decode()
    if made_by != encoder_id:
        raise SifBatchError(
            f"part {part} is of the encoder {made_by}, not of {encoder_id}",
            remedy="remove that file; the next run embeds its images again",
        )
    column = table["embedding"].combine_chunks()
    good = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).astype(np.uint16)
    values = column.flatten().to_numpy()
    if len(good) and len(values) % len(good):
        raise SifBatchError(
            f"part {part} holds vectors of several dimensions",
            remedy="remove that file; the next run embeds its images again",
        )
    vectors = values.reshape(len(good), -1) if len(good) else np.empty((0, 0), np.float16)
    if not np.isfinite(vectors).all():
        raise SifBatchError(f"part {part} holds vectors that are not finite", remedy="remove that file and run again")
    return good, vectors


def replaces(metadata: dict[bytes, bytes]) -> list[str]:
    """The parts whose rows a part has taken over."""
    return [str(name) for name in json.loads(metadata.get(b"replaces", b"[]"))]


def container_spans(metadata: dict[bytes, bytes]) -> list[list[Any]]:
    """[source, path, version, first, last, end, attempt, superseded] of the container that a part is of, if any."""
    spans = json.loads(metadata[b"spans"])
    if not any(container_kind(path) for _, path, *_ in spans):
        return []
    attempts, superseded = json.loads(metadata[b"attempts"]), int(metadata[b"superseded"])
    return [[*span, attempt, superseded] for span, attempt in zip(spans, attempts, strict=True)]


def _embedding_column(vectors: list[np.ndarray | None]) -> pa.Array:
    lengths = np.array([0 if vector is None else len(vector) for vector in vectors], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    good = [vector for vector in vectors if vector is not None]
    values = np.concatenate(good) if good else np.empty(0, np.float16)
    mask = pa.array([vector is None for vector in vectors], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float16()), mask=mask)

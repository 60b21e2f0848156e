"""Parquet files with a column of encoded images; a member is a row, named by its number."""

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.sources.containers import Member, Piece, Pieces, are_containers
from sif_batch.sources.fields import json_values
from sif_batch.sources.files import open_source
from sif_batch.sources.names import local_of
from sif_batch.storage.urls import is_local

BATCH_ROWS = 32
BUFFER_BYTES = 2**20  # read at once of a column: pages are in memory, a row group never whole


def read_table(file: BinaryIO, first: int, column: str | None, keep: Sequence[str], max_bytes: int) -> Pieces:
    """The images of the file's rows from number `first` on; keep: other columns that become fields ("*": all).

    A damaged row group is passed over. Raises ImageError at the end if one was, at once if nothing can be read.
    """
    try:
        parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        image, others = choose_columns(parquet.schema_arrow, column, keep)
    except SifBatchError as error:
        raise ImageError("unsupported", str(error)) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        raise ImageError("corrupt", f"no Parquet file that can be read: {error}"[:500]) from error
    start, damage = 0, None
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        number, start = start, start + rows
        if start <= first:
            continue
        try:
            for batch in parquet.iter_batches(BATCH_ROWS, [group], [image, *others]):
                if number + len(batch) > first:
                    yield from _pieces(batch, number, first, image, max_bytes)
                number += len(batch)
        except (pa.ArrowException, OSError) as error:
            damage = damage or ImageError("corrupt", f"row group {group}, from row {number} on: {error}"[:500])
    if damage:
        raise damage


def choose_columns(schema: pa.Schema, column: str | None, keep: Sequence[str]) -> tuple[str, list[str]]:
    """The column of image bytes (binary, or a struct with `bytes` as Hugging Face writes it), and those to keep.

    column: its name; None: the only one that fits. Raises SifBatchError.
    """
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    if column is None and len(fitting) != 1:
        raise SifBatchError(
            f"{len(fitting) or 'no'} columns hold bytes ({', '.join(fitting or schema.names)})",
            remedy="name the one with the images: --image-column NAME",
        )
    image = column or fitting[0]
    if image not in fitting:
        raise SifBatchError(
            f"no column {image!r} that holds bytes", remedy=f"--image-column takes one of: {', '.join(fitting)}"
        )
    others = [name for name in schema.names if name != image] if "*" in keep else list(keep)
    if unknown := [name for name in others if name not in schema.names]:
        raise SifBatchError(f"no column {unknown[0]!r}", remedy=f"--keep takes of: {', '.join(schema.names)}")
    if twice := [name for name in (image, *others) if schema.names.count(name) > 1]:
        raise SifBatchError(f"two columns are named {twice[0]!r}", remedy="give each column a name of its own")
    return image, others


def _holds_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return type_.get_field_index("bytes") >= 0 and _holds_bytes(type_.field("bytes").type)
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_))


def _pieces(batch: pa.RecordBatch, number: int, first: int, image: str, max_bytes: int) -> Pieces:
    others = {name: json_values(batch[name]) for name in batch.schema.names if name != image}
    for place, value in enumerate(batch[image]):
        ordinal = number + place
        if ordinal < first:
            continue
        data = value.as_py()
        if isinstance(data, dict):
            data = data["bytes"]
        if data is None:
            data = ImageError("not_an_image", "the row has no bytes")
        elif len(data) > max_bytes:
            data = ImageError("too_large", f"{len(data)} bytes; the limit is {max_bytes}")
        fields = {name: values[place] for name, values in others.items()}
        yield Piece(ordinal, [Member(ordinal, str(ordinal), data, fields)])


def check_table(source: Source, paths: pa.ChunkedArray) -> None:
    """Raise SifBatchError if a source's first Parquet file has not the columns that are asked for."""
    tables = paths.filter(pa.array(are_containers(paths, "parquet")))
    if not len(tables):
        return
    first = tables[0].as_py()
    fs, base = open_source(source)
    try:
        with fs.open(local_of(f"{base}/{first}") if is_local(fs) else f"{base}/{first}", "rb") as file:
            schema = pq.ParquetFile(file).schema_arrow
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return  # its row will say so
    try:
        choose_columns(schema, source.image_column, source.keep)
    except SifBatchError as error:
        raise SifBatchError(f"{source.url}: {first}: {error}", remedy=error.remedy) from error

"""Parquet files with a column of encoded images; a member is a row, named by its number."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.images.decode import MAX_BYTES
from sif_batch.sources.containers import Member, Piece, Pieces, are_containers
from sif_batch.sources.fields import json_values
from sif_batch.sources.files import open_source
from sif_batch.sources.names import path_in
from sif_batch.sources.parquet_pages import rows_within

BUFFER_BYTES = 2**20  # read at once of a column: pages are in memory, a row group never whole
MAX_FIELD_BYTES = 2**20  # of what is kept of a row, as of a sidecar in an archive


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
    start, damage, limit = 0, None, max(MAX_BYTES, max_bytes)
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        number, start = start, start + rows
        if start <= first:
            continue
        try:
            readable = rows_within(file, parquet, group, [image, *others], limit)
            # One row at a time: a dictionary or a good compression makes any number of large ones of few bytes.
            for batch in parquet.iter_batches(1, [group], [image, *others], use_threads=False) if readable else ():
                if number >= first:
                    yield Piece(number, [_member(batch, number, image, max_bytes)])
                number += 1
                if number - start + rows == readable:
                    break
            if readable < rows:
                why = f"the pages of row group {group}, from row {number} on, inflate to more than {limit} bytes"
                damage = damage or ImageError("too_large", why)
            elif number < start:
                damage = damage or ImageError("corrupt", f"row group {group} has no row {number}")
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
    if pa.types.is_dictionary(type_):
        return _holds_bytes(type_.value_type)
    if pa.types.is_struct(type_):
        return type_.get_field_index("bytes") >= 0 and _holds_bytes(type_.field("bytes").type)
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_))


def _member(batch: pa.RecordBatch, number: int, image: str, max_bytes: int) -> Member:
    """The image of a batch of one row."""
    batch = pa.record_batch([_plain_column(column) for column in batch.columns], batch.schema.names)
    value, others = batch[image][0], batch.drop_columns([image])
    if pa.types.is_struct(value.type):
        value = value["bytes"] if value.is_valid else pa.scalar(None, pa.binary())
    data: bytes | ImageError
    if not value.is_valid:
        data = ImageError("not_an_image", "the row has no bytes")
    elif (size := value.as_buffer().size) > max_bytes:
        data = ImageError("too_large", f"{size} bytes; the limit is {max_bytes}")
    else:
        data = value.as_py()
    fields: dict[str, Any] = {}
    if others.get_total_buffer_size() > MAX_FIELD_BYTES and others.nbytes > MAX_FIELD_BYTES:
        data = ImageError("too_large", f"{others.nbytes} bytes in the columns to keep; the limit is {MAX_FIELD_BYTES}")
    elif others.num_columns:
        try:
            fields = {name: json_values(others[name])[0] for name in others.schema.names}
        except (ValueError, OverflowError) as error:  # no UTF-8, a date that Python has not
            data = ImageError("corrupt", f"its columns cannot be read: {error}"[:500])
    return Member(number, str(number), data, fields)


def _plain_column(column: pa.Array) -> pa.Array:
    """Without the dictionary of the values of all other rows."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def check_table(source: Source, paths: pa.ChunkedArray) -> None:
    """Raise SifBatchError if a source's first Parquet file has not the columns that are asked for."""
    tables = paths.filter(pa.array(are_containers(paths, "parquet")))
    if not len(tables):
        return
    first = tables[0].as_py()
    fs, base = open_source(source)
    try:
        with fs.open(path_in(fs, f"{base}/{first}"), "rb") as file:
            schema = pq.ParquetFile(file).schema_arrow
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return  # its row will say so
    try:
        choose_columns(schema, source.image_column, source.keep)
    except SifBatchError as error:
        raise SifBatchError(f"{source.url}: {first}: {error}", remedy=error.remedy) from error

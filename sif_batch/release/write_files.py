"""The files of a release: segments, index.faiss, the transform, images.arrow, the encoder."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.index.codebooks import fill_codebook
from sif_batch.index.quantizer import ARRAYS, Quantizer, array_bytes
from sif_batch.index.rerank_rows import row_type
from sif_batch.machine.arithmetic import import_faiss
from sif_batch.machine.read_ahead import ahead
from sif_batch.release.columns import column_name, column_types, make_columns
from sif_batch.release.external_sort import Buckets, check_scratch
from sif_batch.storage.store import Store

TABLE_ROWS = 16_384  # rows in a batch of images.arrow
WRITE_BYTES = 2**20  # at a time


def write_segment(quantizer: Quantizer, buckets: Buckets, start: int, end: int, folder: Path) -> None:
    """index.faiss and rows.npy of the release rows from `start` to `end`."""
    folder.mkdir()
    spec = quantizer.spec
    code = np.empty((end - start, quantizer.code_width), np.uint8)
    kind = row_type(spec.rows)
    with open(folder / "rows.npy", "wb") if spec.rows != "none" else io.BytesIO() as file:
        shape = (end - start, spec.row_bytes // kind.itemsize)
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        if spec.rows != "none":
            check_scratch(folder, shape[0] * spec.row_bytes)
        within = np.flatnonzero((buckets.ends > start) & (buckets.ends <= end)).tolist()
        for bucket, (some, kept) in ahead(buckets.take, within, 1, 1):  # one is put in order while another is written
            last = int(buckets.ends[bucket]) - start
            code[last - len(some) : last] = some
            file.write(kept.data)
    if quantizer.index is not None:
        write_index(fill_codebook(spec.family, quantizer.index, code), folder / "index.faiss")


def write_index(index: Any, path: Path) -> None:
    """Write a faiss index through a file of Python's: faiss itself does not tell when the last bytes find no room."""
    failed: list[OSError] = []
    with open(path, "wb") as file:

        def write(data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                failed.append(error)
                raise

        try:
            import_faiss().write_index(index, import_faiss().PyCallbackIOWriter(write, WRITE_BYTES))
        except RuntimeError:
            if failed:
                raise failed[0] from None
            raise


def write_transform(quantizer: Quantizer, into: Path) -> None:
    if quantizer.transform.mean is not None:
        (into / "quantizer").mkdir()
        for name in ARRAYS:
            (into / f"quantizer/{name}.npy").write_bytes(array_bytes(getattr(quantizer.transform, name)))


def write_images(live: pa.Table, path: Path) -> None:
    """images.arrow: who each row is, and its columns; uncompressed, to be mapped."""
    member = pc.replace_substring_regex(live["member"], r"^(\./+)+", "")
    inside = pc.case_when(
        pc.make_struct(member.is_null()), live["path"], pc.binary_join_element_wise(live["path"], member, "/")
    )
    folder = pc.replace_substring_regex(inside, "/?[^/]*$", "")
    wide = {name: live[name].cast(pa.large_string()) for name in ("key", "uri", "source")}
    table = pa.table(
        {
            "key": wide["key"],
            "hash": live["hash"],
            "uri": wide["uri"],
            "sha256": live["sha256"],
            "source": wide["source"],
            "folder": folder.cast(pa.large_string()),
            "width": live["width"],
            "height": live["height"],
        }
    )
    types = column_types(live["fields"])
    named = [pa.field(column_name(name), type_) for name, type_ in types.items()]
    schema = pa.schema([*table.schema, *named])
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, max(1, len(table)), TABLE_ROWS):
            rows = table.slice(start, TABLE_ROWS)
            own = make_columns(live["fields"].slice(start, TABLE_ROWS), types)
            writer.write_table(pa.table([*rows.columns, *own], schema=schema).combine_chunks())


def copy_encoder(store: Store, encoder_id: str, into: Path) -> None:
    into.mkdir()
    lowered = ["fp32.onnx"] if store.exists(f"encoders/{encoder_id}/fp32.onnx") else []
    for name in ("model.onnx", *lowered, "encoder.json"):
        if store.local:
            shutil.copyfile(store.path(f"encoders/{encoder_id}/{name}"), into / name)
        else:
            (into / name).write_bytes(store.read(f"encoders/{encoder_id}/{name}"))

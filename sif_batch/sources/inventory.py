"""Inventories: ready lists of a source's entries, as object stores write them each day, read instead of walking."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.sources.files import FOUND_SCHEMA, WILDCARD, are_entries, base_of, entry_rule
from sif_batch.storage.root import RECORD
from sif_batch.storage.urls import open_filesystem

# What the columns are called, in any case: by S3 Inventory, by GCS inventory reports, and plainly.
NAMES = {
    "path": ("key", "name", "path"),
    "size": ("size",),
    "version": ("version", "e_tag", "etag", "md5hash", "generation"),
    "bucket": ("bucket",),
    "latest": ("is_latest", "islatest"),
    "deleted": ("is_delete_marker", "isdeletemarker"),
}
TYPES = {"path": pa.string(), "size": pa.int64(), "version": pa.string(), "bucket": pa.string()}
TYPES |= {"latest": pa.bool_(), "deleted": pa.bool_()}
MANIFEST = "manifest.json"
ROWS, BLOCK_BYTES, HEADER = 2**18, 2**24, 2**16  # read at a time
REMEDY = "give Parquet, CSV with a header (key, size, version or e_tag), or S3's manifest.json, as docs/how-to.md shows"


@dataclass(frozen=True)
class File:
    """One file of an inventory. columns: what they are called where it has no header, as in S3's CSV."""

    name: str
    columns: list[str] | None = None

    @property
    def is_parquet(self) -> bool:
        return self.name.lower().endswith(".parquet")


def read_inventory(
    source: Source,
    on_progress: Callable[[int], None] = lambda found: None,
    on_root: Callable[[str], None] = lambda folder: None,
) -> tuple[pa.Table, int]:
    """The entries that the source's inventory lists, FOUND_SCHEMA; and how many others it lists.

    A key is a path inside the source, or one that begins with the source's own (as in a bucket). on_root: takes each
    folder that may be a ROOT. Raises SifBatchError.
    """
    assert source.inventory is not None  # who calls looks
    base = f"{base_of(source.url).rstrip('/')}/"
    bucket, _, start = base.partition("://")[2].partition("/") if "://" in base else (None, "", base)
    tables, ignored, taken = [FOUND_SCHEMA.empty_table()], 0, 0
    fs, path = open_filesystem(source.inventory)
    for file in _files(fs, path, source.inventory):
        pieces = [_entries_of(file, piece, bucket) for piece in _read(fs, file)]
        inside = bool(start) and any(_any(pc.starts_with(piece["path"], start)) for piece in pieces)
        while pieces:  # those that are done with are given back
            found = pieces.pop(0)
            listed = len(found)
            if inside:
                found = found.filter(pc.starts_with(found["path"], start))
                found = found.set_column(0, "path", pc.utf8_slice_codeunits(found["path"], len(start)))
            for name in found["path"].filter(pc.ends_with(found["path"], f"/{RECORD}")).to_pylist():
                on_root(name.removesuffix(f"/{RECORD}"))
            tables.append(found.filter(_rule(source, found["path"])))
            taken, ignored = taken + len(tables[-1]), ignored + listed - len(tables[-1])
            on_progress(taken)
    return pa.concat_tables(tables), ignored


def _rule(source: Source, paths: pa.ChunkedArray) -> pa.Array:
    """Which paths are the source's, by its glob, --include, --exclude and their names."""
    base = base_of(source.url)
    if base == source.url and not (source.include or source.exclude):
        return pa.array(are_entries(source, paths.combine_chunks()))
    is_entry, wanted = entry_rule(source), re.compile(glob_translate(source.url)).match
    return pa.array(
        [is_entry(p) and bool(base == source.url or wanted(f"{base.rstrip('/')}/{p}")) for p in paths.to_pylist()],
        pa.bool_(),
    )


def _files(fs: Any, path: str, place: str) -> list[File]:
    """The files that a path or glob names; of the manifests of S3 Inventory the newest, and what it names."""
    names = sorted(fs.glob(path)) if WILDCARD.search(path) else [path]
    if not names:
        raise SifBatchError(f"--inventory {place}: there is no such file", remedy=REMEDY)
    if not names[-1].endswith(MANIFEST):
        return [File(name) for name in names]
    try:
        manifest = json.loads(fs.cat_file(names[-1]))
        form, listed = manifest["fileFormat"], [file["key"] for file in manifest["files"]]
        columns = [name.strip() for name in manifest["fileSchema"].split(",")] if form == "CSV" else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SifBatchError(f"--inventory {names[-1]}: cannot be read ({error})", remedy=REMEDY) from error
    if form not in ("CSV", "Parquet"):
        raise SifBatchError(f"--inventory {names[-1]}: files of the format {form}", remedy=REMEDY)
    folder = names[-1].rsplit("/", 2)[0]  # of all days: DAY/manifest.json, and data/
    return [File(f"{folder}/data/{key.rpartition('/')[2]}", columns) for key in listed]


def _read(fs: Any, file: File) -> Iterator[pa.Table]:
    """The columns that count, under their own names, some thousands of rows at a time."""
    try:
        with fs.open(file.name, "rb") as stream:
            if file.is_parquet:
                yield from _read_parquet(file, stream)
                return
            names = file.columns or _header(_unpacked(file, fs.open(file.name, "rb")))
            yield from _read_csv(file, names, _unpacked(file, stream))
    except (OSError, pa.ArrowException) as error:
        raise SifBatchError(f"--inventory {file.name}: cannot be read ({error})", remedy=REMEDY) from error


def _read_parquet(file: File, stream: BinaryIO) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(stream)
    columns = _columns(file, parquet.schema_arrow.names)
    for batch in parquet.iter_batches(ROWS, columns=list(columns.values()), use_threads=False):
        yield pa.Table.from_batches([batch])


def _header(stream: pa.NativeFile) -> list[str]:
    with stream:
        return next(csv.reader([stream.read(HEADER).decode("utf-8-sig", "replace").partition("\n")[0]]))


def _read_csv(file: File, names: list[str], stream: pa.NativeFile) -> Iterator[pa.Table]:
    columns = _columns(file, names)
    reader = pyarrow.csv.open_csv(
        stream,
        read_options=pyarrow.csv.ReadOptions(
            column_names=names, skip_rows=0 if file.columns else 1, block_size=BLOCK_BYTES
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(columns.values()), column_types={name: TYPES[what] for what, name in columns.items()}
        ),
    )
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _unpacked(file: File, stream: BinaryIO) -> pa.NativeFile:
    opened = pa.PythonFile(stream, "r")
    return pa.CompressedInputStream(opened, "gzip") if file.name.lower().endswith(".gz") else opened


def _columns(file: File, names: Sequence[str]) -> dict[str, str]:
    """What is called how in the file. Raises SifBatchError where what must be is missing."""
    lower = {name.lower(): name for name in names}
    found = {what: next((lower[n] for n in known if n in lower), None) for what, known in NAMES.items()}
    if missing := [what for what in ("path", "size", "version") if found[what] is None]:
        raise SifBatchError(
            f"--inventory {file.name}: no column {' or '.join(NAMES[missing[0]])} among {', '.join(names)}",
            remedy=REMEDY,
        )
    return {what: name for what, name in found.items() if name is not None}


def _entries_of(file: File, table: pa.Table, bucket: str | None) -> pa.Table:
    """FOUND_SCHEMA of an inventory's rows, old versions and other buckets left out."""
    columns = _columns(file, table.column_names)
    keep: Any = pa.scalar(True)
    for what, wanted in (("bucket", bucket), ("latest", True), ("deleted", False)):
        if what in columns and wanted is not None:
            keep = pc.and_(keep, pc.equal(table[columns[what]], wanted))
    if not isinstance(keep, pa.Scalar):
        table = table.filter(keep)
    paths, versions = table[columns["path"]].cast(pa.string()), table[columns["version"]].cast(pa.string())
    # S3's CSV has keys as URLs have them; so has what was made of it, with a header.
    encoded = file.columns or (not file.is_parquet and "bucket" in columns and _any(pc.match_substring(paths, "%")))
    if encoded and _any(pc.match_substring_regex(paths, "[%+]")):
        paths = pa.chunked_array([[unquote_plus(path) for path in paths.to_pylist()]], pa.string())
    found = pa.table(
        [paths, table[columns["size"]].cast(pa.int64()), pc.replace_substring(versions, '"', "")], schema=FOUND_SCHEMA
    )
    if any(column.null_count for column in found.columns):
        raise SifBatchError(f"--inventory {file.name}: a key, size or version is missing in some row", remedy=REMEDY)
    return found


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())

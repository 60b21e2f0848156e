"""Inventories: ready lists of a source's entries, as object stores write them each day, read instead of walking."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from sif_batch.config import SifBatchError, Source
from sif_batch.sources.files import FOUND_SCHEMA, WILDCARD, are_entries, base_of, entry_rule
from sif_batch.storage import open_filesystem

# What the columns are called, in any case: by S3 Inventory, by GCS inventory reports, and plainly.
NAMES = {
    "path": ("key", "name", "path"),
    "size": ("size",),
    "version": ("version", "e_tag", "etag", "md5hash", "generation"),
    "bucket": ("bucket",),
    "latest": ("is_latest", "islatest"),
    "deleted": ("is_delete_marker", "isdeletemarker"),
}
REMEDY = "give Parquet, or CSV with a header, with columns key, size and version (or e_tag), as docs/how-to.md shows"


def read_inventory(source: Source, on_progress: Callable[[int], None] = lambda found: None) -> tuple[pa.Table, int]:
    """The entries that the source's inventory lists, FOUND_SCHEMA; and how many others it lists.

    A key is a path inside the source, or one that begins with the source's own (as in a bucket). Raises SifBatchError.
    """
    assert source.inventory is not None  # who calls looks
    base = f"{base_of(source.url).rstrip('/')}/"
    bucket, _, start = base.partition("://")[2].partition("/") if "://" in base else (None, "", base)
    tables, ignored, taken = [FOUND_SCHEMA.empty_table()], 0, 0
    for name, table in _read(source.inventory):
        found = _entries_of(name, table, bucket)
        inside = pc.starts_with(found["path"], start)
        if start and pc.any(inside).as_py():
            ignored += len(found) - int(pc.sum(inside).as_py())
            found = found.filter(inside)
            found = found.set_column(0, "path", pc.utf8_slice_codeunits(found["path"], len(start)))
        mask = _rule(source, found["path"])
        ignored += len(found) - int(pc.sum(mask).as_py() or 0)
        tables.append(found.filter(mask))
        taken += len(tables[-1])
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


def _read(place: str) -> Iterator[tuple[str, pa.Table]]:
    """The tables that a path, URL or glob names, each with its name."""
    fs, path = open_filesystem(place)
    names = sorted(fs.glob(path)) if WILDCARD.search(path) else [path]
    if not names:
        raise SifBatchError(f"--inventory {place}: there is no such file", remedy=REMEDY)
    for name in names:
        try:
            with fs.open(name, "rb") as file:
                if name.lower().endswith(".parquet"):
                    yield name, pq.read_table(file)
                else:
                    compressed = name.lower().endswith(".gz")
                    stream = pa.CompressedInputStream(file, "gzip") if compressed else file
                    yield name, pyarrow.csv.read_csv(stream)
        except (OSError, pa.ArrowException) as error:
            raise SifBatchError(f"--inventory {name}: cannot be read ({error})", remedy=REMEDY) from error


def _entries_of(name: str, table: pa.Table, bucket: str | None) -> pa.Table:
    """FOUND_SCHEMA of an inventory's rows, old versions and other buckets left out."""
    lower = {column.lower(): column for column in table.column_names}
    columns = {what: next((lower[n] for n in names if n in lower), None) for what, names in NAMES.items()}
    if missing := [what for what in ("path", "size", "version") if columns[what] is None]:
        raise SifBatchError(
            f"--inventory {name}: no column {' or '.join(NAMES[missing[0]])} among {', '.join(table.column_names)}",
            remedy=REMEDY,
        )
    keep: Any = pa.scalar(True)
    for what, wanted in (("bucket", bucket), ("latest", True), ("deleted", False)):
        if columns[what] is not None and wanted is not None:
            keep = pc.and_(keep, pc.equal(table[columns[what]], wanted))
    if not isinstance(keep, pa.Scalar):
        table = table.filter(keep)
    paths, versions = table[columns["path"]].cast(pa.string()), table[columns["version"]].cast(pa.string())
    if not name.lower().endswith(".parquet") and columns["bucket"] is not None and _any(pc.match_substring(paths, "%")):
        paths = pa.chunked_array([[unquote_plus(path) for path in paths.to_pylist()]], pa.string())  # S3's CSV
    found = pa.table(
        [paths, table[columns["size"]].cast(pa.int64()), pc.replace_substring(versions, '"', "")], schema=FOUND_SCHEMA
    )
    if any(column.null_count for column in found.columns):
        raise SifBatchError(f"--inventory {name}: a key, size or version is missing in some row", remedy=REMEDY)
    return found.filter(pc.invert(pc.ends_with(found["path"], "/")))


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())

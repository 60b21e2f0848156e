"""The listing: one complete table of the sources' entries, whatever kind of source they are."""

import io
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.config import Source
from sif_batch.digests import canonical_json, sha256_of
from sif_batch.errors import SifBatchError
from sif_batch.sources.apart import leave_roots_out
from sif_batch.sources.containers import SUFFIXES, UNREAD, container_versions
from sif_batch.sources.files import base_of, find_files, local_version, open_source
from sif_batch.sources.inventory import read_inventory
from sif_batch.sources.names import COLONS, key_of, local_of
from sif_batch.sources.parquet import check_table
from sif_batch.storage.store import Store
from sif_batch.storage.urls import check_text, is_local, open_filesystem

LISTING_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ]
)
ROW_GROUP = 2**20
BLOCK = 2**16
NAMED = re.compile(r"^([a-z0-9_-]+)=(.+)$")


@dataclass(frozen=True)
class Listing:
    """entries: LISTING_SCHEMA in order of (source, path); ignored: files that are no entries, by source."""

    entries: pa.Table
    ignored: dict[str, int] = field(default_factory=dict)

    def save(self, store: Store) -> str:
        """Write listings/<UTC>-<digest12>.parquet, unless the newest one says the same. Returns its name."""
        with store.scratch("listings") as folder:
            with open(made := folder / "listing.parquet", "wb") as file:
                self.write(file)
            sha256 = sha256_of(made)
            suffix = f"-{sha256[:12]}.parquet"
            newest = next(iter(listing_names(store)), "")
            if newest.endswith(suffix):
                if sha256_of(store.fetch(newest, folder)) != sha256:  # damaged since
                    store.publish(newest, made, replace=True)
                return newest
            while newest.startswith(stamp := f"listings/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"):
                time.sleep(0.05)  # of two of one second nobody could tell which is the newer
            store.publish(name := f"{stamp}{suffix}", made)
        return name

    def write(self, sink: BinaryIO) -> None:
        """The listing as a Parquet file, of the same bytes however the entries are held."""
        schema = LISTING_SCHEMA.with_metadata({b"ignored": canonical_json(self.ignored)})
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for start in range(0, max(1, len(self.entries)), ROW_GROUP):
                rows = self.entries.slice(start, ROW_GROUP).combine_chunks()
                writer.write_table(rows.replace_schema_metadata(schema.metadata))

    def encode(self) -> bytes:
        self.write(sink := io.BytesIO())
        return sink.getvalue()

    @staticmethod
    def load(store: Store, name: str) -> "Listing":
        try:
            with store.open(name) as file:
                table = pq.ParquetFile(file).read(use_threads=False)
            ignored = json.loads((table.schema.metadata or {}).get(b"ignored", b"{}"))
            if not table.schema.equals(LISTING_SCHEMA):
                raise ValueError("it has other columns")
        except FileNotFoundError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SifBatchError(
                f"{store.path(name)} is damaged ({error})", remedy="remove that file; the next run lists anew"
            ) from error
        return Listing(table.replace_schema_metadata(None), ignored)


def keys_of(entries: pa.Table) -> pa.Array:
    """The key of each entry of a listing: `sources.names.key_of`, for a column at once."""
    joined = pc.binary_join_element_wise(entries["source"], entries["path"], "/")
    joined = joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
    plain = pc.string_is_ascii(joined)
    # pyarrow 25's utf8_normalize decomposes where NFC is asked for.
    others = entries.select(["source", "path"]).filter(pc.invert(plain)).to_pylist()
    normal = pa.array([key_of(**other) for other in others], pa.string())
    return pc.replace_with_mask(pc.replace_substring(joined, "::", COLONS), pc.invert(plain), normal)


def listing_names(store: Store) -> list[str]:
    """The listings of ROOT, newest first."""
    return [f"listings/{name}" for name in reversed(store.sizes("listings"))]


def parse_sources(texts: Sequence[str], **options: Any) -> tuple[Source, ...]:
    """`[NAME=]PATH_OR_URL` texts as sources; a name defaults to the last path component before any wildcard.

    options: Source's own, the same for all.
    """
    sources: dict[str, Source] = {}
    for text in texts:
        check_text(text)
        match = NAMED.match(text)
        name, place = (match[1], match[2]) if match else ("", text)
        fs, path = open_filesystem(place)
        url = os.path.abspath(path) if is_local(fs) else fs.unstrip_protocol(path)
        if not name:
            last = base_of(url).rstrip("/").rsplit("/", 1)[-1]
            name = re.sub(r"[^a-z0-9_-]+", "-", last.lower()).strip("-") or "source"
        if name in sources:
            raise SifBatchError(
                f"two sources are named {name!r}: {sources[name].url} and {url}",
                remedy=f"give one another name: other={text}",
            )
        sources[name] = Source(name=name, url=url, **options)
    if len(sources) > 1 and options.get("inventory"):
        raise SifBatchError(
            "one inventory for several sources", remedy="name one SOURCE a command, with its --inventory"
        )
    return tuple(sources.values())


def list_sources(
    sources: Sequence[Source],
    on_progress: Callable[[int], None] = lambda found: None,
    say: Callable[[str], None] = lambda text: None,
) -> Listing:
    """List every source whole. A source that cannot be listed, or that is empty, stops here; ROOTs are left out."""
    tables, ignored = [LISTING_SCHEMA.empty_table()], {}
    for source in sorted(sources, key=lambda source: source.name):
        find = read_inventory if source.inventory else find_files
        folders: list[str] = []
        found, left_out = find(source, on_progress, folders.append)
        found, in_roots = leave_roots_out(source, found, folders, say)
        left_out += in_roots
        if not len(found):
            raise _nothing_in(source, left_out)
        found = in_order(found)
        paths = found["path"]
        if pc.any(pc.equal(paths[:-1], paths[1:])).as_py():
            if source.inventory:
                raise SifBatchError(
                    f"{source.inventory} lists some entries more than once",
                    remedy="list the current version of each alone",
                )
            found = _tell_twins_apart(source, found)
        check_table(source, paths)
        versions = container_versions(source, found["path"], found["version"])
        columns = [_repeated(source.name, len(found)), found["path"], found["size"], versions]
        tables.append(pa.table(columns, schema=LISTING_SCHEMA))
        ignored[source.name] = left_out
    return Listing(pa.concat_tables(tables), ignored)


def _nothing_in(source: Source, left_out: int) -> SifBatchError:
    if suffix := next((end for end in UNREAD if source.url.lower().endswith(end)), None):
        return SifBatchError(
            f"{source.url}: {suffix} files are not read",
            remedy=f"unpack them, or pack them as one of: {', '.join(SUFFIXES)}",
        )
    what = f" (ignored by name: {left_out})" if left_out else ""
    return SifBatchError(
        f"{source.url}: no images found{what}",
        remedy="check the path or the mount; --include '*.tar' takes in what its glob matches by name",
    )


def _repeated(name: str, count: int) -> pa.ChunkedArray:
    """The name so many times, in memory but once for some thousands."""
    block = pa.repeat(name, min(count, BLOCK))
    return pa.chunked_array([block] * (count // BLOCK) + [block.slice(0, count % BLOCK)], pa.string())


def _tell_twins_apart(source: Source, found: pa.Table) -> pa.Table:
    """Files whose names are one as text stay several entries: first the one that this text opens, the others with a
    number behind their version. They have one key, so that the others are never read."""
    fs, base = open_source(source)
    paths, versions = found["path"].to_pylist(), found["version"].to_pylist()
    order = list(range(len(paths)))
    for path, group in itertools.groupby(range(len(paths)), paths.__getitem__):
        first, *others = numbers = list(group)
        if not others:
            continue
        opened = ""
        with suppress(OSError):
            opened = local_version(os.stat(local_of(f"{base}/{path}"))) if is_local(fs) else ""
        numbers.sort(key=lambda number: (versions[number] != opened, versions[number]))
        order[first : others[-1] + 1] = numbers
        for count, number in enumerate(numbers[1:], 2):
            versions[number] += f"#{count}"
    marked = found.set_column(found.column_names.index("version"), "version", pa.array(versions, pa.string()))
    return marked.take(pa.array(order)).combine_chunks()


def in_order(found: pa.Table) -> pa.Table:
    """The rows in order of path, as buckets and inventories give them anyway."""
    if are_rising(found["path"]):
        return found
    return found.take(pc.sort_indices(found, [("path", "ascending")])).combine_chunks()


def are_rising(paths: pa.Array | pa.ChunkedArray) -> bool:
    """Whether they stand in order already, which is told sooner than sorted."""
    return len(paths) < 2 or bool(pc.all(pc.less_equal(paths[:-1], paths[1:])).as_py())


def place_of(place: str) -> str | None:
    """A path as it is recorded, absolute; a URL as it is; None for `none`."""
    return None if place == "none" else place if "://" in place else os.path.abspath(place)

"""Directories and globs of image files, on local disk or any fsspec filesystem.

An entry is a file without extension or with one that Pillow registers; every other name is ignored and
counted, and so is whatever is hidden (a name that begins with a dot, or lies below one). Links are
followed, a link that leads back to its own ancestors is not. What a file holds is decided by its content.
Containers (tar, Parquet) are entries where the source's own URL, or --include, names them.
"""

import fnmatch
import functools
import itertools
import operator
import os
import re
import stat as modes
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.images.formats import registered_extensions
from sif_batch.sources.containers import are_containers, container_kind
from sif_batch.sources.names import text_of
from sif_batch.storage.bucket_filesystem import Objects
from sif_batch.storage.root import RECORD, is_root
from sif_batch.storage.urls import is_local, open_filesystem

WILDCARD = re.compile(r"[*?\[]")
HIDDEN = re.compile(r"(^|/)\.([^./]|\.[^/])")  # no key of a store is that for a folder `.` or `..`
REPORT_EVERY = 10_000
SORTED = 2**17  # files of a folder that are held at once
ETAG_FIELDS = ("ETag", "etag", "md5Hash", "content_md5")
TIME_FIELDS = ("mtime", "LastModified", "last_modified", "updated", "created")

Found = tuple[str, int, str]  # path inside the source (raw), size in bytes, version
Placed = tuple[str, str, os.stat_result | None]  # place among others, path inside the source
Columns = tuple[Sequence[str], Sequence[int], Sequence[str]]
FOUND_SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64()), ("version", pa.string())])


def base_of(url: str) -> str:
    """The part of a source's URL before any wildcard, cut at a slash."""
    match = WILDCARD.search(url)
    if match is None or (os.path.isabs(url) and os.path.lexists(url)):
        return url
    return url[: match.start()].rpartition("/")[0] or "/"


def find_files(
    source: Source,
    on_progress: Callable[[int], None] = lambda found: None,
    on_root: Callable[[str], None] = lambda folder: None,
) -> tuple[pa.Table, int]:
    """All entries of the source, FOUND_SCHEMA in no order; and how many files were ignored.

    on_root: takes each folder that may be a ROOT. Local ones are, and are not walked. Raises SifBatchError.
    """
    tables, taken, ignored, told = [FOUND_SCHEMA.empty_table()], 0, 0, 0
    try:
        for found in _batches(_walk(source, on_root)):
            table = take_entries(source, found)
            tables.append(table)
            taken, ignored = taken + len(table), ignored + len(found[0]) - len(table)
            while told + REPORT_EVERY <= taken:
                told += REPORT_EVERY
                on_progress(told)
    except OSError as error:
        inside = f": {error.filename}" if error.filename not in (None, source.url) else ""
        raise SifBatchError(
            f"{source.url}: cannot be listed ({error.strerror or error}{inside})",
            remedy="check the path, the mount and the rights; nothing was changed",
        ) from error
    return pa.concat_tables(tables), ignored


def _batches(found: Iterator[Found]) -> Iterator[Columns]:
    """What is found as columns of some thousands: ten million Python objects would take gigabytes."""
    while batch := list(itertools.islice(found, REPORT_EVERY)):
        paths, sizes, versions = zip(*batch, strict=True)
        yield paths, sizes, versions


def take_entries(source: Source, found: Columns) -> pa.Table:
    """FOUND_SCHEMA of those that are images to be. found: raw paths inside the source, sizes, versions."""
    paths, sizes, versions = found
    try:
        texts = pa.array(paths, pa.string())
    except UnicodeEncodeError:  # bytes that are not UTF-8
        texts = None
    if texts is None or source.include or source.exclude:
        is_entry = entry_rule(source)
        mask = pa.array([is_entry(path) for path in paths], pa.bool_())
        texts = pa.array([text_of(path) for path in paths], pa.string())
    else:
        mask = pa.array(are_entries(source, texts))
    return pa.table([texts, pa.array(sizes, pa.int64()), pa.array(versions, pa.string())], schema=FOUND_SCHEMA).filter(
        mask
    )


@functools.cache
def open_source(source: Source) -> tuple[Any, str]:
    """The source's filesystem and the folder in it that entry paths start from."""
    fs, base = open_filesystem(base_of(source.url))
    if os.path.isfile(base) if is_local(fs) else fs.isfile(base):  # a single file is a source of one
        base = os.path.dirname(base)
    return fs, base.rstrip("/")


def uri_prefix(source: Source) -> str:
    """What stands before an entry's path in its uri: an absolute local path, or a URL."""
    fs, base = open_source(source)
    return f"{base if is_local(fs) else fs.unstrip_protocol(base)}/"


def _walk(source: Source, on_root: Callable[[str], None]) -> Iterator[Found]:
    base = base_of(source.url)
    fs, path = open_filesystem(base)
    wanted = re.compile(glob_translate(source.url)).match if base != source.url else None
    found = _walk_local(fs, path, on_root) if is_local(fs) else _walk_remote(fs, path, on_root)
    for inner, size, version in found:
        if wanted is None or wanted(f"{base.rstrip('/')}/{inner}"):
            yield inner, size, version


def _walk_local(fs: Any, base: str, on_root: Callable[[str], None]) -> Iterator[Found]:
    """Every file below `base`, hidden ones too; links are followed, unless they lead to an ancestor or a ROOT."""
    if os.path.isfile(base):
        stat = os.stat(base)
        yield os.path.basename(base), stat.st_size, local_version(stat)
        return
    pending: list[tuple[Iterator[Placed], tuple[tuple[int, int], ...]]] = [(_read_folder(base, ""), _folders_to(base))]
    while pending:
        found, ancestors = pending[-1]
        for _, inner, info in found:
            if info is None:  # a dangling link, or a file that went away: listed, and its row will say so
                yield inner, 0, "0-0"
            elif modes.S_ISREG(info.st_mode):
                yield inner, info.st_size, local_version(info)
            elif (identity := (info.st_dev, info.st_ino)) not in ancestors:
                if is_root(fs, f"{base}/{inner}"):
                    on_root(text_of(inner))
                    continue
                pending.append((_read_folder(base, inner), (*ancestors, identity)))
                break
        else:
            pending.pop()


def _folders_to(base: str) -> tuple[tuple[int, int], ...]:
    """Which folders (device, inode) lead to this one, itself among them."""
    path = Path(os.path.realpath(base))
    stats = [os.stat(folder) for folder in (path, *path.parents)]
    return tuple((stat.st_dev, stat.st_ino) for stat in stats)


def _read_folder(base: str, folder: str) -> Iterator[Placed]:
    """Its files and folders (place, path, stat), so many at a time in order of their paths: then the listing, once all
    are found, need not be sorted."""
    with os.scandir(os.path.join(base, folder)) as entries:
        while some := list(itertools.islice(entries, SORTED)):
            found: list[Placed] = []
            for entry in some:
                inner = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    stat = entry.stat()
                except OSError:
                    found.append((inner, inner, None))
                    continue
                if modes.S_ISDIR(stat.st_mode):
                    found.append((f"{inner}/", inner, stat))
                elif modes.S_ISREG(stat.st_mode):
                    found.append((inner, inner, stat))
            yield from sorted(found, key=operator.itemgetter(0))


def _walk_remote(fs: Any, base: str, on_root: Callable[[str], None]) -> Iterator[Found]:
    fs.invalidate_cache()
    if not fs.exists(base):
        raise FileNotFoundError(2, "it does not exist", base)
    if fs.isfile(base):
        info = fs.info(base)
        yield os.path.basename(base), info["size"], remote_version(info)
        return
    found = fs.walk_objects(base) if isinstance(fs, Objects) else fs.find(base, detail=True).items()
    prefix = base.rstrip("/") + "/"
    for path, info in found:
        if path.endswith(f"/{RECORD}"):
            on_root(path.removeprefix(prefix).removesuffix(RECORD).rstrip("/"))
        if path.startswith(prefix):
            yield path.removeprefix(prefix), info["size"] or 0, remote_version(info)


def local_version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def remote_version(info: dict[str, Any]) -> str:
    """The store's own digest of the object, else its size and time."""
    for name in ETAG_FIELDS:
        if info.get(name):
            return str(info[name]).strip('"')
    time = next((info[name] for name in TIME_FIELDS if info.get(name)), 0)
    # One store's clients give the same moment as a number in a listing and as a date for a single object.
    return f"{info['size']}-{time.timestamp() if isinstance(time, datetime) else time}"


def expand_exclusions(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The sources with each `@FILE` among their `exclude` replaced by its lines: globs or paths, # begins a comment.

    Raises SifBatchError for a file that cannot be read: what must stay out would come in.
    """
    expanded = []
    for source in sources:
        globs: list[str] = []
        for glob in source.exclude:
            globs += _read_lines(glob[1:]) if glob.startswith("@") else [glob]
        expanded.append(source.model_copy(update={"exclude": tuple(globs)}))
    return tuple(expanded)


def _read_lines(place: str) -> list[str]:
    fs, path = open_filesystem(place)
    try:
        text = bytes(fs.cat_file(path)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SifBatchError(
            f"--exclude @{place}: cannot be read ({error})", remedy="restore it, or name the source again without it"
        ) from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _matcher(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path is one of these or matches one; as fast for many paths as for few."""
    plain = frozenset(glob for glob in globs if not WILDCARD.search(glob))
    patterns = [fnmatch.translate(glob) for glob in globs if glob not in plain]
    matches = re.compile("|".join(patterns)).match if patterns else lambda path: None
    return lambda path: path in plain or bool(matches(path))


def entry_rule(source: Source) -> Callable[[str], bool]:
    """Which paths inside the source, or names inside its containers, are images to be."""
    container = container_kind(source.url)
    excluded, included = _matcher(source.exclude), _matcher(source.include)

    def is_entry(path: str) -> bool:
        if excluded(path) or path.endswith("/") or not path:  # an object that stands for a folder
            return False
        if included(path):
            return True
        if HIDDEN.search(path):
            return False
        if container_kind(path) is not None:
            return container_kind(path) == container
        extension = os.path.splitext(path)[1].lower()
        return not extension or extension in registered_extensions()

    return is_entry


def are_entries(source: Source, paths: pa.Array) -> np.ndarray:
    """As `entry_rule` without include and exclude, for all paths at once: (n,) bool."""
    container = container_kind(source.url)
    hidden = pc.or_(pc.starts_with(paths, "."), pc.match_substring(paths, "/."))
    if pc.any(hidden).as_py():
        hidden = pc.match_substring_regex(paths, HIDDEN.pattern)
    hidden = pc.or_(hidden, pc.or_(pc.ends_with(paths, "/"), pc.equal(paths, "")))  # objects that stand for folders
    extension = pc.struct_field(pc.extract_regex(pc.utf8_lower(paths), r"[^./][^/]*(?P<extension>\.[^./]*)$"), 0)
    named = pa.array(sorted(registered_extensions()), pa.string())
    image = pc.or_(extension.is_null(), pc.is_in(extension, named)).to_numpy(zero_copy_only=False)
    held = are_containers(paths)
    wanted = are_containers(paths, container) if container else np.zeros(len(paths), bool)
    return ~hidden.to_numpy(zero_copy_only=False) & np.where(held, wanted, image)

"""Containers: files that hold many images, as pieces in their order, with what is known of each image."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import Source
from sif_batch.digests import canonical_json, digest
from sif_batch.failures import ImageError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
SUFFIXES = {**dict.fromkeys(TARS, "tar"), ".zip": "zip", ".parquet": "parquet"}
UNREAD = (".7z", ".rar", ".tar.lz", ".tar.lz4", ".tar.lzma", ".tar.lzo", ".tar.z", ".tlz", ".cab", ".arrow", ".feather")


@dataclass(frozen=True)
class Member:
    """An image in a container. name: as the container has it, as text; data: its bytes, or why there are none;
    fields: what the container says of it."""

    ordinal: int
    name: str
    data: bytes | ImageError
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """What belongs together: images and how many ordinals it takes, up to and with `last`."""

    last: int
    members: list[Member]


# (file, first ordinal, which names are images, largest image in bytes) -> pieces. After the last one that can be
# read, a damaged container raises ImageError.
Pieces = Iterator[Piece]
IsEntry = Callable[[str], bool]


def container_versions(source: Source, paths: pa.ChunkedArray, versions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Entries' versions; of containers with the options that decide what is read from them, behind a #."""
    options: dict[str, tuple[Any, ...]] = {"parquet": (source.image_column, source.keep)}
    options |= dict.fromkeys(("tar", "zip"), (source.include, source.exclude))
    for kind, decisive in options.items():
        if any(decisive):
            mark = f"#{digest(canonical_json(decisive), 8)}"
            marked = pc.binary_join_element_wise(versions, mark, "")
            versions = pc.if_else(pa.array(are_containers(paths, kind)), marked, versions)
    return versions


def are_containers(paths: pa.Array | pa.ChunkedArray, kind: str | None = None) -> np.ndarray:
    """Which of these paths name containers, of one kind or any: (n,) bool; as `container_kind`, for all at once."""
    lower = pc.utf8_lower(paths)
    found = np.zeros(len(paths), bool)
    for suffix, kind_ in SUFFIXES.items():
        if kind in (None, kind_):
            found |= pc.ends_with(lower, suffix).to_numpy(zero_copy_only=False)
    return found


def container_kind(path: str) -> str | None:
    """What kind of container a name stands for: tar, zip, parquet or (None) none."""
    name = os.path.basename(path).lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)

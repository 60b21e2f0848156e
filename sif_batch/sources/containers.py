"""Containers: files that hold many images, as pieces in their order, with what is known of each image."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sif_batch.config import Source, canonical_json
from sif_batch.failures import ImageError
from sif_batch.storage import digest

SUFFIXES = {".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".parquet": "parquet"}


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


def container_version(source: Source, path: str, version: str) -> str:
    """An entry's version; of a container with the options that decide what is read from it, behind a #."""
    kind = container_kind(path)
    if kind is None:
        return version
    options = (source.image_column, source.keep) if kind == "parquet" else (source.include, source.exclude)
    return f"{version}#{digest(canonical_json(options), 8)}" if any(options) else version


def container_kind(path: str) -> str | None:
    """What kind of container a name stands for: tar, parquet or (None) none."""
    name = os.path.basename(path).lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)

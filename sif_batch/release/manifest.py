"""The manifest of a release, release.json: the digest of its inputs, sealing, reading, and finding damage."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.config import Source
from sif_batch.digests import canonical_json, sha256_of
from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer_spec import QuantizerSpec
from sif_batch.storage.store import Store

OLDEST_FAISS = "1.15"  # the oldest that was tried
MANIFEST = "release.json"
# What is found out of a candidate as it is made; all else is decided before, and is what it is made of.
MEASURED = (
    "recall",
    "operating_point",
    "codes_scanned",
    "curve",
    "drift",
    "sanity",
    "finite",
    "segments",
    "files",
    "inputs",
    "fingerprints",
)
ID = re.compile(r"^[0-9a-f]{64}$")


def inputs_digest(live: pa.Table, fingerprints: Sequence[str], decided: dict[str, Any]) -> str:
    """What a release is made of, however it lies in parts: equal inputs make an equal release.

    live: the rows in order; fingerprints: by part number; decided: encoder, quantizer, settings, counts.
    """
    distinct = sorted(set(fingerprints))
    made_by = np.array([distinct.index(text) for text in fingerprints], np.int16)[live["part"].to_numpy()]
    used = [distinct[rank] for rank in np.unique(made_by)]
    columns = live.select(["key", "sha256", "uri", "width", "height", "fields"])
    table = columns.append_column("made_by", pa.array(np.unique(made_by, return_inverse=True)[1].astype(np.int16)))
    sink = _Hashing()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    sink.write(canonical_json([used, decided]))
    return sink.sha256.hexdigest()


class _Hashing:
    """A file to write to that keeps only the digest."""

    closed = False

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> None:
        self.sha256.update(data)

    def flush(self) -> None: ...
    def close(self) -> None: ...


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The size and sha256 of every file of a release but release.json."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in paths
    }


def seal(folder: Path, manifest: dict[str, Any], files: dict[str, dict[str, Any]]) -> str:
    """Write release.json: `manifest` and the release's files, as `files_of` gives them. Returns the release id."""
    data = canonical_json(manifest | {"files": files})
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_manifest(store: Store, folder: str = "") -> dict[str, Any]:
    """The release.json in `folder`. Raises SifBatchError if it cannot be read."""
    name = f"{folder}/{MANIFEST}" if folder else MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(store.read(name))
        return manifest
    except (ValueError, OSError) as error:
        raise SifBatchError(
            f"{store.path(name)}: cannot be read ({error})", remedy="sif-batch verify says what is damaged"
        ) from error


def check_release(store: Store, folder: str = "") -> dict[str, Any]:
    """The manifest of a release whose files are there, each of its size. Raises SifBatchError, naming what is not."""
    prefix = f"{folder}/" if folder else ""
    manifest = read_manifest(store, folder)
    name = os.path.basename(store.path(folder))
    if ID.match(name) and hashlib.sha256(canonical_json(manifest)).hexdigest() != name:
        raise damaged(store.path(prefix + MANIFEST))
    for file, wanted in manifest["files"].items():
        path = store.path(prefix + file)
        try:
            fine = store.fs.size(path) == wanted["size"]
        except FileNotFoundError:
            fine = False
        if not fine:
            raise damaged(path)
    return manifest


def decided_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a release was decided to be, which its inputs digest."""
    return {name: value for name, value in manifest.items() if name not in MEASURED}


def shape_of(manifest: dict[str, Any]) -> QuantizerSpec:
    """The shape of a release's quantizer."""
    return QuantizerSpec.model_validate({k: v for k, v in manifest["quantizer"].items() if k != "id"})


def damaged(path: str) -> SifBatchError:
    return SifBatchError(
        f"{path}: missing or altered, the release is damaged",
        remedy="sif-batch verify lists all damage; remove the release's folder and the same run makes it again",
    )


def find_damage(store: Store, folder: str = "") -> list[dict[str, str]]:
    """Every file of a release that is missing or not what release.json says, with the reason."""
    prefix = f"{folder}/" if folder else ""
    try:
        data = store.read(prefix + MANIFEST)
        files = [(path, int(file["size"]), str(file["sha256"])) for path, file in json.loads(data)["files"].items()]
    except FileNotFoundError:
        return [{"file": prefix + MANIFEST, "reason": "missing"}]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [{"file": prefix + MANIFEST, "reason": f"cannot be read ({type(error).__name__}: {error})"}]
    damaged = []
    name = os.path.basename(store.path(folder))
    if ID.match(name) and hashlib.sha256(data).hexdigest() != name:
        damaged.append({"file": prefix + MANIFEST, "reason": "altered: its sha256 is not the release's id"})
    for path, size, sha256 in files:
        if reason := _damage(store, prefix + path, size, sha256):
            damaged.append({"file": prefix + path, "reason": reason})
    return damaged


def _damage(store: Store, name: str, size: int, sha256: str) -> str | None:
    try:
        with store.open(name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        found_size = store.fs.size(store.path(name))
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error})"
    if found_size != size:
        return f"altered: {found_size} bytes, expected {size}"
    return None if found == sha256 else "altered: its sha256 is not the one recorded"


def describe_sources(sources: Sequence[Source]) -> list[dict[str, str]]:
    return [{"name": source.name, "url": source.url} for source in sources]

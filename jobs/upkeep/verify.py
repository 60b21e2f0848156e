"""Verify: every file of a release or of ROOT against what it should be."""

from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import RootRecord
from sif_batch.encoders.installed import check_encoder
from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer import load_quantizer
from sif_batch.ledger.tombstones import read_erased
from sif_batch.release.history import read_history, sealed_releases
from sif_batch.release.manifest import MANIFEST, find_damage, read_manifest
from sif_batch.storage.root import open_root
from sif_batch.storage.store import Store

Damage = list[dict[str, str]]


def verify(place: str) -> dict[str, Any]:
    """Every damaged file of a release; of a ROOT, of all that it holds: {ok, damaged: [{file, reason}], files}."""
    store = Store(place)
    if store.exists(MANIFEST) or not store.exists("root.json"):
        if not store.exists():
            raise SifBatchError(f"{store.url} does not exist", remedy="give a ROOT or a release")
        return _report(find_damage(store), _files(store, ""))
    store, record = open_root(place)
    damaged, files = _damaged_releases(store)
    in_use = _in_use(store, record)
    for check, folder, last in (
        (check_encoder, "encoders", "encoder.json"),
        (load_quantizer, "quantizers", "quantizer.json"),
    ):
        for name in store.sizes(folder):
            files += len(store.sizes(f"{folder}/{name}"))
            if name not in in_use and not store.exists(f"{folder}/{name}/{last}"):
                continue  # never was whole: the run that made it was killed
            try:
                check(store, name)
            except SifBatchError as error:
                damaged.append({"file": f"{folder}/{name}", "reason": str(error)})
    try:
        read_erased(store)
    except SifBatchError as error:
        damaged.append({"file": "erased", "reason": str(error)})
    for name in _tables(store):
        files += 1
        damaged += _damaged_table(store, name)
    return _report(damaged, files)


def _in_use(store: Store, record: RootRecord) -> set[str]:
    """The encoders and quantizers of ROOT's record and of its releases."""
    used = {record.encoder}
    for release in sealed_releases(store):
        with suppress(SifBatchError, KeyError):  # damaged: told of the release
            manifest = read_manifest(store, f"releases/{release}")
            used |= {manifest["encoder"], manifest["quantizer"]["id"]}
    return used


def _damaged_releases(store: Store) -> tuple[Damage, int]:
    """The damage of history and of all releases but those that were removed; and how many files that are."""
    history = read_history(store)
    damaged, files = [], len(history)
    numbers = [entry["n"] for entry in history]
    if numbers != list(range(1, len(numbers) + 1)):
        damaged.append({"file": "history", "reason": f"its numbers are not 1 to {len(numbers)}: some entry is gone"})
    for release in sorted({*sealed_releases(store), *store.sizes("releases"), *[e["release"] for e in history[-1:]]}):
        damaged += find_damage(store, f"releases/{release}")
        files += _files(store, f"releases/{release}")
    return damaged, files


def _tables(store: Store) -> list[str]:
    """All Parquet files of ROOT, in order."""
    found = [f"{folder}/{name}" for folder in ("listings", "plans") for name in store.sizes(folder)]
    for folder in ("parts", "codes"):
        for inner in store.sizes(folder):
            found += [f"{folder}/{inner}/{name}" for name in store.sizes(f"{folder}/{inner}")]
    return [name for name in found if name.endswith(".parquet")]


def _damaged_table(store: Store, path: str) -> Damage:
    """Read a table whole: its pages carry checksums."""
    try:
        with store.open(path) as file:
            pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        return [{"file": path, "reason": f"cannot be read ({str(error).splitlines()[0]})"}]
    return []


def _report(damaged: Damage, files: int) -> dict[str, Any]:
    return {"ok": not damaged, "damaged": damaged, "files": files}


def _files(store: Store, folder: str) -> int:
    try:
        return 1 + len(read_manifest(store, folder)["files"])
    except (SifBatchError, KeyError):
        return 1

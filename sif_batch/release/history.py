"""History: what was published when. Publishing is creating history/<n>.json, which only one writer can."""

import json
import os
import time
from typing import Any, Literal

from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.release.manifest import MANIFEST, find_damage
from sif_batch.storage.store import Store

Action = Literal["publish", "rollback", "rebuild", "erase"]


def read_history(store: Store) -> list[dict[str, Any]]:
    """The entries of history, oldest first. A release that an erasure replaced is named by what stands for it."""
    entries: list[dict[str, Any]] = []
    replaced: dict[str, str | None] = {}
    for name in reversed(store.sizes("history")):
        entry = _read_entry(store, name)
        while new := replaced.get(entry["release"]):
            entry = entry | {"release": new}
        replaced |= entry.get("replaced", {})
        entries.append(entry)
    return entries[::-1]


def read_top(store: Store) -> dict[str, Any] | None:
    """History's newest entry: the release that is current. None before the first."""
    names = list(store.sizes("history"))
    if not names:
        return None
    return _read_entry(store, names[-1])


def _read_entry(store: Store, name: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(store.read(f"history/{name}"))
        return entry
    except ValueError as error:
        raise SifBatchError(
            f"{store.path('history')}/{name} is damaged ({error})", remedy="restore it from a backup"
        ) from error


def publish(
    store: Store,
    release: str,
    parent: dict[str, Any] | None,
    gate: str,
    action: Action = "publish",
    held: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Make `release` current after the entry `parent`. Raises SifBatchError if another run published in between.

    held: later runs may not publish until someone does by hand; more: what else the entry says.
    """
    entry = {
        "n": parent["n"] + 1 if parent else 1,
        "release": release,
        "parent": parent["release"] if parent else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "by": os.environ.get("USER") or str(os.getuid() if hasattr(os, "getuid") else "unknown"),
        "action": action,
        "held": held,
        "gate": gate,
    } | {name: value for name, value in more.items() if value is not None}
    if not store.create(f"history/{entry['n']:08d}.json", canonical_json(entry)):
        raise SifBatchError(
            f"another run published release {entry['n']} of {store.url} in the meantime",
            remedy="run the same command again; the work is kept",
        )
    cache_latest(store, entry)
    return entry


def cache_latest(store: Store, top: dict[str, Any]) -> None:
    """LATEST: the release of history's top, as one line. A run killed right after publishing leaves it behind."""
    line = f"{top['release']}\n".encode()
    if not store.exists("LATEST") or store.read("LATEST") != line:
        store.replace("LATEST", line)


def sealed_releases(store: Store) -> list[str]:
    """The ids of all releases that stand whole, published or not, in order."""
    return [name for name in store.sizes("releases") if store.exists(f"releases/{name}/{MANIFEST}")]


def find_sealed(store: Store, wanted: str) -> str:
    """The release whose id begins so, or that history's entry of this number names. Raises SifBatchError."""
    if wanted.isdecimal() and len(wanted) < 8:
        named = [entry["release"] for entry in read_history(store) if entry["n"] == int(wanted)]
    else:
        named = [name for name in sealed_releases(store) if name.startswith(wanted)]
    if len(named) != 1:
        raise SifBatchError(
            f"{wanted}: {len(named) or 'no'} releases of {store.url} are meant by that",
            remedy="sif-batch releases lists them; give the beginning of an id, or a number n",
        )
    return str(named[0])


def check_undamaged(store: Store, release: str) -> None:
    """Raise SifBatchError unless every file of the release is what release.json says."""
    if found := find_damage(store, f"releases/{release}"):
        raise SifBatchError(
            f"{found[0]['file']}: {found[0]['reason']}, release {release[:12]} cannot be made current",
            remedy="sif-batch releases lists others",
        )

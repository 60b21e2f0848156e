"""root.json, the record of a ROOT: its sources, encoder and index settings; and what else tells a ROOT."""

import json
import os
from typing import Any

from sif_batch.config import LAYOUT, RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.storage import lease
from sif_batch.storage.store import Store
from sif_batch.storage.temporary_files import TEMPORARY

RECORD = "root.json"
# All that a run makes at the top of ROOT, in docs/formats.md; the lease before anything else.
OF_INDEX = ("quantizers", "codes", "releases", "history", "LATEST")
MADE = frozenset([RECORD, lease.NAME, "listings", "plans", "parts", "catalog", "erased", "encoders", "runs", *OF_INDEX])
BY_SYSTEM = frozenset(["lost+found"])  # at the top of a new disk
RECORD_BYTES = 2**24  # no root.json is larger


def read_record(store: Store) -> RootRecord | None:
    """root.json, None where ROOT is new. Another layout and a damaged record raise SifBatchError."""
    try:
        data = json.loads(store.read(RECORD))
        layout = int(data["layout"])
        if layout == LAYOUT:
            return RootRecord.model_validate(data)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise SifBatchError(f"{store.url}: {error.strerror}", remedy="give a ROOT that is a folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SifBatchError(f"{store.path(RECORD)} is damaged ({error})", remedy="restore it from a backup") from error
    remedy = "upgrade sif-batch" if layout > LAYOUT else "no version wrote that: restore root.json from a backup"
    raise SifBatchError(
        f"{store.url} has layout {layout}, this version knows {LAYOUT}", remedy=f"{remedy}; nothing was changed"
    )


def is_root(fs: Any, folder: str) -> bool:
    """Whether a folder is a ROOT, of any version: it holds a root.json as a run writes it."""
    try:
        record = json.loads(fs.cat_file(f"{folder.rstrip('/')}/{RECORD}", 0, RECORD_BYTES))
    except (OSError, ValueError):  # nothing of the kind, or nothing that can be told
        return False
    return isinstance(record, dict) and {"layout", "sources"} <= record.keys()


def check_new(store: Store, remedy: str) -> None:
    """Refuse a folder as a new ROOT that holds anything else than an interrupted first run leaves."""
    names = _names(store) - BY_SYSTEM
    made = names & MADE
    others = sorted(names - made) or sorted(made if lease.NAME not in made else ())
    if others:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise SifBatchError(f"{store.url} is not a ROOT and not empty: it holds {others[0]}{more}", remedy=remedy)


def _names(store: Store) -> set[str]:
    """What stands at the top of ROOT, dangling links too, but no temporary files."""
    if not store.local:
        return set(store.sizes(""))
    try:
        found = os.listdir(store.base)
    except FileNotFoundError:
        return set()
    texts = (os.fsencode(name).decode(errors="backslashreplace") for name in found)
    return {text for text in texts if not text.startswith(TEMPORARY)}


def open_root(url: str) -> tuple[Store, RootRecord]:
    """A ROOT that stands. Raises SifBatchError where there is none."""
    store = Store(url)
    record = read_record(store)
    if record is None:
        raise SifBatchError(
            f"{store.url} is not a ROOT: it holds no root.json", remedy=f"sif-batch run SOURCE {url} makes one"
        )
    return store, record

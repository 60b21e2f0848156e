"""root.json, the record of a ROOT: its sources, encoder and index settings."""

import json

from sif_batch.config import LAYOUT, RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.storage.store import Store


def read_record(store: Store) -> RootRecord | None:
    """root.json, None where ROOT is new. Another layout and a damaged record raise SifBatchError."""
    try:
        data = json.loads(store.read("root.json"))
        layout = int(data["layout"])
        if layout == LAYOUT:
            return RootRecord.model_validate(data)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise SifBatchError(f"{store.url}: {error.strerror}", remedy="give a ROOT that is a folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SifBatchError(
            f"{store.path('root.json')} is damaged ({error})", remedy="restore it from a backup"
        ) from error
    remedy = "upgrade sif-batch" if layout > LAYOUT else "no version wrote that: restore root.json from a backup"
    raise SifBatchError(
        f"{store.url} has layout {layout}, this version knows {LAYOUT}", remedy=f"{remedy}; nothing was changed"
    )


def open_root(url: str) -> tuple[Store, RootRecord]:
    """A ROOT that stands. Raises SifBatchError where there is none."""
    store = Store(url)
    record = read_record(store)
    if record is None:
        raise SifBatchError(
            f"{store.url} is not a ROOT: it holds no root.json", remedy=f"sif-batch run SOURCE {url} makes one"
        )
    return store, record

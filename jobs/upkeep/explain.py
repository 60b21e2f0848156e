"""All that is known of one image."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.failures import PERMANENT, TRANSIENT
from sif_batch.ledger.live import live_rows, read_collection
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.tombstones import Erased, read_erased
from sif_batch.query.index import Index
from sif_batch.release.history import read_top
from sif_batch.sources.files import uri_prefix
from sif_batch.sources.listing import keys_of
from sif_batch.sources.names import COLONS, keys_by
from sif_batch.sources.originals import MEMBER, ROW, split_member
from sif_batch.storage.root import open_root
from sif_batch.storage.store import Store


def explain_image(root: str, name: str) -> dict[str, Any]:
    """The listing's entry, every attempt, what failed and the remedy, and the release.

    name: a key, a path inside a source or a uri. Raises SifBatchError if ROOT knows none of that name, or several.
    """
    store, record = open_root(root)
    entries, catalog = read_collection(store, record)
    keys = keys_of(entries)
    known = pa.chunked_array([keys, *catalog.rows["key"].chunks])
    erasures = read_erased(store)
    key = find_key(name, record, known, erasures)
    standing = standing_rows(entries, catalog)
    numbers = np.flatnonzero(pc.equal(catalog.rows["key"], key).to_numpy())
    stands = set(standing.row[np.isin(standing.row, numbers)].tolist())
    columns = ["part", "attempt", "version", "error_kind", "error", "width", "height", "fields", "sha256"]
    rows = catalog.rows.select(columns).take(pa.array(numbers)).to_pylist()
    for number, row in zip(numbers.tolist(), rows, strict=True):
        row["part"], row["stands"] = catalog.parts[row["part"]], number in stands
        row["kind"] = row.pop("error_kind")
        row["sha256"] = row["sha256"] and row["sha256"].hex()
    rows.sort(key=lambda row: (row["version"], row["attempt"]))
    entry = next(iter(entries.filter(pc.equal(keys, key.partition("::")[0])).to_pylist()), None)
    erased = not len(rows) and erasures.has_key(key)
    standing_row = next((row for row in rows if row["stands"]), None)
    kind = standing_row and standing_row["kind"]
    meaning, remedy = (PERMANENT | TRANSIENT)[kind] if kind else (None, None)
    fields = [row.pop("fields") for row in rows if row["stands"]] or [None]
    return {
        "key": key,
        "state": "erased, never indexed again" if erased else _state(entry, standing_row),
        "uri": _uri(record, catalog, numbers, entry),
        "size": entry and entry["size"],
        "version": entry and entry["version"],
        "rows": [{name: value for name, value in row.items() if name != "fields"} for row in rows],
        "meaning": meaning,
        "remedy": remedy,
        "fields": fields[0] and json.loads(fields[0]),
        "release": _release(store, key),
    }


def spellings(name: str, record: RootRecord) -> list[str]:
    """The keys that `name` may stand for: a key, a path inside a source, a uri; or any of them as it stands on disk."""
    tried = [name]
    for source in record.sources:
        tried += [f"{source.name}/{name}", f"{source.name}/{name.removeprefix(uri_prefix(source))}"]
        if name.startswith(MEMBER):
            container, member = split_member(name)
            tried.append(f"{source.name}/{container.removeprefix(uri_prefix(source))}::{member}")
        if row := ROW.match(name):
            tried.append(f"{source.name}/{row[1].removeprefix(uri_prefix(source))}::{row[2]}")
    return list(dict.fromkeys(key for one in tried for key in keys_by(one)))


def find_key(name: str, record: RootRecord, known: pa.ChunkedArray, erased: Erased) -> str:
    """The one known key that `name` stands for, or one that was erased. Raises SifBatchError."""
    tried, (text, *_) = spellings(name, record), keys_by(name)
    if pc.any(pc.equal(known, text)).as_py():
        return text
    matches = pc.or_(pc.is_in(known, pa.array(tried)), pc.ends_with(known, f"::{text.replace('::', COLONS)}"))
    found = sorted(set(known.filter(matches).to_pylist()))
    if len(found) == 1:
        return str(found[0])
    if found:
        raise SifBatchError(f"{text} is several images: {', '.join(found[:5])}", remedy="give one of these keys")
    if was := [key for key in tried if erased.has_key(key)]:
        return was[0]
    near = known.filter(pc.match_substring(known, text.rpartition("/")[2])).slice(0, 3).to_pylist()
    hint = f"keys that come near: {', '.join(near)}" if near else "keys look like source/folder/name.jpg"
    raise SifBatchError(f"nothing is known of {text}", remedy=hint)


def _state(entry: dict[str, Any] | None, row: dict[str, Any] | None) -> str:
    if entry is None:
        return "no longer listed"
    if row is None:
        return "listed, not yet tried" if entry["path"] else "unknown"
    if row["kind"] is None:
        return "embedded"
    again = row["kind"] in TRANSIENT
    return f"failed: {row['kind']}, {'tried again on later nights' if again else 'not tried again by itself'}"


def _uri(record: RootRecord, catalog: Any, numbers: np.ndarray, entry: dict[str, Any] | None) -> str | None:
    sources = {source.name: source for source in record.sources}
    if entry is None or entry["source"] not in sources:
        return None
    if len(numbers):
        return str(live_rows(catalog, numbers[:1], record.sources)["uri"][0])
    return f"{uri_prefix(sources[entry['source']])}{entry['path']}"


def _release(store: Store, key: str) -> str | None:
    """The current release, if it has the image."""
    top = read_top(store)
    if top is None:
        return None
    try:
        Index.open(store.url).row_of(key)
    except SifBatchError:
        return None
    return str(top["release"])

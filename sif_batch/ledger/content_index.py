"""Known contents: where the vector of an image with these bytes stands already, whatever its key or version was."""

import functools
import io
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.parts import part_path, read_columns
from sif_batch.storage.store import Store

OPEN_PARTS = 8  # of what is moved together, most lies in few parts
FIRST = np.dtype(">u8")  # the first bytes of a sha256, as a number


@dataclass(frozen=True)
class Vector:
    """An image that was embedded before. embedding: (d,) float16; width, height: after EXIF."""

    embedding: np.ndarray
    width: int
    height: int


def known_path(encoder_id: str) -> str:
    return f"catalog/{encoder_id}.known.arrow"


def firsts(sha256: pa.ChunkedArray) -> np.ndarray:
    """The first eight bytes of each sha256, (n,) uint64; 0 where there is none."""
    column = sha256.combine_chunks() if isinstance(sha256, pa.ChunkedArray) else sha256
    filled = pc.fill_null(column, bytes(32)) if column.null_count else column
    data = np.frombuffer(filled.buffers()[1], np.uint8)[32 * filled.offset : 32 * (filled.offset + len(filled))]
    return np.ascontiguousarray(data.reshape(-1, 32)[:, :8]).view(FIRST).ravel().astype(np.uint64)


def good_contents(catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """The embedded rows of a catalog in order of their contents: their `firsts` and their numbers."""
    rows = catalog.rows
    good = np.flatnonzero(pc.and_(rows["error_kind"].is_null(), rows["sha256"].is_valid()).to_numpy())
    first = firsts(rows["sha256"].take(pa.array(good)))
    order = np.argsort(first, kind="stable")
    return first[order], good[order]


def write_known(store: Store, encoder_id: str, catalog: Catalog) -> None:
    """Put the known contents of these parts where the workers look for them."""
    first, number = good_contents(catalog)
    table = pa.table(
        {
            "first": first,
            "part": catalog.rows["part"].to_numpy()[number],
            "row": catalog.rows["row"].to_numpy()[number],
        }
    )
    metadata = {b"parts": canonical_json(catalog.parts), b"fingerprints": canonical_json(catalog.fingerprints)}
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
    store.replace(known_path(encoder_id), sink.getvalue())


class Known:
    """Finds vectors by the sha256 of the image's bytes, made by the same arithmetic. Safe to ask from threads."""

    def __init__(self, store: Store, encoder_id: str, fingerprint: dict[str, str]):
        self._store, self._encoder_id = store, encoder_id
        self._fingerprint = canonical_json(fingerprint).decode()
        self._lock = threading.Lock()
        self._first = np.empty(0, np.uint64)
        self._part = functools.lru_cache(maxsize=OPEN_PARTS)(self._read_part)
        try:
            if store.local:
                table = pa.ipc.open_file(pa.memory_map(store.path(known_path(encoder_id)))).read_all()
            else:
                table = pa.ipc.open_file(pa.py_buffer(store.read(known_path(encoder_id)))).read_all()
        except (OSError, pa.ArrowException):
            return  # nothing is known, or it cannot be read: it is only a cache
        self._first, self._parts, self._rows = (table[name].to_numpy() for name in ("first", "part", "row"))
        self._names: list[str] = json.loads(table.schema.metadata[b"parts"])
        self._made_by: list[str] = json.loads(table.schema.metadata[b"fingerprints"])

    def find(self, sha256: bytes, max_pixels: int) -> Vector | None:
        """The vector of these contents, unless the image would be too large now."""
        wanted = np.uint64(int.from_bytes(sha256[:8], "big"))
        start, end = (int(np.searchsorted(self._first, wanted, side)) for side in ("left", "right"))  # type: ignore[call-overload]
        for place in range(start, end):
            part = int(self._parts[place])
            if self._made_by[part] != self._fingerprint:
                continue
            with self._lock:
                table = self._part(self._names[part])
            if table is None:
                continue
            row: dict[str, Any] = table.slice(int(self._rows[place]), 1).to_pylist()[0]
            if row["sha256"] == sha256 and row["embedding"] and row["width"] * row["height"] <= max_pixels:
                return Vector(np.array(row["embedding"], np.float16), row["width"], row["height"])
        return None

    def _read_part(self, name: str) -> pa.Table | None:
        try:
            with self._store.open(part_path(self._encoder_id, name)) as file:
                return read_columns(file, name, ["sha256", "width", "height", "embedding"])
        except (OSError, SifBatchError):  # gone, or damaged: the image is embedded
            return None


def are_known(catalog: Catalog, new: np.ndarray, before: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Which of these rows had contents that a part of `before`, made by the same arithmetic, held: (n,) bool.

    new: (n,) numbers of catalog rows; before: (parts,) bool.
    """
    if not len(new):
        return np.zeros(0, bool)
    rows = catalog.rows
    made_by = pa.array(catalog.fingerprints, pa.string()).dictionary_encode().indices.to_numpy()
    part = rows["part"].to_numpy()
    old = np.flatnonzero(np.asarray(before)[part] & rows["error_kind"].is_null().to_numpy())
    contents = [
        pa.table({"sha256": rows["sha256"].take(pa.array(numbers)), "made_by": made_by[part[numbers]]})
        for numbers in (new, old)
    ]
    numbered = contents[0].append_column("place", pa.array(np.arange(len(new))))
    found = numbered.join(contents[1], ["sha256", "made_by"], join_type="left semi")["place"].to_numpy()
    known = np.zeros(len(new), bool)
    known[found] = True
    return known

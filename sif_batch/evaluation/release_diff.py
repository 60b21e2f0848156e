"""What differs between two releases: images that came, went, changed, moved, or have other columns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.query.image_table import PLAIN
from sif_batch.query.index import Index


@dataclass(frozen=True)
class Differences:
    """Between an older release and a newer one, keys in order. moved: (old key, new key) of the same bytes; changed:
    other bytes under the same key; relabelled: same bytes, another value in a column; settings: name to (old, new)."""

    added: list[str]
    deleted: list[str]
    moved: list[tuple[str, str]]
    changed: list[str]
    relabelled: list[str]
    settings: dict[str, tuple[Any, Any]]


def compare_releases(old: Index, new: Index) -> Differences:
    """All that a reader can see, but for the ranking itself."""
    tables = [
        pa.table({"key": index.column("key"), "sha256": index.column("sha256"), "row": np.arange(len(index))})
        for index in (old, new)
    ]
    joined = tables[0].join(tables[1], "key", join_type="full outer", right_suffix="_new", coalesce_keys=True)
    joined = joined.sort_by("key")
    gone = joined.filter(joined["row_new"].is_null())
    came = joined.filter(joined["row"].is_null())
    both = joined.filter(pc.and_(joined["row"].is_valid(), joined["row_new"].is_valid()))
    same = pc.fill_null(pc.equal(both["sha256"], both["sha256_new"]), False)
    moved = _moved(gone, came)
    from_, to = {old for old, _ in moved}, {new for _, new in moved}
    return Differences(
        [key for key in came["key"].to_pylist() if key not in to],
        [key for key in gone["key"].to_pylist() if key not in from_],
        moved,
        both.filter(pc.invert(same))["key"].to_pylist(),
        _relabelled(old, new, both.filter(same)),
        _settings(old.manifest, new.manifest),
    )


def _moved(gone: pa.Table, came: pa.Table) -> list[tuple[str, str]]:
    """Pairs of a key that went and one that came with the same bytes, each used once, in order."""
    where: dict[bytes, list[str]] = {}
    for key, sha256 in zip(gone["key"].to_pylist(), gone["sha256"].to_pylist(), strict=True):
        where.setdefault(sha256, []).append(key)
    pairs = []
    for key, sha256 in zip(came["key"].to_pylist(), came["sha256_new"].to_pylist(), strict=True):
        if where.get(sha256):
            pairs.append((where[sha256].pop(0), key))
    return sorted(pairs)


def _relabelled(old: Index, new: Index, rows: pa.Table) -> list[str]:
    """The keys of images whose columns (folder, size and the user's own, not the uri) differ."""
    names = sorted({*old.columns, *new.columns} - {*PLAIN, "uri"})
    differ = np.zeros(len(rows), bool)
    for name in names:
        values = [
            index.column(name).take(rows[at]) if name in index.columns else pa.chunked_array([pa.nulls(len(rows))])
            for index, at in ((old, "row"), (new, "row_new"))
        ]
        differ |= pc.not_equal(*(_spelled(value) for value in values)).to_numpy()
    return rows["key"].filter(pa.array(differ)).to_pylist()  # type: ignore[no-any-return]


def _spelled(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values of any type, and missing ones, as bytes that can be compared."""
    text = values if pa.types.is_large_binary(values.type) else values.cast(pa.large_string())
    return pc.fill_null(text.cast(pa.large_binary()), b"\0null")


def _settings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What decides the bytes of a release and is not the same."""
    left_out = {"files", "inputs", "fingerprints"}
    names = sorted(({*old} | {*new}) - left_out)
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}

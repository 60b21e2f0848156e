"""The catalog: the light columns of all parts, cached in merged form."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.ledger.parts import LIGHT, PART_SCHEMA, SPAN
from sif_batch.ledger.plan import SPAN_SCHEMA
from sif_batch.storage.table_file import TableFile

CATALOG_SCHEMA = pa.schema(
    [
        ("part", pa.int32()),
        ("row", pa.uint16()),
        ("entry", pa.binary(16)),  # `entry_digests.entry_digests`
        *(PART_SCHEMA.field(name) for name in LIGHT),
    ]
)

CONTAINER_SCHEMA = pa.schema(
    [
        ("part", pa.int32()),
        *((name, SPAN_SCHEMA.field(name).type) for name in (*SPAN, "attempt")),
        ("superseded", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Catalog:
    """rows: CATALOG_SCHEMA, in order of `part`, which counts in `parts` (names in order); fingerprints: JSON text by
    part; spans: CONTAINER_SCHEMA, one for each part of a container; replaces: by part, those whose rows it has taken
    over."""

    parts: list[str]
    fingerprints: list[str]
    rows: TableFile
    spans: pa.Table = field(default_factory=CONTAINER_SCHEMA.empty_table)
    replaces: dict[str, list[str]] = field(default_factory=dict)


def without_rows(catalog: Catalog, gone: np.ndarray) -> Catalog:
    """The catalog without some rows, (n,) bool. The others keep their part and number.

    Of the spans of containers, those of replaced parts go that their successors have too.
    """
    rows = catalog.rows.filter(pa.array(~gone))
    old, new = _successions(catalog)
    spans = catalog.spans.to_pylist() if old else []
    stand = {_place(span) for span in spans if span["part"] in new}
    left = [span["part"] not in old or _place(span) not in stand for span in spans]
    return replace(catalog, rows=rows, spans=catalog.spans.filter(pa.array(left)) if spans else catalog.spans)


def taken_over(catalog: Catalog) -> np.ndarray:
    """Which rows stand in a part that replaced theirs: (n,) bool. What was not taken over counts as before."""
    found = np.zeros(len(catalog.rows), bool)
    if not catalog.replaces:
        return found
    old, new = (np.isin(catalog.rows["part"].to_numpy(), list(numbers)) for numbers in _successions(catalog))
    if old.any():
        names = ["key", "version", "attempt"]
        rows = catalog.rows.select(names).append_column("row", pa.array(np.arange(len(found))))
        again = rows.filter(pa.array(old)).join(rows.filter(pa.array(new)), names, join_type="left semi")
        found[again["row"].to_numpy()] = True
    return found


def _successions(catalog: Catalog) -> tuple[set[int], set[int]]:
    """The parts that were replaced and still stand, and those that replaced any and stand for good."""
    olds = {old for names in catalog.replaces.values() for old in names}
    number = {name: i for i, name in enumerate(catalog.parts)}
    return {number[n] for n in olds if n in number}, {number[n] for n in catalog.replaces if n not in olds}


def _place(span: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(span[name] for name in (*SPAN, "attempt"))

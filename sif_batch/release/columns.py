"""Fields of images, one JSON object each, as the columns of a release."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

INT64 = range(-(2**63), 2**63)


def column_types(fields: pa.ChunkedArray) -> dict[str, pa.DataType]:
    """The type of each field, by name in order: int64, double, bool, or string where kinds are mixed.

    fields: (n,) large_string, a JSON object or null.
    """
    seen: dict[str, set[str]] = {}
    for row in _objects(fields):
        for name, value in row.items():
            if value is not None:
                seen.setdefault(name, set()).add(_kind(value))
    return {name: _type(seen[name]) for name in sorted(seen)}


def make_columns(fields: pa.ChunkedArray, types: dict[str, pa.DataType]) -> list[pa.Array]:
    """The fields of some rows as arrays of these types, null where a row has none."""
    if not types:
        return []
    place = fields.combine_chunks().dictionary_encode().indices
    rows = list(_objects(fields))
    return [
        pa.array([_value(row.get(name), type_) for row in rows], type_).take(place) for name, type_ in types.items()
    ]


def _objects(fields: pa.ChunkedArray) -> Iterator[dict[str, Any]]:
    """Each object once, however many rows say the same."""
    for text in fields.combine_chunks().dictionary_encode().dictionary.to_pylist():
        yield json.loads(text)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in INT64 else "text"
    return "float" if isinstance(value, float) else "text"


def _type(kinds: set[str]) -> pa.DataType:
    if kinds <= {"int", "float"}:
        return pa.int64() if kinds == {"int"} else pa.float64()
    return pa.bool_() if kinds == {"bool"} else pa.large_string()


def _value(value: Any, type_: pa.DataType) -> Any:
    if value is None or type_ != pa.large_string():
        return float(value) if value is not None and type_ == pa.float64() else value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

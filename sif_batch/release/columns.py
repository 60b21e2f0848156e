"""Fields of images, one JSON object each, as the columns of a release, and back again.

A column has the one type that keeps all its values exactly: docs/formats.md has the rule.
"""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.digests import canonical_json
from sif_batch.sources.fields import json_values, tag_of

OWN_COLUMNS = ("key", "hash", "uri", "sha256", "source", "folder", "width", "height")
OWN = re.compile(f"(?:{'|'.join(OWN_COLUMNS)})_*")
NO_PLAIN_TEXT = r'["\\\x00-\x1f]'  # what a JSON string writes otherwise
MOST_DIGITS = 76  # of a decimal256
# What Arrow reads again: of years that Python's datetime has too, with as many digits as nanoseconds have.
TIMES = {
    "@date": re.compile(r"(?!0000)\d{4}-\d\d-\d\d"),
    "@time": re.compile(r"\d\d:\d\d:\d\d(\.\d{1,9})?"),
    "@timestamp": re.compile(r"(?!0000)\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,9})?"),
    "@instant": re.compile(r"(?!0000)\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,9})?Z"),
}
FINE = re.compile(r"\.\d{6}\d*[1-9]")  # a time with more than microseconds
ZEROS = re.compile(r"(\.\d{6})0+")
NANOSECOND_YEARS = range(1678, 2262)


def column_name(name: str) -> str:
    """The column of a field: no two fields have one, and none has that of a column which all releases have."""
    return f"{name}_" if OWN.fullmatch(name) else name


def field_name(column: str) -> str:
    """The field that a column is of."""
    return column[:-1] if column.endswith("_") and OWN.fullmatch(column) else column


@dataclass
class _Seen:
    """What is known of a field's values. low, high: of the whole numbers; rounded: a double has not all of these."""

    kinds: set[str] = field(default_factory=set)
    low: int = 0
    high: int = 0
    rounded: bool = False
    fine: bool = False
    far: bool = False

    def add(self, value: Any) -> None:
        kind = _kind(value)
        self.kinds.add(kind)
        if kind == "int":
            self.low, self.high = min(self.low, value), max(self.high, value)
            self.rounded |= abs(value) > 2**53
        elif kind in ("@time", "@timestamp", "@instant"):
            text = value[kind]
            self.fine |= FINE.search(text) is not None
            self.far |= kind != "@time" and int(text[:4]) not in NANOSECOND_YEARS


def column_types(fields: pa.ChunkedArray) -> dict[str, pa.DataType]:
    """The type of each field, by name in order; text where no other keeps all its values as they are.

    fields: (n,) large_string, a JSON object or null.
    """
    seen: dict[str, _Seen] = {}
    for row in _objects(fields):
        for name, value in row.items():
            known = seen.setdefault(name, _Seen())
            if value is not None:
                known.add(value)
    return {name: _type(seen[name]) or _decimal_type(fields, name) for name in sorted(seen)}


def make_columns(fields: pa.ChunkedArray, types: dict[str, pa.DataType]) -> list[pa.Array]:
    """The fields of some rows as arrays of these types, null where a row has none."""
    if not types:
        return []
    place = fields.combine_chunks().dictionary_encode().indices
    rows = list(_objects(fields))
    return [_array([row.get(name) for row in rows], type_).take(place) for name, type_ in types.items()]


def fields_of(table: pa.Table) -> pa.Array:
    """Each row as a canonical JSON object of what it holds, (n,) large_string; null where it holds nothing.

    A column without any value is a null of every row, so that it is not forgotten.
    """
    pieces = [_pieces_of(name, table[name]) for name in sorted(table.column_names)]
    nothing = pa.scalar("", pa.large_string())
    if not pieces:
        return pa.nulls(len(table), pa.large_string())
    # By null_handling="skip" rows without any value would be lost, and all behind them be those of others.
    given = [pc.fill_null(piece, nothing) for piece in pieces]
    inside = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*given, nothing), 1)  # without the first comma
    inside = pc.if_else(pc.equal(pc.binary_length(inside), 0), pa.scalar(None, pa.large_string()), inside)
    braces = pa.scalar("{", pa.large_string()), pa.scalar("}", pa.large_string())
    return pc.binary_join_element_wise(braces[0], inside, braces[1], nothing)


def _pieces_of(name: str, chunked: pa.ChunkedArray) -> pa.Array:
    """`,"name":value` of each row, null where there is none: each value is written once, however many rows have it."""
    wide, nothing = pa.large_string(), pa.scalar("", pa.large_string())
    column = (chunked.cast(wide) if chunked.type == pa.string() else chunked).combine_chunks()
    start = pa.scalar("," + canonical_json({name: 0})[1:-2].decode(), wide)
    if len(column) and column.null_count == len(column):
        return pa.repeat(pa.scalar(f"{start.as_py()}null", wide), len(column))
    if pa.types.is_integer(column.type):
        return pc.binary_join_element_wise(start, column.cast(wide), nothing)
    if column.type == wide and _is_plain(column):
        quote = pa.scalar('"', wide)
        return pc.binary_join_element_wise(start, quote, column, quote, nothing)
    try:
        encoded = column.dictionary_encode()
        values, place = json_values(encoded.dictionary), encoded.indices
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists and the like
        values = json_values(column)
        place = pc.if_else(column.is_valid(), pa.array(range(len(column)), pa.int64()), None)
    texts = ["," + canonical_json({name: value})[1:-1].decode() for value in values]
    return pa.array(texts, wide).take(place)


def _is_plain(column: pa.Array) -> bool:
    """Whether text is UTF-8, and a JSON string has it as it is."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return not pc.any(pc.match_substring_regex(column, NO_PLAIN_TEXT)).as_py()


def _objects(fields: pa.ChunkedArray) -> Iterator[dict[str, Any]]:
    """Each object once, however many rows say the same."""
    for text in fields.combine_chunks().dictionary_encode().dictionary.to_pylist():
        yield json.loads(text)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "int" if isinstance(value, int) else "float"
    tag = tag_of(value)
    if tag is None or (tag in TIMES and not TIMES[tag].fullmatch(value[tag])):
        return "text"
    return "float" if tag == "@double" else tag


def _type(seen: _Seen) -> pa.DataType | None:
    """None: to be a decimal, if one holds all its values."""
    match sorted(seen.kinds):
        case []:
            return pa.null()
        case ["bool"]:
            return pa.bool_()
        case ["int"] if seen.low >= -(2**63) and seen.high < 2**63:
            return pa.int64()
        case ["int"] if seen.low >= 0 and seen.high < 2**64:
            return pa.uint64()
        case ["float"]:
            return pa.float64()
        case ["float", "int"] if not seen.rounded:
            return pa.float64()
        case ["@bytes"]:
            return pa.large_binary()
        case ["@date"]:
            return pa.date32()
        case [("@time" | "@timestamp" | "@instant") as kind] if not (seen.fine and seen.far):
            unit = "ns" if seen.fine else "us"
            zone = "UTC" if kind == "@instant" else None
            return pa.time64(unit) if kind == "@time" else pa.timestamp(unit, zone)
    return None if seen.kinds <= {"int", "float", "@decimal"} else pa.large_string()


def _decimal_type(fields: pa.ChunkedArray, name: str) -> pa.DataType:
    whole, scale = 1, 0
    for row in _objects(fields):
        if row.get(name) is not None:
            value = _decimal(row[name])
            if not value.is_finite():
                return pa.large_string()
            digits, exponent = len(value.as_tuple().digits), int(value.as_tuple().exponent)
            whole, scale = max(whole, digits + exponent), max(scale, -exponent)
            if whole + scale > MOST_DIGITS:
                return pa.large_string()
    return pa.decimal128(38, scale) if whole + scale <= 38 else pa.decimal256(MOST_DIGITS, scale)


def _decimal(value: Any) -> Decimal:
    text = next(iter(value.values())) if isinstance(value, dict) else repr(value)
    return Decimal(text)


def _double(value: Any) -> float:
    return float(value["@double"] if isinstance(value, dict) else value)


def _array(values: list[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_large_string(type_):
        return pa.array([None if value is None else _text(value) for value in values], type_)
    if pa.types.is_decimal(type_):
        return pa.array([None if value is None else _decimal(value) for value in values], type_)
    if pa.types.is_floating(type_):
        return pa.array([None if value is None else _double(value) for value in values], type_)
    plain = [next(iter(value.values())) if isinstance(value, dict) else value for value in values]
    if pa.types.is_large_binary(type_):
        return pa.array([None if text is None else base64.b64decode(text) for text in plain], type_)
    if not pa.types.is_date(type_) and pa.types.is_temporal(type_) and type_.unit == "us":
        plain = [None if text is None else ZEROS.sub(r"\1", text) for text in plain]
    if pa.types.is_time(type_):  # Arrow reads them behind a date alone
        stamps = pa.array([None if text is None else f"1970-01-01 {text}" for text in plain], pa.string())
        return stamps.cast(pa.timestamp(type_.unit)).cast(type_)
    return pa.array(plain, pa.string()).cast(type_) if pa.types.is_temporal(type_) else pa.array(plain, type_)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(next(iter(value.values()))) if tag_of(value) else json.dumps(value, ensure_ascii=False)

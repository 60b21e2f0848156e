"""Fields: what is known of an image, as JSON that keeps each value exactly and can always be written.

For some values JSON has no word. They stand as objects of one name: {"@decimal": "9.50"}, {"@double": "inf"},
{"@bytes": base64}, {"@date": "2026-01-02"}, {"@time": "03:04:05"}, {"@timestamp": "2026-01-02 03:04:05"}, and
{"@instant": "2026-01-02 03:04:05Z"} where it has a zone. Inside lists and objects they are their text alone.
"""

import base64
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa

TAGS = ("@decimal", "@double", "@bytes", "@date", "@time", "@timestamp", "@instant")
SURROGATE = re.compile("[\ud800-\udfff]")
UNREADABLE = "\ufffd"  # in the place of what cannot be written
MOST_DIGITS = 1000  # of a whole number: Python converts no more than 4300
DEEPEST = 100  # lists in lists: far below where Python's own limit would end a run
FRACTION = {"s": 0, "ms": 3, "us": 6, "ns": 9}


def number_of(text: str) -> int | float | Decimal:
    """A number as it is written: whole, a double if that says the same again, a decimal otherwise."""
    if re.fullmatch(r"-?\d+", text):
        return int(text) if len(text) <= MOST_DIGITS else Decimal(text)
    value, exact = float(text), Decimal(text)
    return value if math.isfinite(value) and Decimal(repr(value)) == exact else exact


def parse_json(text: str, name: str) -> dict[str, Any]:
    """The fields that a JSON object is, or a field of this name with other JSON.

    Raises ValueError or RecursionError where it is no JSON.
    """
    value = json.loads(
        text,
        parse_int=number_of,
        parse_float=number_of,
        parse_constant=float,
    )
    fields = value if isinstance(value, dict) else {name: value}
    return {unicode_of(name): plain(one) for name, one in fields.items()}


def plain(value: Any) -> Any:
    """A value of a field as JSON has it: text without halves of surrogate pairs, what JSON has no word for tagged,
    null for NaN, which is no number.

    Raises RecursionError where lists lie too deep.
    """
    if isinstance(value, list | tuple | dict):
        return _nested(value, 0)
    if tagged := _tagged(value):
        return {tagged[0]: tagged[1]}
    return _simple(value)


def tag_of(value: Any) -> str | None:
    """The tag of a value that JSON has no word for."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    (tag, text) = next(iter(value.items()))
    return tag if tag in TAGS and isinstance(text, str) else None


def json_values(column: pa.Array) -> list[Any]:
    """Values of an Arrow array as `plain` has them; times by Arrow, which knows more of them than Python."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name != "arrow.uuid":
            return json_values(column.storage)
    elif pa.types.is_dictionary(kind):
        return json_values(column.dictionary_decode())
    elif pa.types.is_duration(kind):
        digits = FRACTION[kind.unit]
        return [None if n is None else plain(Decimal(n).scaleb(-digits)) for n in column.cast(pa.int64()).to_pylist()]
    elif tag := _tag_of_time(kind):
        return [None if text is None else {tag: text} for text in _times(column)]
    elif pa.types.is_nested(kind):
        return _each(_with_times_as_text(column), plain)
    elif _is_text(kind):
        texts = column.cast(pa.large_binary()).to_pylist()  # Parquet files may hold text that is none
        return [None if text is None else text.decode("utf-8", "replace") for text in texts]
    return _each(column, plain)


def _each(column: pa.Array, convert: Callable[[Any], Any]) -> list[Any]:
    try:
        return [convert(value) for value in column.to_pylist()]
    except (ValueError, OverflowError, RecursionError, pa.ArrowException):
        return [_one(value, convert) for value in column]


def _one(value: pa.Scalar, convert: Callable[[Any], Any]) -> Any:
    try:
        return convert(value.as_py())
    except (ValueError, OverflowError, RecursionError, pa.ArrowException):
        return UNREADABLE


def unicode_of(text: str) -> str:
    """Text that can be written: U+FFFD for each half of a surrogate pair."""
    return SURROGATE.sub(UNREADABLE, text)


def _tagged(value: Any) -> tuple[str, str] | None:
    if isinstance(value, float):
        return ("@double", repr(value)) if math.isinf(value) else None
    if isinstance(value, Decimal):
        return "@decimal", str(value)
    return ("@bytes", base64.b64encode(value).decode()) if isinstance(value, bytes) else None


def _nested(value: Any, depth: int) -> Any:
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(value, dict):
        found = {unicode_of(str(name)): _nested(one, depth + 1) for name, one in value.items()}
        # An object that looks like a tag is none: it is kept as its text.
        return json.dumps(found, ensure_ascii=False) if depth == 0 and tag_of(found) else found
    if isinstance(value, list | tuple):
        return [_nested(one, depth + 1) for one in value]
    if tagged := _tagged(value):
        return tagged[1]
    return _simple(value)


def _simple(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return None if value != value else value
    return unicode_of(str(value))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _tag_of_time(kind: pa.DataType) -> str | None:
    if pa.types.is_timestamp(kind):
        return "@instant" if kind.tz else "@timestamp"
    return "@date" if pa.types.is_date(kind) else "@time" if pa.types.is_time(kind) else None


def _times(column: pa.Array) -> list[str | None]:
    """Dates and times as text; those of a zone as of UTC, whether or not this computer knows the zone."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz:
        plain = column.cast(pa.int64()).cast(pa.timestamp(kind.unit))
        return [None if text is None else f"{text}Z" for text in plain.cast(pa.string()).to_pylist()]
    texts = (column.cast(pa.date32()) if pa.types.is_date64(kind) else column).cast(pa.string())
    return list(texts.to_pylist())


def _with_times_as_text(column: pa.Array) -> pa.Array:
    try:
        return column.cast(_timeless(column.type))
    except (pa.ArrowException, NotImplementedError):
        return column


def _timeless(kind: pa.DataType) -> pa.DataType:
    """A nested type with its times as text."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_timeless(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_timeless(kind.key_type), _timeless(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.large_list(_timeless(kind.value_type))
    return pa.string() if _tag_of_time(kind) else pa.int64() if pa.types.is_duration(kind) else kind

"""A column compared with values, each as what the column is: exactly, or refused; never as something else's text."""

import decimal
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.errors import SifBatchError

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,6})?\s*", re.ASCII)
TIME = re.compile(r"\d\d:\d\d(:\d\d(\.\d{1,9})?)?", re.ASCII)
ZONE = re.compile(r"(Z|[+-]\d\d(:?\d\d)?)$")
DAY_NS = 86_400 * 10**9
UNIT_NS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
MOST_CHARACTERS = 150  # of a number: what is exact below keeps 200 digits
EXACT = decimal.Context(prec=200, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
COMPARE: dict[str, Callable[[pc.Expression, pa.Scalar], pc.Expression]] = {
    "=": lambda field, value: field == value,
    "!=": lambda field, value: field != value,
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
}
SAME = {"==": "=", "<>": "!="}
TIMES_REMEDY = (
    "write it as '2026-01-31', '2026-01-31 17:05:00' or '17:05'; with Z or +02:00 where the column has a zone"
)


@dataclass(frozen=True)
class Literal:
    """A value as a filter has it. kind: text, number or logical (true, false); text: without quotes."""

    kind: str
    text: str


@dataclass(frozen=True)
class _Steps:
    """A type whose values are whole numbers of steps, from low to high; scalar: the value of so many."""

    low: int
    high: int
    scalar: Callable[[int], pa.Scalar]


def compare(name: str, type_: pa.DataType, sign: str, literal: Literal) -> pc.Expression:
    """A comparison of a column by = == != <> < <= > or >=; null where the column is. Raises SifBatchError."""
    field, sign = pc.field(name), SAME.get(sign, sign)
    if pa.types.is_null(type_):
        return _always(field, None)
    steps = _steps(type_)
    if steps is None:
        return COMPARE[sign](field, _scalar(name, type_, literal))
    value = _in_steps(name, type_, literal)
    if value < steps.low:
        return _always(field, sign in ("!=", ">", ">="))
    if value > steps.high:
        return _always(field, sign in ("!=", "<", "<="))
    below = int(value.to_integral_value(decimal.ROUND_FLOOR, EXACT))
    if below != value:  # between two steps
        if sign in ("=", "!="):
            return _always(field, sign == "!=")
        sign = "<=" if sign in ("<", "<=") else ">"
    return COMPARE[sign](field, steps.scalar(below))


def among(name: str, type_: pa.DataType, literals: Sequence[Literal]) -> pc.Expression:
    """Whether a column has one of some values; null where it has none. Raises SifBatchError."""
    field = pc.field(name)
    if pa.types.is_null(type_):
        return _always(field, None)
    if (steps := _steps(type_)) is None:
        values = [_scalar(name, type_, literal).as_py() for literal in literals]
        values += [-value for value in values if value == 0 and isinstance(value, float)]  # 0.0 and -0.0 are equal
    else:
        places = [_in_steps(name, type_, literal) for literal in literals]
        inside = [int(p) for p in places if steps.low <= p <= steps.high and p == p.to_integral_value(context=EXACT)]
        values = [steps.scalar(place) for place in inside]
    found = field.isin(pa.array(values, type_)) if values else pc.scalar(False)
    return pc.if_else(field.is_valid(), found, pa.scalar(None, pa.bool_()))


def is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _always(field: pc.Expression, truth: bool | None) -> pc.Expression:
    return pc.if_else(field.is_valid(), pa.scalar(truth, pa.bool_()), pa.scalar(None, pa.bool_()))


def _steps(type_: pa.DataType) -> _Steps | None:
    if pa.types.is_integer(type_):
        bits, signed = type_.bit_width, pa.types.is_signed_integer(type_)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return _Steps(low, high, lambda n: pa.scalar(n, type_))
    if pa.types.is_decimal(type_):
        most = 10**type_.precision - 1
        return _Steps(-most, most, lambda n: pa.scalar(Decimal(n).scaleb(-type_.scale, EXACT), type_))
    if pa.types.is_temporal(type_):
        whole = pa.int64() if type_.bit_width == 64 else pa.int32()
        most = 2 ** (type_.bit_width - 1) - 1
        return _Steps(-most, most, lambda n: pa.scalar(n, whole).cast(type_))
    return None


def _in_steps(name: str, type_: pa.DataType, literal: Literal) -> Decimal:
    """A value as a number of steps, not always a whole one."""
    if not pa.types.is_temporal(type_):
        return _number(name, type_, literal).scaleb(type_.scale if pa.types.is_decimal(type_) else 0, EXACT)
    nanoseconds = _nanoseconds(type_, literal.text) if literal.kind == "text" else None
    if nanoseconds is None:
        raise _wrong(name, type_, literal, TIMES_REMEDY)
    return Decimal(nanoseconds) / (DAY_NS if pa.types.is_date(type_) else UNIT_NS[type_.unit])


def _number(name: str, type_: pa.DataType, literal: Literal) -> Decimal:
    if literal.kind != "logical" and len(literal.text) <= MOST_CHARACTERS and NUMBER.fullmatch(literal.text):
        return Decimal(literal.text.strip())
    raise _wrong(name, type_, literal, "compare it with a number")


def _nanoseconds(type_: pa.DataType, text: str) -> int | None:
    """A time since 1970, or since midnight; None where it is none."""
    text = text.strip()
    if pa.types.is_time(type_):
        if not TIME.fullmatch(text):
            return None
        text = f"1970-01-01 {text}"
    if pa.types.is_timestamp(type_) and type_.tz:
        with_time = text if ":" in text else f"{text} 00:00"
        text, zone = (text if ZONE.search(text) and ":" in text else f"{with_time}Z"), "UTC"
    else:
        zone = None
    for unit in ("ns", "us"):  # of the first only some centuries
        try:
            return int(pa.scalar(text).cast(pa.timestamp(unit, zone)).cast(pa.int64()).as_py()) * UNIT_NS[unit]
        except pa.ArrowInvalid:
            continue
    return None


def _scalar(name: str, type_: pa.DataType, literal: Literal) -> pa.Scalar:
    if is_text(type_):
        if literal.kind == "text":
            return pa.scalar(literal.text, type_)
        raise _wrong(name, type_, literal, f"it is compared as text: put the value in quotes, '{literal.text}'")
    if literal.kind == "text" and (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
        return pa.scalar(literal.text.encode(), type_)
    if pa.types.is_boolean(type_) and literal.text.lower() in ("true", "false", "1", "0"):
        return pa.scalar(literal.text.lower() in ("true", "1"), type_)
    if pa.types.is_floating(type_):
        if literal.kind == "text" and literal.text.lower() in ("nan", "inf", "-inf"):
            return pa.scalar(float(literal.text), type_)
        return pa.scalar(float(_number(name, type_, literal)), type_)
    raise _wrong(name, type_, literal, "compare it with a value of its own kind")


def _wrong(name: str, type_: pa.DataType, literal: Literal, remedy: str) -> SifBatchError:
    shown = literal.text if literal.kind != "text" else repr(literal.text)
    kind = "text" if is_text(type_) else str(type_)
    return SifBatchError(f"{name} is {kind}, which {shown} is not", remedy=remedy)

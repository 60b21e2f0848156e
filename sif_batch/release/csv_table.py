"""A CSV file as a table: what its cells are is decided by all of a column, and no cell is changed by it."""

import codecs
import contextlib
import csv
import io
from decimal import Decimal
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from sif_batch.sources.fields import number_of

READ_BYTES = 2**20
# In columns of numbers, times, true and false these are no value either; in others they are text.
NOTHING = pa.array(["", "#N/A", "N/A", "n/a", "#NA", "NA", "NULL", "null", "NaN", "nan", "-NaN", "-nan"])
LOGICAL = r"^(true|True|TRUE|false|False|FALSE)$"
WHOLE = r"^(0|-?[1-9]\d*)$"  # 007 and +49 are codes, not numbers
NUMBER = r"^-?(([0-9]|[1-9]\d+)(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?$"
DATE, TIME, ZONE = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d(:\d\d(\.\d{1,9})?)?", r"(Z|[+-]\d\d:?\d\d)"
WHOLE_TYPES = (pa.int64(), pa.uint64(), pa.decimal128(38, 0), pa.decimal256(76, 0))


def read_csv_table(file: BinaryIO) -> pa.Table:
    """A CSV file with a header: text is UTF-8, what its byte order mark says, or Windows' Latin-1.

    An empty cell is no value; "" in quotes is empty text. `key` is text. Raises pa.ArrowException.
    """
    encoding = _encoding_of(file)
    options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(_header(file, encoding), pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    file.seek(0)
    lines = pa.csv.ParseOptions(newlines_in_values=True)
    table = pa.csv.read_csv(file, pa.csv.ReadOptions(encoding=encoding), lines, options)
    names = table.column_names
    columns = [column if name == "key" else _typed(column) for name, column in zip(names, table.columns, strict=True)]
    return pa.table(columns, names=names)


def _header(file: BinaryIO, encoding: str) -> list[str]:
    file.seek(0)
    text = io.TextIOWrapper(file, "utf-8-sig" if encoding == "utf8" else encoding, newline="")
    try:
        return next((row for row in csv.reader(text) if row), [])
    except csv.Error as error:
        raise pa.ArrowInvalid(f"no header: {error}") from error
    finally:
        text.detach()


def _encoding_of(file: BinaryIO) -> str:
    start = file.read(2)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    for encoding in ("utf8", "cp1252"):
        file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            while data := file.read(READ_BYTES):
                decoder.decode(data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text as what all its cells are; as it is if they are not alike."""
    trimmed = pc.utf8_trim(column, " \t")
    cells = trimmed.unique()
    cells = cells.filter(pc.invert(pc.is_in(cells, NOTHING))).drop_null()
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column))])
    made = _made(cells) if len(cells) else None
    if made is None:
        return column
    place = pc.index_in(trimmed, cells)
    return pa.chunked_array([made.take(chunk) for chunk in place.chunks], made.type)


def _made(cells: pa.Array) -> pa.Array | None:
    """Cells as the first of these types that has them all exactly; None: text. Each cell is there once."""

    def all_are(pattern: str) -> bool:
        return bool(pc.all(pc.match_substring_regex(cells, pattern)).as_py())

    stamp = f"{DATE}([ T]{TIME})?"
    if all_are(LOGICAL):
        return pc.equal(pc.utf8_lower(cells), "true")
    if all_are(WHOLE):
        return _cast(cells, *WHOLE_TYPES)
    if all_are(NUMBER):
        return _numbers(cells.to_pylist())
    if all_are(f"^{DATE}$"):
        return _cast(cells, pa.date32())
    if all_are(f"^{stamp}$"):
        return _cast(cells, pa.timestamp("us"), pa.timestamp("ns"))
    if all_are(f"^{stamp}{ZONE}$"):
        return _cast(cells, pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC"))
    if all_are(f"^{TIME}$"):  # Arrow reads them behind a date alone
        stamps = _cast(pc.binary_join_element_wise("1970-01-01", cells, " "), pa.timestamp("us"), pa.timestamp("ns"))
        return None if stamps is None else stamps.cast(pa.time64(stamps.type.unit))
    return None


def _numbers(texts: list[str]) -> pa.Array | None:
    numbers = [number_of(text) for text in texts]
    if all(isinstance(number, float) or (isinstance(number, int) and abs(number) <= 2**53) for number in numbers):
        return pa.array(numbers, pa.float64())
    try:
        return pa.array([Decimal(text) for text in texts])
    except pa.ArrowInvalid:  # more digits than a decimal has
        return None


def _cast(cells: pa.Array, *types: pa.DataType) -> pa.Array | None:
    for type_ in types:
        with contextlib.suppress(pa.ArrowInvalid):
            return cells.cast(type_)
    return None

"""How much memory reading a row group of Parquet takes: its pages' sizes, told before any of them is inflated.

A page is inflated whole, whatever is read of it, and pyarrow does not say how large its pages are.
"""

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow.parquet as pq

MAX_HEADER_BYTES = 2**20  # of a page: its sizes, and statistics if the writer puts them there
FEW_BYTES = 2**20  # compressed so far, a column's pages are looked at even if the file says that they inflate to little
DICTIONARY_PAGE = 2
# Thrift's compact protocol: the types of what stands in a struct.
STOP, TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(13)

Page = tuple[int, int, int, bool]  # first row in the group, number of the column, bytes, whether it is a dictionary


def rows_within(file: BinaryIO, parquet: pq.ParquetFile, group: int, columns: Sequence[str], limit: int) -> int:
    """How many of a row group's rows, from the first one on, can be read with pages of so many bytes at a time.

    columns: those of the schema's top that are read. Raises OSError.
    """
    about = parquet.metadata.row_group(group)
    chunks = [about.column(number) for number in range(about.num_columns)]
    flat = [parquet.schema.column(number).max_repetition_level == 0 for number in range(about.num_columns)]
    of = [any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns) for chunk in chunks]
    read = list(itertools.compress(chunks, of))
    declared = sum(chunk.total_uncompressed_size for chunk in read)
    if declared <= limit and all(chunk.total_compressed_size > FEW_BYTES for chunk in read):
        return int(about.num_rows)
    found = itertools.chain.from_iterable(_pages(file, chunk, number) for number, chunk in enumerate(read))
    pages = sorted(found, key=operator.itemgetter(0))
    counted = list(itertools.compress(flat, of))  # of lists there are more values than rows: nobody knows which row
    dictionaries = 0
    present = [0] * len(read)
    for row, column, size, is_dictionary in pages:
        if is_dictionary:
            dictionaries += 2 * size  # pyarrow copies it
        else:
            present[column] = size
        if dictionaries + sum(present) > limit:
            return row if all(counted) else 0
    return int(about.num_rows)


def _pages(file: BinaryIO, chunk: Any, column: int) -> Iterator[Page]:
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    values, end = 0, at + chunk.total_compressed_size
    while at < end and values < chunk.num_values:
        file.seek(at)
        header = _Thrift(file.read(min(MAX_HEADER_BYTES, end - at)))
        page = header.struct()
        if not {1, 2, 3} <= page.keys() or page[2] < 0 or page[3] < 0:
            raise OSError("a page without its sizes")
        is_dictionary = page[1] == DICTIONARY_PAGE
        yield values, column, page[2], is_dictionary
        values += 0 if is_dictionary else _values(page)
        at += header.at + page[3]


def _values(page: dict[int, Any]) -> int:
    """The values of a data page, of version 1 or 2: at least its rows."""
    about = page.get(5) or page.get(8) or {}
    return int(about.get(1, 0))


class _Thrift:
    """Reads numbers and structs; passes over the rest. Raises OSError."""

    def __init__(self, data: bytes):
        self._data, self.at = data, 0

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise OSError("a page header that does not end")
        self.at += 1
        return self._data[self.at - 1]

    def _number(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise OSError("a page header with a number that does not end")

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Its fields by number."""
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 0x0F != STOP:
            number = number + (head >> 4) if head >> 4 else _signed(self._number())
            fields[number] = self._value(head & 0x0F, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 4:
            raise OSError("a page header that is too deep")
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind in (I16, I32, I64):
            return _signed(self._number())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind not in (BYTE, DOUBLE, BINARY):  # lists and maps: no page header has them
            raise OSError("a page header of an unknown kind")
        length = {BYTE: 1, DOUBLE: 8}.get(kind) or self._number()
        self.at += length
        return None


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)

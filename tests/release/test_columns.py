import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.release.columns import OWN_COLUMNS, column_name, column_types, field_name, make_columns


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([1, 2, None], pa.int64(), [1, 2, None]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([True, False], pa.bool_(), [True, False]),
        (["a", "b"], pa.large_string(), ["a", "b"]),
        ([1, "a", True, 1.5], pa.large_string(), ["1", "a", "true", "1.5"]),
        ([True, 1], pa.large_string(), ["true", "1"]),
        ([[1, 2], {"ü": 1}], pa.large_string(), ["[1, 2]", '{"ü": 1}']),
        ([2**63, 1], pa.uint64(), [2**63, 1]),
        ([2**63, -1], pa.decimal128(38, 0), [Decimal(2**63), Decimal(-1)]),
        ([2**64, 1], pa.decimal128(38, 0), [Decimal(2**64), Decimal(1)]),
        ([10**75, 1], pa.decimal256(76, 0), [Decimal(10**75), Decimal(1)]),
        ([10**76, 1], pa.large_string(), [str(10**76), "1"]),
        ([2**53 + 1, 0.5], pa.decimal128(38, 1), [Decimal(2**53 + 1), Decimal("0.5")]),
        ([2**53 + 1, 1e300], pa.large_string(), [str(2**53 + 1), "1e+300"]),
        (
            [{"@decimal": "9.50"}, {"@decimal": "1E+3"}, 2],
            pa.decimal128(38, 2),
            [Decimal("9.50"), Decimal(1000), Decimal(2)],
        ),
        ([{"@decimal": "9.50"}, "a"], pa.large_string(), ["9.50", "a"]),
        ([{"@double": "inf"}, 1.5], pa.float64(), [float("inf"), 1.5]),
        ([{"@bytes": "/wA="}], pa.large_binary(), [b"\xff\0"]),
        ([{"@date": "2026-01-02"}], pa.date32(), [date(2026, 1, 2)]),
        ([{"@date": "12026-01-02"}], pa.large_string(), ["12026-01-02"]),
        ([{"@time": "03:04:05"}], pa.time64("us"), [time(3, 4, 5)]),
        (
            [{"@timestamp": "2026-01-02 03:04:05.120000000"}],
            pa.timestamp("us"),
            [datetime(2026, 1, 2, 3, 4, 5, 120000)],
        ),
        (
            [{"@instant": "2026-01-02 03:04:05Z"}],
            pa.timestamp("us", "UTC"),
            [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)],
        ),
        (
            [{"@timestamp": "9999-01-01 00:00:00"}, {"@timestamp": "2026-01-01 00:00:00.000000001"}],
            pa.large_string(),
            ["9999-01-01 00:00:00", "2026-01-01 00:00:00.000000001"],
        ),
        ([{"@other": "x"}], pa.large_string(), ['{"@other": "x"}']),
        ([-(2**63), 2**63 - 1], pa.int64(), [-(2**63), 2**63 - 1]),
    ],
)
def test_a_column_has_the_type_that_all_its_values_fit(
    values: list[Any], type_: pa.DataType, expected: list[Any]
) -> None:
    fields = pa.chunked_array([pa.array([json.dumps({"v": v, "z": 1}) for v in values] + [None], pa.large_string())])
    types = column_types(fields)
    assert types == {"v": type_, "z": pa.int64()}
    column, other = make_columns(fields, types)
    assert column.type == type_ and column.to_pylist() == [*expected, None]
    assert other.to_pylist() == [1] * len(values) + [None]


def test_without_fields_there_are_no_columns() -> None:
    nothing = pa.chunked_array([pa.array([None, None], pa.large_string())])
    assert column_types(nothing) == {} and make_columns(nothing, {}) == []


def test_a_field_without_any_value_is_a_column() -> None:
    fields = pa.chunked_array([pa.array(['{"a": null}'], pa.large_string())])
    assert column_types(fields) == {"a": pa.null()}
    assert make_columns(fields, {"a": pa.null()})[0].to_pylist() == [None]


@checked
@given(st.sets(st.text("_", max_size=3).flatmap(lambda tail: st.sampled_from(OWN_COLUMNS).map(lambda n: n + tail))))
def test_no_two_fields_are_one_column(names: set[str]) -> None:
    columns = [column_name(name) for name in names]
    assert len({*columns, *OWN_COLUMNS}) == len(names) + len(OWN_COLUMNS)
    assert [field_name(column) for column in columns] == list(names)

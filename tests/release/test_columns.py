import json
from typing import Any

import pyarrow as pa
import pytest

from sif_batch.release.columns import column_types, make_columns


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
        ([2**63, 1], pa.large_string(), [str(2**63), "1"]),
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
    assert column_types(pa.chunked_array([pa.array(['{"a": null}'], pa.large_string())])) == {}

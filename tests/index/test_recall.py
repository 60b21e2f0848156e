import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.index.recall import Truth, lower_and_upper, recall


def made_truth(distances: list[list[float]], own: list[int] | None = None) -> Truth:
    """Rows numbered by their place in the list."""
    return Truth(
        [np.arange(len(d)) for d in distances],
        [np.array(d, np.float32) for d in distances],
        np.array(own or [-1] * len(distances)),
    )


@pytest.mark.parametrize(
    ("distances", "found", "k", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 1], 2, 1.0),
        ([0.1, 0.2, 0.3, 0.4], [1, 0], 2, 1.0),
        ([0.1, 0.2, 0.3, 0.4], [0, 3], 2, 0.5),
        ([0.1, 0.2, 0.3, 0.4], [2, 3], 2, 0.0),
        ([0.1, 0.2, 0.2, 0.2], [0, 3], 2, 1.0),  # as near as the second
        ([0.2, 0.2, 0.2, 0.2], [3, 2], 2, 1.0),
        ([0.1, 0.2], [0, 1, 7], 10, 1.0),  # fewer than k
        ([0.1, 0.2], [0], 10, 0.5),
        ([0.1, 0.2, 0.3], [], 2, 0.0),
        ([0.0, 0.0, 0.5], [1, 2], 2, 0.5),
        ([0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0], 2, 0.0),  # only the first k count
    ],
)
def test_recall_is_the_share_of_the_nearest_that_were_found(
    distances: list[float], found: list[int], k: int, expected: float
) -> None:
    assert recall(made_truth([distances]), [np.array(found, np.int64)], k) == expected


def test_recall_is_the_mean_over_queries_that_have_neighbours() -> None:
    truth = made_truth([[0.1, 0.2], [0.1, 0.2], []])
    found = [np.array([0, 1]), np.array([1, 5]), np.array([], np.int64)]
    assert recall(truth, found, 2) == 0.75
    assert recall(made_truth([[]]), [np.array([], np.int64)]) is None
    assert recall(made_truth([]), []) is None


@checked
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 12), st.data())
def test_recall_counts_by_distance(steps: list[int], k: int, data: st.DataObject) -> None:
    distances = sorted(step / 8 for step in steps)
    found = data.draw(st.lists(st.integers(0, len(steps) - 1), unique=True, max_size=k))
    wanted = min(k, len(steps))
    good = sum(distances[row] <= distances[wanted - 1] for row in found[:k])
    assert recall(made_truth([distances]), [np.array(found, np.int64)], k) == pytest.approx(min(wanted, good) / wanted)


def test_bounds_hold_the_mean_about_as_often_as_they_say() -> None:
    """Of 400 samples of 200 from a known distribution: 95 % within two standard errors of that share."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        low, high = lower_and_upper(random.beta(9, 1, 200))
        held += low <= 0.9 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_bounds_are_the_same_each_time_and_close_in_on_certainty() -> None:
    values = np.random.default_rng(0).random(300)
    assert lower_and_upper(values) == lower_and_upper(values.copy())
    low, high = lower_and_upper(values)
    assert low < values.mean() < high
    assert lower_and_upper(np.ones(50)) == (1.0, 1.0)
    few, many = (np.subtract(*lower_and_upper(np.tile(values, times)[::-1])) for times in (1, 16))
    assert abs(many) < abs(few) / 3

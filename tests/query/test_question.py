"""Asking again: several images as one query, marks, expansion; against the formulas written out."""

from typing import Any

import numpy as np
import pytest
from synthetic import DIMENSION, Row, build_release, entries_of, make_root, paths, vector_of

from sif_batch.errors import SifBatchError
from sif_batch.query import feedback
from sif_batch.query.index import Index

ROWS = [Row(path) for path in paths(600)]
ASKED = [vector_of(path).astype(np.float32) for path in paths(5, 600)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("question")
    build_release(make_root(folder / "root", ROWS, 300), entries_of(ROWS), folder)
    return Index.open(folder / "root")


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vectors(index: Index, keys: list[str]) -> np.ndarray:
    return unit(index.vectors_of(index.rows_of(keys)))


def keys_of(hits: Any) -> list[str]:
    return [hit.key for hit in hits]


def test_several_images_are_one_query_by_their_mean(index: Index) -> None:
    keys = [row.encoded()["key"] for row in ROWS[:4]]
    mean = vectors(index, keys).mean(axis=0)
    hits = index.search(keys=keys, together=True, k=30)
    expected = [hit for hit in index.search(vector=mean, k=34) if hit.key not in keys]
    assert keys_of(hits) == keys_of(expected)[:30]
    assert [hit.similarity for hit in hits] == pytest.approx([hit.similarity for hit in expected[:30]], abs=1e-5)
    one_by_one = index.search(keys=keys, k=5)
    assert one_by_one == [index.search(key=key, k=5) for key in keys] and len(one_by_one) == 4


def test_marks_move_the_query_and_wrong_ones_never_come_again(index: Index) -> None:
    first = keys_of(index.search(vector=ASKED[0], k=10))
    right, wrong = [first[1], first[4]], [first[0], first[2], first[9]]
    near, far = vectors(index, right).mean(axis=0), vectors(index, wrong).mean(axis=0)
    centre = unit(unit(ASKED[0]) + feedback.RIGHT * near)
    moved = centre + feedback.WRONG * (centre - far)
    hits = index.search(vector=ASKED[0], right=right, wrong=wrong, k=50)
    expected = [key for key in keys_of(index.search(vector=moved, k=53)) if key not in wrong]
    assert keys_of(hits) == expected[:50] and set(right) <= set(keys_of(hits))


def test_marks_alone_ask(index: Index) -> None:
    right = [row.encoded()["key"] for row in ROWS[7:9]]
    hits = index.search(right=right, k=5)
    assert keys_of(hits) == keys_of(index.search(vector=vectors(index, right).mean(axis=0), k=5))
    assert set(keys_of(index.search(key=right[0], right=right[1:], wrong=keys_of(hits)[3:], k=600))) == set(
        index.column("key").to_pylist()
    ) - {right[0], *keys_of(hits)[3:]}


def test_first_hits_are_averaged_in_by_their_similarity(index: Index) -> None:
    first = index.search(vector=ASKED[1], k=6)
    weights = np.array([1.0, *(max(hit.similarity, 0) ** feedback.ALPHA for hit in first)])
    mean = weights @ np.concatenate([unit(ASKED[1])[None], vectors(index, keys_of(first))])
    assert keys_of(index.search(vector=ASKED[1], k=40, expand=6)) == keys_of(index.search(vector=mean, k=40))
    several = index.search(keys=keys_of(first), k=9, expand=3)
    assert several == [index.search(key=key, k=9, expand=3) for key in keys_of(first)]


def test_euclidean_vectors_keep_their_length() -> None:
    random = np.random.default_rng(0)
    q, right, wrong = random.normal(size=8), random.normal(size=(3, 8)), random.normal(size=(2, 8))
    moved = feedback.learn(q, right, wrong, False)
    shifted = feedback.learn(q + 5, right + 5, wrong + 5, False)
    assert np.allclose(shifted - moved, 5)  # the weights' sum is 1
    assert np.allclose(feedback.expand(q, right, np.zeros(3), False), q)
    assert np.allclose(feedback.merge(right, False), right.mean(axis=0))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "given: none"),
        ({"key": "a", "keys": ["b"]}, "given: key, keys"),
        ({"wrong": ["photos/a/00000.jpg"]}, "given: none"),
        ({"keys": "photos/a/00000.jpg"}, "keys is one text"),
        ({"key": "photos/a/00000.jpg", "right": "photos/b/00001.jpg"}, "right is one text"),
        ({"keys": ["photos/a/00000.jpg"], "right": ["photos/b/00001.jpg"]}, "as one query alone"),
        ({"keys": [], "together": True}, "no keys to ask with"),
        ({"key": "photos/a/00000.jpg", "right": ["x"]}, "no image of the release has the key 'x'"),
        ({"key": "photos/a/00000.jpg", "wrong": ["x"]}, "no image of the release has the key 'x'"),
        ({"key": "photos/a/00000.jpg", "right": ["x"], "wrong": ["x"]}, "x is marked both"),
        ({"key": "photos/a/00000.jpg", "expand": -1}, "expand is -1"),
        ({"key": "photos/a/00000.jpg", "k": 0}, "k is 0"),
        ({"keys": ["nothing"]}, "no image of the release has the key 'nothing'"),
        ({"vector": np.ones(DIMENSION + 1)}, "expected"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why(index: Index, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(SifBatchError, match=says):
        index.search(**asked)

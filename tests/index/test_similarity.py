import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.index.similarity import SIMILARITY, Transform, fit_pca, normalise

CODED = np.array([3, 0, 30, 8])
X = (np.random.default_rng(3).normal(size=(400, 40)) @ np.random.default_rng(4).normal(size=(40, 40)) + 2).astype("f2")


def trained(metric: str, power: bool = False, whitening: float = 0.0) -> Transform:
    return Transform(metric, power, whitening, *fit_pca(X, metric, power), coded=CODED)


def test_pca_is_that_of_a_singular_value_decomposition() -> None:
    x = X.astype(np.float64)
    mean, components, variances = fit_pca(X)
    _, singular, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    assert np.allclose(mean, x.mean(axis=0))
    assert np.allclose(np.abs(components.T), np.abs(directions), atol=1e-6)
    assert np.allclose(components.T @ components, np.eye(40))
    assert np.allclose(variances, singular**2 / 399)
    largest = np.abs(components).argmax(axis=0)
    assert (components[largest, np.arange(40)] > 0).all()


def test_pca_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sif_batch.index.similarity.BLOCK_ROWS", 8)
    assert all(np.allclose(a, b) for a, b in zip(fit_pca(X), fit_pca(X[:400].copy()), strict=True))
    mean, _, variances = fit_pca(X)
    assert np.allclose(mean, X.astype(np.float64).mean(axis=0)) and len(variances) == 40


@pytest.mark.parametrize("power", [False, True])
def test_each_metric_is_the_one_it_is_named_after(power: bool) -> None:
    """Distances of compared vectors give the similarity that a formula of the raw vectors gives."""
    a, b = X[:20].astype(np.float64), X[20:40].astype(np.float64)
    if power:
        a, b = np.sign(a) * np.sqrt(np.abs(a)), np.sign(b) * np.sqrt(np.abs(b))
    expected = {
        "cosine": (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1),
        "pearson": np.array([np.corrcoef(u, v)[0, 1] for u, v in zip(a, b, strict=True)]),
        "euclidean": 1 / (1 + np.linalg.norm(a - b, axis=1)),
    }
    for metric, similarity in expected.items():
        transform = Transform(metric, power)
        apart = ((transform.apply(X[:20]) - transform.apply(X[20:40])) ** 2).sum(axis=1)
        assert np.allclose(SIMILARITY[metric](apart), similarity, atol=1e-9)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_whitening_divides_components_by_their_deviation(exponent: float) -> None:
    y = trained("euclidean", whitening=exponent).apply(X)
    x = X.astype(np.float64) - X.astype(np.float64).mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    order = np.argsort(-values)
    floored = np.maximum(values[order], 0.01 * values.mean())
    expected = np.abs(x @ vectors[:, order]) * floored ** (-exponent / 2)
    assert np.allclose(np.abs(y), expected, atol=1e-4 * np.abs(expected).max())


def test_full_whitening_leaves_no_correlation() -> None:
    y = trained("euclidean", whitening=1.0).apply(X)
    kept = np.cov(y.T)
    assert np.allclose(kept - np.diag(np.diag(kept)), 0, atol=1e-3) and np.allclose(np.diag(kept)[:10], 1, atol=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "pearson"])
def test_compared_vectors_are_of_unit_length(metric: str) -> None:
    for whitening in (0.0, 0.5):
        assert np.allclose(np.linalg.norm(trained(metric, whitening=whitening).apply(X), axis=1), 1)


@checked
@given(st.sampled_from(["cosine", "pearson", "euclidean"]), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 10**6))
def test_a_rows_bits_are_its_own(metric: str, whitening: float, seed: int) -> None:
    transform = trained(metric, True, whitening)
    whole = transform.apply(X)
    picked = np.random.default_rng(seed).permutation(400)[:37]
    assert transform.apply(X[picked]).tobytes() == whole[picked].tobytes()
    assert transform.reduce(whole[picked], 8).tobytes() == transform.reduce(whole, 8)[picked].tobytes()
    assert transform.to_code(whole[picked]).tobytes() == transform.to_code(whole)[picked].tobytes()


@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_what_was_cut_is_restored_as_far_as_it_tells(whitening: float) -> None:
    transform = trained("cosine", whitening=whitening)
    y = transform.apply(X)
    whole = transform.reduce(y, 40)
    assert np.allclose(transform.restore(whole), y, atol=1e-5)
    again = transform.reduce(transform.restore(transform.reduce(y, 12)), 12)
    assert np.allclose(again, transform.reduce(y, 12), atol=1e-6)
    assert np.allclose(transform.to_code(y), whole[:, CODED], atol=1e-6)


def test_vectors_are_brought_to_unit_length_and_zero_stays() -> None:
    x = np.array([[3, 4], [0, 0], [6e4, 6e4], [6e-8, 0]], np.float16)
    assert normalise(x).dtype == np.float64
    assert np.allclose(normalise(x), [[0.6, 0.8], [0, 0], [0.5**0.5, 0.5**0.5], [1, 0]])


def test_equal_vectors_have_no_variance_and_still_a_transform() -> None:
    same = np.ones((100, 8), np.float16)
    for whitening in (0.0, 1.0):
        transform = Transform("cosine", False, whitening, *fit_pca(same, "cosine"))
        assert (
            np.isfinite(transform.apply(same)).all() and np.isfinite(transform.reduce(transform.apply(same), 4)).all()
        )

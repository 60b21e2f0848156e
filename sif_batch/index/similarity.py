"""The configured similarity: what becomes of an encoder's vector before it is compared.

Signed square root, then the metric's own preparation, then a PCA whose exponent whitens. After it the nearest by
Euclidean distance is the most similar, and `SIMILARITY` turns the squared distance into what a person reads.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sif_batch.errors import SifBatchError
from sif_batch.machine.arithmetic import BLOCK_ROWS, project

Projection = Callable[[np.ndarray, np.ndarray], np.ndarray]

FLOOR = 0.01  # of the mean variance: directions that training saw nothing of are not blown up any further


def normalise(x: np.ndarray) -> np.ndarray:
    """(n, d) at unit length, float64, so that Euclidean order is cosine order; a zero row stays zero."""
    x = x.astype(np.float64)
    length = np.sqrt(np.einsum("ij,ij->i", x, x))
    x /= np.where(length > 0, length, 1)[:, None]
    return x


def _centre(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return normalise(x - x.mean(axis=1, keepdims=True))


def _of_angle(squared: np.ndarray) -> np.ndarray:
    return np.maximum(1 - squared / 2, -1)  # type: ignore[no-any-return]


def _of_distance(squared: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.sqrt(np.maximum(squared, 0)))


# metric: how a vector is prepared, (n, d) to (n, d) float64.
PREPARE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": normalise,
    "pearson": _centre,
    "euclidean": lambda x: x.astype(np.float64),
}
# metric: similarity of a squared distance. The cosine, the correlation, and 1 / (1 + distance): all 1 for the same.
SIMILARITY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": _of_angle,
    "pearson": _of_angle,
    "euclidean": _of_distance,
}
# metric: the squared distance of a similarity.
SQUARED_DISTANCE: dict[str, Callable[[float], float]] = {
    "cosine": lambda similarity: 2 - 2 * similarity,
    "pearson": lambda similarity: 2 - 2 * similarity,
    "euclidean": lambda similarity: (1 / similarity - 1) ** 2,
}


@dataclass(frozen=True)
class Transform:
    """mean: (d,), components: (d, m) float64, orthonormal columns by falling variance, variances: (m,); None where
    nothing was trained. coded: (c,) int64, the components that codes are made of, in their order; None: no codes."""

    metric: str
    power: bool = False
    whitening: float = 0.0
    mean: np.ndarray | None = None
    components: np.ndarray | None = None
    variances: np.ndarray | None = None
    coded: np.ndarray | None = field(default=None, kw_only=True)

    @property
    def unit(self) -> bool:
        """Whether vectors are compared at unit length."""
        return self.metric != "euclidean"

    def apply(self, x: np.ndarray, by: Projection = project) -> np.ndarray:
        """Vectors as the encoder gives them, (n, d), as they are compared: (n, m or d) float64, row by row independent.

        Without whitening they keep their own axes; with it they lie along the components, each divided by its
        standard deviation to the power of the exponent. by: `project_few` where so much independence costs too much.
        """
        x = prepare(x, self.metric, self.power)
        if not self.whitening:
            return x
        whitened = by(x - self.mean, self._whitener).astype(np.float64)
        return normalise(whitened) if self.unit else whitened

    def reduce(self, y: np.ndarray, dimensions: int, by: Projection = project) -> np.ndarray:
        """Compared vectors on the first components: (n, dimensions) float32, row by row independent; by: as `apply`."""
        if self.whitening:
            return np.ascontiguousarray(y[:, :dimensions], np.float32)
        assert self.mean is not None and self.components is not None
        return by(y - self.mean, self.components[:, :dimensions])

    def to_code(self, y: np.ndarray) -> np.ndarray:
        """Compared vectors as codes are made of: (n, coded) float32, row by row independent."""
        if self.whitening:
            return np.ascontiguousarray(y[:, self.coded], np.float32)
        return project(y - self.mean, self.coder)

    @functools.cached_property
    def coder(self) -> np.ndarray:
        """The components that codes are made of, in their order: (d, coded) float64."""
        assert self.components is not None and self.coded is not None
        return self.components[:, self.coded]

    def restore(self, z: np.ndarray) -> np.ndarray:
        """The compared vectors, (n, ...) float64, that `reduce` made (n, dimensions) of, as far as these tell."""
        z = z.astype(np.float64)
        assert self.mean is not None and self.components is not None
        if self.whitening:
            return np.pad(z, ((0, 0), (0, self.components.shape[1] - z.shape[1])))
        return z @ self.components[:, : z.shape[1]].T + self.mean

    @functools.cached_property
    def _whitener(self) -> np.ndarray:
        assert self.components is not None and self.variances is not None
        floored = np.maximum(self.variances, max(FLOOR * float(self.variances.mean()), 1e-30))
        return self.components * floored ** (-self.whitening / 2)


def prepare(x: np.ndarray, metric: str, power: bool) -> np.ndarray:
    """Vectors before any PCA: (n, d) float64."""
    if power:
        x = x.astype(np.float64)
        x = np.sign(x) * np.sqrt(np.abs(x))
    return PREPARE[metric](x)


def fit_pca(x: np.ndarray, metric: str = "euclidean", power: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PCA of prepared vectors by the eigenvectors of their covariance, in float64, in blocks, on one BLAS thread.

    x: (n, d). Returns mean (d,), components (d, d) and variances (d,), the largest first. The sign of each component
    makes its largest entry positive.
    """
    from threadpoolctl import threadpool_limits

    if len(x) < 2:
        raise SifBatchError(f"a PCA of {len(x)} vectors")
    blocks = range(0, len(x), 4 * BLOCK_ROWS)
    with threadpool_limits(1):
        mean = sum(prepare(x[at : at + 4 * BLOCK_ROWS], metric, power).sum(axis=0) for at in blocks) / len(x)
        covariance = np.zeros((x.shape[1], x.shape[1]))
        for at in blocks:
            block = prepare(x[at : at + 4 * BLOCK_ROWS], metric, power) - mean
            covariance += block.T @ block
        values, vectors = np.linalg.eigh(covariance / (len(x) - 1))
    components = vectors[:, ::-1]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(components.shape[1])])
    return mean, np.ascontiguousarray(components), np.maximum(values[::-1], 0)

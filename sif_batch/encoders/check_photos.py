"""Photos that the package carries, to compare the vectors of two implementations of one network."""

import numpy as np

from sif_batch.encoders.image_input import ImageReader
from sif_batch.encoders.networks import HERE
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError

MIN_COSINE = 0.9999
PHOTOS = HERE / "photos"


def check_pixels(spec: EncoderSpec) -> np.ndarray:
    """Real photos, carried by the package, as this encoder's input: (n, s, s, 3) uint8."""
    reader = ImageReader(spec.model_copy(update={"views": ()}))
    return np.stack([reader.read_image(photo.read_bytes())[0] for photo in sorted(PHOTOS.glob("*.jpg"))])


def compare(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The least cosine of two networks' vectors, (n, d) each. Raises SifBatchError under MIN_COSINE."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
        raise SifBatchError(f"the network's output, {a.shape}, is not finite or not torch's {b.shape}")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = float(((a * b).sum(1) / np.where(lengths == 0, 1, lengths)).min())
    if cosine < MIN_COSINE:
        raise SifBatchError(
            f"the exported network's vectors are not torch's: least cosine {cosine:.6f}, {MIN_COSINE} is asked",
            remedy="give a network of another family, or an .onnx of your own; nothing was changed",
        )
    return cosine

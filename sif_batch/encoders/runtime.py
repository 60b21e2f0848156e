"""Pixels to vectors, by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from sif_batch.config import SifBatchError
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.images import decode

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
REDUCING_GAP = 3.0


class Encoder:
    """A loaded network. Safe to call from several threads at once; a vector's bits do not depend on its batch."""

    def __init__(self, spec: EncoderSpec, model: Path | str):
        self.spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # threads are the caller's: one image batch each
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own untyped exceptions
            raise SifBatchError(
                f"{model}: the network cannot be loaded ({str(error).splitlines()[0][:200]})",
                remedy="sif-batch verify says whether the file is damaged",
            ) from error

    def read_image(self, data: bytes) -> tuple[np.ndarray, int, int]:
        """An encoded image as network input, (s, s, 3) uint8 RGB, and its width and height. Raises ImageError."""
        decoded = decode(data, at_least=self.spec.resize_to)
        return self.prepare(decoded.pixels), decoded.width, decoded.height

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image scaled and cropped or padded to the network's input, (s, s, 3) uint8."""
        spec, size = self.spec, self.spec.input_size
        side = min(image.size) if spec.fit == "crop" else max(image.size)
        scaled = tuple(max(1, round(s * spec.resize_to / side)) for s in image.size)
        image = image.resize(scaled, RESAMPLE[spec.resample], reducing_gap=REDUCING_GAP)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        if spec.fit == "crop":
            return np.asarray(image.crop((left, top, left + size, top + size)))
        square = Image.new("RGB", (size, size), (spec.pad_value,) * 3)
        square.paste(image, (-left, -top))
        return np.asarray(square)

    def embed(self, batch: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8 to (n, dimension) float32: pooled output, neither normalised nor transformed."""
        (vectors,) = self._session.run(["embedding"], {"image": np.ascontiguousarray(batch)})
        return vectors  # type: ignore[no-any-return]

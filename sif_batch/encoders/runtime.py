"""Pixels to vectors, by ONNX Runtime on the CPU or by torch on a GPU."""

import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from sif_batch.config import SifBatchError
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.images.decode import LARGE_PIXELS, MAX_PIXELS, decode

RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
}
SCALES = (1.0, 2**0.5, 2**-0.5)  # of the view "scales": how far an image is enlarged in the network's square
CPU_BATCH = 4  # larger ones are slower and hold more memory: 128 MB for two threads at 1, 788 MB at 32
GPU_BATCH = 32
SIDE = {"crop": min, "pad": max}  # the side of an image that is scaled to `resize_to`


class Encoder:
    """A loaded network. Safe to call from several threads at once; a vector's bits do not depend on its batch."""

    def __init__(self, spec: EncoderSpec, model: Path | str | None, device: str = "cpu"):
        """model: an ONNX file; None for one that only reads images. device: as of `devices.Lane`."""
        self.spec = spec
        self.batch = CPU_BATCH if device == "cpu" else GPU_BATCH  # images at once that cost least
        self.fingerprint = {"onnxruntime": importlib.metadata.version("onnxruntime")}
        self._network: Callable[[np.ndarray], np.ndarray] | None = None
        if model is not None and device == "cpu":
            session = open_session(model)
            self._network = lambda batch: session.run(["embedding"], {"image": batch})[0]
        elif model is not None:
            torch_runtime = importlib.import_module("sif_batch.encoders.torch_runtime")
            network = torch_runtime.TorchNetwork(spec, str(model), device)
            self._network, self.fingerprint = network, network.fingerprint

    def read_image(self, data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, int, int]:
        """An encoded image as `prepare` gives it, and its width and height. Raises ImageError."""
        at_least = None if self.spec.decoding == "exact" else self.spec.resize_to
        decoded = decode(data, at_least, SIDE[self.spec.fit], max_pixels)
        return self.prepare(decoded.pixels), decoded.width, decoded.height

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as network input, (s, s, 3) uint8; with views, all of them: (v, s, s, 3)."""
        views = self.spec.views
        if not views:
            return self._square(image, 1.0)
        squares = [self._square(image, scale) for scale in (SCALES if "scales" in views else SCALES[:1])]
        if "flip" in views:
            squares += [square[:, ::-1] for square in squares]
        return np.stack(squares)

    def _square(self, image: Image.Image, enlarge: float) -> np.ndarray:
        """(s, s, 3) uint8: cropped from the image's centre, or padded around; what does not fit is cut off."""
        spec, size = self.spec, self.spec.input_size
        scale = enlarge * spec.resize_to / SIDE[spec.fit](image.size)
        if (
            spec.fit == "crop"
            and spec.decoding == "exact"
            and enlarge == 1
            and scale**2 * image.width * image.height <= LARGE_PIXELS
        ):
            return self._stock_square(image)
        if spec.fit == "crop" and enlarge >= 1:
            centre = _centred(image.size, size / scale)
            return np.asarray(image.resize((size, size), RESAMPLE[spec.resample], centre))
        if enlarge == 1:
            box, seen = None, (float(image.width), float(image.height))
        else:
            box = _centred(image.size, size / scale)
            seen = (box[2] - box[0], box[3] - box[1])
        scaled = (_side(seen[0] * scale, size), _side(seen[1] * scale, size))
        pixels = np.asarray(image.resize(scaled, RESAMPLE[spec.resample], box))
        left, top = (size - scaled[0]) // 2, (size - scaled[1]) // 2
        square = np.empty((size, size, 3), np.uint8)
        square.reshape(size, -1)[:] = np.tile(_border_mean(pixels), size)  # row by row: pixel by pixel takes .3 ms
        square[top : top + scaled[1], left : left + scaled[0]] = pixels
        return square

    def _stock_square(self, image: Image.Image) -> np.ndarray:
        """(s, s, 3) uint8, to the pixel what torchvision's Resize and CenterCrop make of a Pillow image."""
        spec, size = self.spec, self.spec.input_size
        short = min(image.size)
        scaled = image.resize([spec.resize_to * side // short for side in image.size], RESAMPLE[spec.resample])
        left, top = (round((side - size) / 2) for side in scaled.size)
        return np.asarray(scaled.crop((left, top, left + size, top + size)))

    def embed(self, batch: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8, or (n, v, s, s, 3) with views, to (n, dimension) float32: pooled output, neither
        normalised nor transformed; the mean over the views."""
        if batch.ndim == 4:
            return self.run(batch)
        views = [self.run(batch[:, view]) for view in range(batch.shape[1])]
        return np.stack(views).mean(axis=0, dtype=np.float64).astype(np.float32)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8 to (n, dimension) float32, by the network as it is."""
        assert self._network is not None  # made to read images only
        most = self.spec.batch or len(batch)
        pieces = [np.ascontiguousarray(batch[start : start + most]) for start in range(0, len(batch), most or 1)]
        vectors = [self._network(piece) for piece in pieces]
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)


def open_session(model: Path | str) -> ort.InferenceSession:
    """The network in a file, with the settings that decide its bits. Raises SifBatchError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # threads are the caller's: one image batch each
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL  # another level, other bits
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own untyped exceptions
        raise SifBatchError(
            f"{model}: the network cannot be loaded ({str(error).splitlines()[0][:200]})",
            remedy="sif-batch verify says whether the file is damaged",
        ) from error


def _side(length: float, most: int) -> int:
    return min(most, max(1, round(length)))


def _centred(size: tuple[int, int], side: float) -> tuple[float, float, float, float]:
    """The square of `side` pixels in the middle of an image of this size."""
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return max(0.0, left), max(0.0, top), min(float(size[0]), left + side), min(float(size[1]), top + side)


def _border_mean(pixels: np.ndarray) -> np.ndarray:
    """The mean colour of an image's outermost pixels: (h, w, 3) uint8 to (3,) uint8."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.rint(border.mean(axis=0)).astype(np.uint8)

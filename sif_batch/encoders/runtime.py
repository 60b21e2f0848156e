"""Pixels to vectors, by ONNX Runtime on the CPU or by torch on a GPU."""

import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from sif_batch.encoders.image_input import ImageReader
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError

CPU_BATCH = 4  # larger ones are slower and hold more memory: 128 MB for two threads at 1, 788 MB at 32
GPU_BATCH = 32


class Encoder(ImageReader):
    """A loaded network. Safe to call from several threads at once; a vector's bits do not depend on its batch."""

    def __init__(self, spec: EncoderSpec, model: Path | str, device: str = "cpu"):
        """model: an ONNX file. device: as of `devices.Lane`."""
        super().__init__(spec)
        self.batch = CPU_BATCH if device == "cpu" else GPU_BATCH  # images at once that cost least
        self.fingerprint = {"onnxruntime": importlib.metadata.version("onnxruntime")}
        self._network: Callable[[np.ndarray], np.ndarray]
        if device == "cpu":
            session = open_session(model)
            self._network = lambda batch: session.run(["embedding"], {"image": batch})[0]
        else:
            torch_runtime = importlib.import_module("sif_batch.encoders.torch_runtime")
            network = torch_runtime.TorchNetwork(spec, str(model), device)
            self._network, self.fingerprint = network, network.fingerprint

    def embed(self, batch: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8, or (n, v, s, s, 3) with views, to (n, dimension) float32: pooled output, neither
        normalised nor transformed; the mean over the views."""
        if batch.ndim == 4:
            return self.run(batch)
        views = [self.run(batch[:, view]) for view in range(batch.shape[1])]
        return np.stack(views).mean(axis=0, dtype=np.float64).astype(np.float32)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8 to (n, dimension) float32, by the network as it is."""
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

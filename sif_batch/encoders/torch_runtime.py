"""The network run by torch, on a GPU: in half precision where that is exact enough. For child processes alone."""

import os
import sys
import threading

import numpy as np
import torch

from sif_batch.encoders.check_photos import MIN_COSINE, check_pixels
from sif_batch.encoders.onnx_to_torch import to_torch
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError

ARITHMETICS = (torch.float16, torch.bfloat16, torch.float32)  # the first that is exact enough


class TorchNetwork:
    """An ONNX network on one device. Safe to call from several threads: each has its own stream."""

    def __init__(self, spec: EncoderSpec, model: str, device: str):
        """device: cuda:0 and so on, or torch-cpu. Raises SifBatchError where torch cannot run it there."""
        self._device = torch.device("cpu" if device == "torch-cpu" else device)
        self._on_gpu = self._device.type == "cuda"
        if self._on_gpu and not torch.cuda.is_available():
            raise SifBatchError(
                f"torch {torch.__version__} cannot use the GPU", remedy="see to the driver, or --device cpu"
            )
        self._network = to_torch(model).to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._most: int | None = None  # images at once, once memory ran out
        self._own = threading.local()
        self._arithmetic = self._choose(check_pixels(spec)[: spec.batch])
        name = torch.cuda.get_device_name(self._device) if self._on_gpu else "cpu"
        arithmetic = str(self._arithmetic).removeprefix("torch.")
        self.fingerprint = {"torch": torch.__version__, "device": name, "arithmetic": arithmetic}

    def _choose(self, pixels: np.ndarray) -> torch.dtype:
        """The first arithmetic whose vectors of real photos are those of float32: (n, s, s, 3) uint8."""
        vectors = {}
        for self._arithmetic in reversed(ARITHMETICS):
            vectors[self._arithmetic] = torch.from_numpy(self(pixels)).double()
        exact = vectors[torch.float32]

        def cosine(dtype: torch.dtype) -> float:
            return float(torch.nn.functional.cosine_similarity(vectors[dtype], exact).min())

        return next((dtype for dtype in ARITHMETICS[:-1] if cosine(dtype) >= MIN_COSINE), torch.float32)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8 to (n, d) float32. Memory that runs out halves the batch, from then on."""
        vectors: list[np.ndarray] = []
        at = 0
        while at < len(batch):
            piece = batch[at : at + (self._most or len(batch))]
            try:
                vectors.append(self._run(piece))
                at += len(piece)
            except torch.OutOfMemoryError as error:
                if len(piece) == 1:
                    raise SifBatchError(
                        f"the memory of {self._device} does not suffice for one image",
                        remedy="end what else uses it, or --device cpu",
                    ) from error
                self._most = len(piece) // 2
                if self._on_gpu:
                    torch.cuda.empty_cache()
            except RuntimeError as error:
                if "CUDA error" not in str(error):
                    raise
                print(error, file=sys.stderr, flush=True)
                os._exit(1)  # after such an error this process cannot use the GPU: a new one goes on
        return np.concatenate(vectors)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(batch)
        if not self._on_gpu:
            return self._vectors(pixels).numpy()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._own.stream):
            return self._vectors(pixels.pin_memory().to(self._device, non_blocking=True)).cpu().numpy()

    def _vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, d) float32; again without half precision where that overflows."""
        half = self._arithmetic != torch.float32
        with torch.inference_mode():
            with torch.autocast(self._device.type, dtype=self._arithmetic, enabled=half):
                vectors: torch.Tensor = self._network(pixels).float()
            return self._network(pixels).float() if half and not torch.isfinite(vectors).all() else vectors

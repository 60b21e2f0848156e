"""Encoders: a network as ONNX with its preprocessing, known by a digest of its specification.

Torch enters in `export`, `features` and `weights`, which only a child process imports, to bring in a new network.
"""

from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import BUILT_IN, EncoderSpec, built_in_spec, install_encoder, read_spec

__all__ = ["BUILT_IN", "Encoder", "EncoderSpec", "built_in_spec", "install_encoder", "read_spec"]

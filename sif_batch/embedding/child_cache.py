"""What a child process keeps loaded from shard to shard: the encoder, what is known by content, what is erased."""

import functools
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sif_batch.embedding.threads import Report
from sif_batch.encoders.installed import read_spec
from sif_batch.encoders.runtime import Encoder
from sif_batch.errors import SifBatchError
from sif_batch.ledger.content_index import Known
from sif_batch.ledger.parts import encode_part
from sif_batch.ledger.tombstones import Erased, read_erased
from sif_batch.machine.arithmetic import computes_int8, embedding_fingerprint, instruction_set
from sif_batch.storage.store import Store


def warm_up(report: Report, root: str, encoder_id: str, device: str) -> None:
    """Load all that the first shard would wait for. Runs in the child, while the caller imports Beam."""
    encoder = load_encoder(root, encoder_id, device)
    size = encoder.spec.input_size
    encoder.run(np.zeros((encoder.batch, size, size, 3), np.uint8))
    encode_part([], [], encoder_id, embedding_fingerprint(encoder.fingerprint))


@functools.lru_cache(maxsize=1)
def open_known(root: str, encoder_id: str, device: str, plan: str) -> Known:
    """What was known when this plan was made."""
    fingerprint = embedding_fingerprint(load_encoder(root, encoder_id, device).fingerprint)
    return Known(Store(root), encoder_id, fingerprint)


@functools.lru_cache(maxsize=1)
def erased_before(root: str, plan: str) -> Erased:
    """What was erased from ROOT when this plan's work began here."""
    return read_erased(Store(root))


@functools.lru_cache(maxsize=1)
def load_encoder(root: str, encoder_id: str, device: str) -> Encoder:
    """ROOT's encoder, ready to run on a device of `devices.Lane`. Raises SifBatchError."""
    Image.init()  # Pillow loads its formats at the first odd file: not in two threads at once
    store = Store(root)
    folder = f"encoders/{encoder_id}"
    with tempfile.TemporaryDirectory() as scratch:
        spec = read_spec(store, folder)
        if spec.precision == "int8" and not computes_int8():
            raise SifBatchError(
                f"{encoder_id} is int8, which this machine's CPU ({instruction_set()}) computes otherwise (no VNNI)",
                remedy="run on machines with VNNI, or choose --precision fp32, which embeds everything again",
            )
        return Encoder(spec, store.fetch(f"{folder}/model.onnx", Path(scratch)), device)

"""Encoders as files: in the package, in ROOT, in a release; each checked against its id and checksum."""

import json

from sif_batch.digests import digest
from sif_batch.encoders.networks import BUILT_IN, nearest
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError
from sif_batch.storage.store import Store


def built_in_spec(name: str) -> EncoderSpec:
    """The specification of an encoder that the package carries. Raises SifBatchError with the nearest names."""
    if name not in BUILT_IN:
        raise SifBatchError(
            f"unknown encoder {name!r}", remedy=f"the nearest that there are: {', '.join(nearest(name))}"
        )
    return EncoderSpec.model_validate_json((BUILT_IN[name] / "encoder.json").read_bytes())


def networks(spec: EncoderSpec) -> tuple[str, ...]:
    """The files of an encoder: with int8 the network in float too, for readers whose CPU cannot compute int8."""
    return ("model.onnx", "fp32.onnx") if spec.precision == "int8" else ("model.onnx",)


def install_encoder(
    store: Store, spec: EncoderSpec, model: bytes | None = None, float_model: bytes | None = None
) -> None:
    """Put the encoder into ROOT, encoders/<id>/: the networks, then encoder.json. model: None takes the package's."""
    folder = f"encoders/{spec.id}"
    if store.exists(f"{folder}/encoder.json"):
        return
    if model is None:
        model = model_bytes(store, spec)
    for name, data in zip(networks(spec), (model, float_model or b""), strict=False):
        store.create(f"{folder}/{name}", data)
        store.create(f"{folder}/{name.replace('.onnx', '.sha256')}", f"{digest(data)}\n".encode())
    store.create(f"{folder}/encoder.json", spec.canonical())


def model_bytes(store: Store, spec: EncoderSpec) -> bytes:
    """The network that ROOT or the package holds."""
    name = f"encoders/{spec.id}/model.onnx"
    return store.read(name) if store.exists(name) else (BUILT_IN[spec.name] / "model.onnx").read_bytes()


def check_encoder(store: Store, encoder_id: str) -> None:
    """Compare ROOT's encoder with its id and checksum. Raises SifBatchError, naming the damaged file."""
    folder = f"encoders/{encoder_id}"
    spec = read_spec(store, folder)
    if spec.id != encoder_id:
        raise _damaged(store, f"{folder}/encoder.json")
    for name in networks(spec):
        noted = f"{folder}/{name.replace('.onnx', '.sha256')}"
        try:
            fine = digest(store.read(f"{folder}/{name}")) == store.read(noted).decode().strip()
        except (FileNotFoundError, UnicodeDecodeError):
            fine = False
        if not fine:
            raise _damaged(store, f"{folder}/{name}")


def _damaged(store: Store, name: str) -> SifBatchError:
    return SifBatchError(
        f"{store.path(name)} is missing or damaged", remedy="copy it from encoder/ of one of the releases there"
    )


def read_spec(store: Store, folder: str) -> EncoderSpec:
    """The specification in `folder`/encoder.json of a ROOT or a release. Raises SifBatchError if it is damaged."""
    name = f"{folder}/encoder.json"
    try:
        return EncoderSpec.model_validate(json.loads(store.read(name)))
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(store, name) from error

"""Which encoder: the one of record, one that ROOT or the package holds already, or a new one brought in."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sif_batch.encoders.installed import built_in_spec, read_spec
from sif_batch.encoders.networks import BUILT_IN, DEFAULT
from sif_batch.encoders.spec import EncoderSpec, in_float
from sif_batch.errors import SifBatchError
from sif_batch.machine.child import Child, ChildDied
from sif_batch.model_export.request import EXACT, FIELD_OF, EncoderRequest, asked_fields, check_request, source_of
from sif_batch.model_export.stated_preprocessing import geometry
from sif_batch.storage.store import Store

EXPORT_STALL_S = 1800
TORCH_REMEDY = "install 'sif-batch[torch]', once: the encoder then stays in ROOT and needs no torch"
EXPORTERS = {  # by source: what makes model.onnx
    "torchvision": "sif_batch.model_export.from_torchvision:export_torchvision",
    "timm": "sif_batch.model_export.from_timm:export_timm",
    "onnx": "sif_batch.model_export.from_onnx:wrap_onnx",
}
STOCK = {DEFAULT: {"fit": "crop", "input_size": 224, "resize_to": 256, "resample": "bicubic"}}  # as trained
OUTSIDE_GRAPH = {"fit", "resize_to", "resample", "decoding", "views"}  # what changes no byte of model.onnx
Say = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """model: the bytes of model.onnx where they are new to ROOT; None where the package or ROOT has them.
    to_int8: it is to be lowered; float_model: of a lowered one, the network it came from; figures: what that cost."""

    spec: EncoderSpec
    model: bytes | None = None
    to_int8: bool = False
    float_model: bytes | None = None
    figures: dict[str, Any] | None = None


def choose_encoder(
    store: Store, recorded_id: str | None, request: EncoderRequest, say: Say = lambda text: None
) -> Chosen:
    """The encoder of record, unless another one is asked for. Writes nothing. Raises SifBatchError."""
    recorded = read_spec(store, f"encoders/{recorded_id}") if recorded_id else None
    if request == EncoderRequest():
        return Chosen(recorded or built_in_spec(DEFAULT))
    stated = request.stated()
    asked = asked_fields(request, stated)
    source = source_of(request.encoder) if request.encoder else (recorded.source if recorded else "built-in")
    check_request(request, source)
    if request.preprocess == EXACT and source == "built-in":
        asked |= STOCK[request.encoder or (recorded.name if recorded else DEFAULT)]
        stated |= {name: asked[field] for name, field in FIELD_OF.items() if field in asked} | {"fit": asked["fit"]}
    held = [recorded] if recorded else []
    held += [built_in_spec(name) for name in (request.encoder or DEFAULT,) if name in BUILT_IN and not recorded_id]
    held += [s for s in held_specs(store) if request.encoder and s != recorded]
    held += [built_in_spec(name) for name in (request.encoder,) if name in BUILT_IN]
    of_record = recorded.precision if recorded and not request.encoder else "fp32"
    asked["precision"] = request.precision or of_record
    for spec in held:
        if agrees(spec, asked):
            return Chosen(spec)
    if asked["precision"] == "int8":
        base = choose_encoder(store, recorded_id, request.model_copy(update={"precision": "fp32"}), say)
        return replace(base, to_int8=True)
    for spec in held:
        if spec.precision == "int8" and agrees(in_float(spec), asked):
            return Chosen(in_float(spec), store.read(f"encoders/{spec.id}/fp32.onnx"))
    held = [spec for spec in held if spec.precision == "fp32"] + [in_float(s) for s in held if s.precision == "int8"]
    for spec in held:
        if agrees(spec, {k: v for k, v in asked.items() if k not in OUTSIDE_GRAPH}):
            return Chosen(*reshape(store, spec, request, stated))
    if source == "built-in":
        raise SifBatchError(
            f"{request.encoder or DEFAULT} is ready-made: only its --fit, resize, filter and --views can be changed",
            remedy="for the rest name a torchvision network, such as --encoder efficientnet_b0",
        )
    if request.encoder is None:
        raise SifBatchError(
            "that changes the network itself, which ROOT holds without its weights",
            remedy="name --encoder, and --weights where it had some, again",
        )
    return bring_in(source, request, stated, say)


def agrees(spec: EncoderSpec, asked: dict[str, Any]) -> bool:
    """Whether an encoder is what was asked for, whatever was left open."""
    have = spec.model_dump() | {"random": spec.weights.startswith("random")}
    return all(have[name] == value for name, value in asked.items())


def held_specs(store: Store) -> list[EncoderSpec]:
    """The encoders that ROOT holds already."""
    names = store.sizes("encoders")
    return [read_spec(store, f"encoders/{n}") for n in names if store.exists(f"encoders/{n}/encoder.json")]


def reshape(
    store: Store, spec: EncoderSpec, request: EncoderRequest, stated: dict[str, Any]
) -> tuple[EncoderSpec, Any]:
    """The same network looking at images in another way, and its bytes."""
    changes = geometry(stated, spec.model_dump())
    if request.views is not None:
        changes["views"] = request.views
    folder = f"encoders/{spec.id}"
    model = store.read(f"{folder}/model.onnx") if store.exists(f"{folder}/encoder.json") else None
    for lowered in held_specs(store) if model is None else ():
        if in_float(lowered) == spec:
            model = store.read(f"encoders/{lowered.id}/fp32.onnx")
    return spec.model_copy(update=changes), model


def bring_in(source: str, request: EncoderRequest, stated: dict[str, Any], say: Say) -> Chosen:
    """A network that neither ROOT nor the package holds, exported by a child process that ends with it."""
    say(f"bringing in {request.encoder}: export to ONNX, once")
    child = Child()
    try:
        with tempfile.TemporaryDirectory(prefix="sif-batch-") as folder:
            spec = child.call(
                "sif_batch.model_export.choose:export",
                lambda report: say(f"{request.encoder}: {report}"),
                EXPORT_STALL_S,
                source=source,
                asked=request.model_dump(),
                stated=stated,
                folder=folder,
            )
            return Chosen(spec, (Path(folder) / "model.onnx").read_bytes())
    except ChildDied as death:
        raise SifBatchError(f"{request.encoder} could not be exported: {death}", remedy="free memory") from death
    finally:
        child.close()


def export(report: Callable[[Any], None], source: str, **arguments: Any) -> EncoderSpec:
    """Runs in the child: the exporter of this source, or what it would need."""
    import importlib

    module, function = EXPORTERS[source].split(":")
    try:
        work = getattr(importlib.import_module(module), function)
    except ImportError as error:
        extra = "timm" if error.name == "timm" else "torch"
        raise SifBatchError(
            f"{arguments['asked']['encoder']} needs {error.name or error}, which is not installed",
            remedy=TORCH_REMEDY.replace("[torch]", f"[{extra}]"),
        ) from error
    spec: EncoderSpec = work(report, folder=arguments["folder"], asked=arguments["asked"], stated=arguments["stated"])
    return spec

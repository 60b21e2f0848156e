"""What `sif-batch encoders` lists: the networks that can be asked for, and what each would need."""

from typing import Any

from sif_batch.encoders.installed import built_in_spec
from sif_batch.encoders.networks import BUILT_IN, TORCHVISION
from sif_batch.machine.child import Child
from sif_batch.storage.store import Store

NEEDS_TORCH = "needs 'sif-batch[torch]'"


def list_encoders(root: str | None = None) -> dict[str, Any]:
    """Rows of name, dimension, input_size, source, licence, available; those that ROOT holds, if one is given, first.

    available: its weights are on this machine. Raises SifBatchError.
    """
    rows = [row_of(built_in_spec(name), "package") for name in BUILT_IN]
    if root is not None:
        from sif_batch.model_export.choose import held_specs
        from sif_batch.storage.root import open_root

        store: Store = open_root(root)[0]
        rows = [row_of(spec, "ROOT") | {"id": spec.id} for spec in held_specs(store)] + rows
    described = describe_torchvision()
    for name, dimension in TORCHVISION.items():
        row = {"name": name, "dimension": dimension, "input_size": None, "source": "torchvision", "licence": None}
        rows.append(row | {"available": False, "where": NEEDS_TORCH} | described.get(name, {}))
    return {"encoders": rows}


def row_of(spec: Any, where: str) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dimension": spec.dimension,
        "input_size": spec.input_size,
        "source": f"{spec.source}: {spec.weights}",
        "licence": spec.licence,
        "available": True,
        "where": where,
    }


def describe_torchvision() -> dict[str, dict[str, Any]]:
    """What torchvision says of its weights, asked in a child process; empty where it is not installed."""
    import importlib.util

    if importlib.util.find_spec("torchvision") is None:
        return {}
    child = Child()
    try:
        return child.call("sif_batch.model_export.torchvision_weights:describe")
    finally:
        child.close()

"""sif-batch: images in, a published similarity index out.

The rooms read as the data flows, and each imports only from those before it: ground, machine, storage, images, sources,
encoders, model_export, ledger, embedding, index, release, query, evaluation, gate, pipelines, jobs, terminal, reports,
nightly, upkeep, asking, page, cli. The ground is the files beside the rooms here; `jobs`, those beside the rooms there.
`pipelines` and `jobs` are links to the folders beside this one, so that no name but `sif_batch` is installed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sif_batch.query import Index

__all__ = ["Index"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Index`, loaded when it is asked for."""
    if name != "Index":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sif_batch.query import Index

    return Index

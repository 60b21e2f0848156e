"""Ask a published index: `Index.open(ROOT or release)`, then `search`."""

from sif_batch.query.hits import Hit
from sif_batch.query.index import Index
from sif_batch.query.segments import OperatingPoint

__all__ = ["Hit", "Index", "OperatingPoint"]

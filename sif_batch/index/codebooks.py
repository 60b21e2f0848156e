"""What faiss trains, and what becomes of codes in it: a row of the table for each family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sif_batch.index.quantizer_spec import HNSW_LINKS, QuantizerSpec
from sif_batch.machine.arithmetic import import_faiss

ITERATIONS = 5  # of k-means; 25 found nothing more
HNSW_EFFORT = 80  # candidates while the graph is built
DECODED_AT_ONCE = 65_536


def _new_pq(faiss: Any, spec: QuantizerSpec) -> Any:
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(spec.reduced), spec.reduced, spec.cells, spec.pieces, spec.bits)
    index.do_polysemous_training = False
    index.by_residual = spec.bits == 8  # of 4 bits the tables would cost more than the codes: new ones for each cell
    index.pq.cp.niter = ITERATIONS
    index.pq.cp.min_points_per_centroid = 1  # choose_spec sees to it, without a warning
    return index


def _new_rabitq(faiss: Any, spec: QuantizerSpec) -> Any:
    return faiss.IndexIVFRaBitQ(faiss.IndexFlatL2(spec.reduced), spec.reduced, spec.cells)


def _new_cells(faiss: Any, spec: QuantizerSpec) -> Any:
    coarse = faiss.IndexFlatL2(spec.reduced)
    if spec.bits == 32:
        return faiss.IndexIVFFlat(coarse, spec.reduced, spec.cells)
    return faiss.IndexIVFScalarQuantizer(coarse, spec.reduced, spec.cells, faiss.ScalarQuantizer.QT_8bit)


def _new_graph(faiss: Any, spec: QuantizerSpec) -> Any:
    index = faiss.IndexHNSWSQ(spec.reduced, faiss.ScalarQuantizer.QT_8bit, HNSW_LINKS)
    index.hnsw.efConstruction = HNSW_EFFORT
    return index


def _add_codes(faiss: Any, index: Any, code: np.ndarray) -> Any:
    index.add_sa_codes(code, np.arange(len(code)))
    return index


def _add_to_graph(faiss: Any, index: Any, code: np.ndarray) -> Any:
    """One thread, one order, so the same graph. Decoded numbers are encoded to the same codes."""
    storage = faiss.downcast_index(index.storage)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for start in range(0, len(code), DECODED_AT_ONCE):
            index.add(storage.sa_decode(code[start : start + DECODED_AT_ONCE]))
    finally:
        faiss.omp_set_num_threads(threads)
    return index


@dataclass(frozen=True)
class Codebook:
    """new: an untrained index; fill: an empty one with codes (n, sa_code_size); packed: the same for fast search.

    On FastScan `add_sa_codes` corrupts memory: the codes go into the plain index first.
    """

    new: Callable[[Any, QuantizerSpec], Any]
    fill: Callable[[Any, Any, np.ndarray], Any] = _add_codes
    packed: Callable[[Any, Any], Any] = lambda faiss, index: index


def _pack_pq(faiss: Any, index: Any) -> Any:
    return faiss.IndexIVFPQFastScan(index) if index.pq.nbits == 4 else index


CODEBOOKS = {
    "ivf-pq": Codebook(_new_pq, packed=_pack_pq),
    "ivf-rabitq": Codebook(_new_rabitq, packed=lambda faiss, index: faiss.IndexIVFRaBitQFastScan(index)),
    "ivf-flat": Codebook(_new_cells),
    "hnsw": Codebook(_new_graph, fill=_add_to_graph),
}


def train_codebook(spec: QuantizerSpec, reduced: np.ndarray) -> bytes:
    """An empty, trained faiss index, serialised. reduced: (n, spec.reduced) float32."""
    faiss = import_faiss()
    index = CODEBOOKS[spec.family].new(faiss, spec)
    if spec.cells:
        index.cp.niter = ITERATIONS
        index.cp.min_points_per_centroid = 1
    index.train(reduced)
    return faiss.serialize_index(index).tobytes()


def encoder_of(index: Any) -> Any:
    """What has sa_encode and sa_code_size: the index itself, or what a graph keeps its vectors in."""
    faiss = import_faiss()
    return faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index


def fill_codebook(family: str, trained: Any, code: np.ndarray) -> Any:
    """A searchable index of these codes, (n, sa_code_size) uint8; ids are their places."""
    faiss = import_faiss()
    book = CODEBOOKS[family]
    index = faiss.clone_index(trained)
    if len(code):
        book.fill(faiss, index, code)
    return book.packed(faiss, index)

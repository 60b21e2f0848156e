"""Training a quantizer on a sample: similarity, PCA, cells and codebooks, and how far its codes reach."""

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.config import IndexSettings
from sif_batch.digests import canonical_json, digest
from sif_batch.index.codebooks import encoder_of, train_codebook
from sif_batch.index.feasibility import Prospect, promise, prospect_of
from sif_batch.index.quantizer import (
    ARRAYS,
    QuantizerRecord,
    Service,
    array_bytes,
    count_cells,
    damaged_quantizer,
    errors,
    imbalance_of,
    read_record,
    transform_of,
)
from sif_batch.index.quantizer_spec import QuantizerSpec, choose_family, choose_spec
from sif_batch.index.similarity import Transform, fit_pca
from sif_batch.index.training_sample import SAMPLED, likeness, read_rows, sample_rows
from sif_batch.machine.arithmetic import import_faiss, in_blocks, quantizing_fingerprint
from sif_batch.storage.store import Store

PIECE_ROWS = 4096
PCA_ROWS = 32_768  # enough for a covariance
PROSPECT_ROWS = 16_384  # enough to see what a shape allows


def train_quantizer(
    store: Store, encoder_id: str, settings: IndexSettings, parts: list[str], live: pa.Table, current: str | None
) -> QuantizerRecord:
    """Train a quantizer for these live rows, or find the one that the same vectors made before."""
    dimension = read_rows(store, encoder_id, parts, live, np.arange(1)).shape[1]
    family = choose_family(settings, len(live), dimension, current)
    spec = choose_spec(settings, family, encoder_id, dimension, len(live))
    training, held_out = sample_rows(live, spec.cells)
    sample = read_rows(store, encoder_id, parts, live, np.concatenate([training, held_out]))
    vectors, queries = np.split(sample, [len(training)])
    keys = live["key"].take(pa.array(held_out)).to_pylist()
    fingerprint = quantizing_fingerprint()
    seen = digest(queries.tobytes() + vectors.tobytes() + canonical_json(keys))
    asked = [settings.recall, settings.k] if settings.max_bytes_per_row else []
    name = f"{family}-{digest(canonical_json([spec.model_dump(mode='json'), seen, fingerprint, asked]), 16)}"
    folder = f"quantizers/{name}"
    if not store.exists(f"{folder}/quantizer.json"):
        files, prospect, explained, service = train(spec, settings, vectors, queries, keys, len(live))
        for file, data in files.items():
            store.create(f"{folder}/{file}", data)
        last = min(len(training), SAMPLED) - 1
        record = QuantizerRecord(
            id=name,
            spec=spec,
            trained_for_rows=len(live),
            training_rows=len(training),
            held_out=len(held_out),
            vectors_sha256=seen,
            explained=round(explained, 6),
            prospect=prospect,
            service=service,
            seen_to=live["hash"][int(training[last])].as_py() if last >= 0 else 0,
            fingerprint=fingerprint,
            files={file: digest(data) for file, data in files.items()},
        )
        store.create(f"{folder}/quantizer.json", record.canonical())
    found = read_record(store, name)
    if (found.id, found.spec) != (name, spec):
        raise damaged_quantizer(store, name, ValueError("quantizer.json is altered"))
    return found


def train(
    spec: QuantizerSpec, settings: IndexSettings, vectors: np.ndarray, queries: np.ndarray, keys: list[str], rows: int
) -> tuple[dict[str, bytes], Prospect, float, Service | None]:
    """The files of a quantizer, what the sample promises of it, the share of variance that its codes see, and how it
    serves what it was not trained on.

    vectors: (n, d) float16 to train on, of `rows` in the collection; queries: (q, d). Raises SifBatchError where the
    recall asked for cannot be had in so few bytes.
    """
    transform, explained = transform_of(spec), 1.0
    if spec.family != "flat" or spec.whitening or spec.row_dimension:
        mean, components, variances = fit_pca(vectors[:PCA_ROWS], spec.metric, spec.power)
        explained = float(variances[: spec.reduced or None].sum() / max(variances.sum(), 1e-30))
        transform = transform_of(spec, mean, components, variances)
    trained = None
    if spec.family != "flat":
        trained = train_codebook(spec, _in_pieces(vectors, lambda x: transform.to_code(transform.apply(x))))
    compared = _in_pieces(vectors[:PROSPECT_ROWS], transform.apply)
    asked = transform.apply(queries)
    radii, prospect = prospect_of(spec, transform, trained, compared, asked, settings.k, rows)
    promise(spec, settings, transform, trained, compared, asked, prospect)
    files = {"queries.parquet": encode_queries(keys, queries, radii)}
    files["seen.npy"] = array_bytes(np.sort(likeness(vectors[:SAMPLED])))
    if transform.mean is not None:
        used = spec.dimension if spec.whitening else max(spec.reduced, spec.row_dimension)
        arrays = (mean, components[:, :used], variances)
        files |= {f"{name}.npy": array_bytes(array) for name, array in zip(ARRAYS, arrays, strict=True)}
    if trained is not None:
        files["trained.faiss"] = trained
    return files, prospect, explained, service_of(spec, transform, trained, compared, asked)


def service_of(
    spec: QuantizerSpec, transform: Transform, trained: bytes | None, compared: np.ndarray, asked: np.ndarray
) -> Service | None:
    """compared, asked: (n, ...) float64, compared vectors of the sample and of the held-out queries."""
    if trained is None or not len(asked):
        return None
    index = import_faiss().deserialize_index(np.frombuffer(trained, np.uint8))

    def codes_of(z: np.ndarray) -> np.ndarray:
        return in_blocks(z, encoder_of(index).sa_encode, np.float32)

    z = transform.to_code(asked)
    found = errors(transform, index, asked, z, codes_of(z)).astype(np.float64)
    return Service(
        queries=len(asked),
        error=round(float(found.mean()), 8),
        deviation=round(float(found.std()), 8),
        imbalance=imbalance_of(count_cells(index, codes_of(transform.to_code(compared)))) if spec.cells else None,
    )


def _in_pieces(vectors: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """work(vectors), some rows at a time: in float64 they would take four times the memory, and more on the way."""
    starts = range(0, max(1, len(vectors)), PIECE_ROWS)
    return np.concatenate([work(vectors[start : start + PIECE_ROWS]) for start in starts])


def encode_queries(keys: list[str], queries: np.ndarray, radii: np.ndarray) -> bytes:
    """queries.parquet. queries: (q, d) float16, radii: (q,) float32."""
    sink = io.BytesIO()
    table = pa.table({"key": pa.array(keys, pa.string()), "embedding": list(queries), "radius": radii})
    schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float16())), ("radius", pa.float32())])
    pq.write_table(table.cast(schema), sink)
    return sink.getvalue()

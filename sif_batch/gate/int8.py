"""int8 through its gate: images to calibrate on, other images to judge by, and the thresholds that it must meet.

`lower` runs in a child process.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.config import Int8Settings, Source
from sif_batch.digests import canonical_json, digest
from sif_batch.encoders.runtime import Encoder
from sif_batch.encoders.spec import EncoderSpec
from sif_batch.errors import SifBatchError
from sif_batch.evaluation.metrics import evaluate_exact
from sif_batch.evaluation.relevance import by_labels
from sif_batch.failures import ImageError
from sif_batch.ledger.plan import Limits
from sif_batch.sources.containers import container_kind
from sif_batch.sources.names import hash_of, key_of, member_key
from sif_batch.sources.reading import read_container, read_file

CALIBRATE, JUDGE, FEWEST = 256, 1000, 64
SAMPLE_BYTES = 256 * 2**20  # of pixels
OF_ONE_CONTAINER = 256
NEIGHBOURS = 10

Sample = list[tuple[str, bytes]]  # key, file


def candidates(entries: pa.Table) -> list[dict[str, Any]]:
    """The listed entries that a sample is taken from: those with the smallest hashes, in that order."""
    keys = [key_of(*pair) for pair in zip(entries["source"].to_pylist(), entries["path"].to_pylist(), strict=True)]
    order = sorted(range(len(keys)), key=lambda place: (hash_of(keys[place]), keys[place]))
    return list(entries.take(pa.array(order[: 2 * (CALIBRATE + JUDGE)], pa.int64())).to_pylist())


def lower(
    report: Callable[[Any], None],
    spec: EncoderSpec,
    model: str,
    out: str,
    entries: Sequence[dict[str, Any]],
    sources: Sequence[Source],
    limits: Limits,
    settings: Int8Settings,
    threads: int,
) -> tuple[EncoderSpec, dict[str, Any]]:
    """Write `out`, the network of `model` in 8 bits; its specification and what was measured. Raises SifBatchError
    where the measure stays below its threshold."""
    try:
        int8 = importlib.import_module("sif_batch.model_export.quantize_int8")
    except ImportError as error:
        raise SifBatchError(
            f"--precision int8 needs {error.name or error}, which is not installed", remedy="install 'sif-batch[batch]'"
        ) from error
    encoder = Encoder(spec.model_copy(update={"views": ()}), model)
    most = min(CALIBRATE + JUDGE, SAMPLE_BYTES // (3 * spec.input_size**2))
    report(f"int8: reading up to {most} images to calibrate and to judge by")
    keys, digests, pixels = _read_sample(encoder, entries, {s.name: s for s in sources}, limits, most, threads)
    if len(keys) < FEWEST:
        raise SifBatchError(
            f"int8 is calibrated and judged on {FEWEST} images at least; {len(keys)} of the source can be used",
            remedy="--precision fp32",
        )
    first = min(CALIBRATE, len(keys) // 4)
    report(f"int8: calibrating on {first} images")
    int8.quantize_network(Path(model), pixels[:first], Path(out))
    calibration = digest(canonical_json({"recipe": int8.RECIPE, "images": digests[:first]}))
    lowered = spec.model_copy(update={"precision": "int8", "calibration": calibration})
    report(f"int8: judging by {len(keys) - first} others")
    exact, ours = (_embed(e, pixels[first:], threads) for e in (encoder, Encoder(encoder.spec, out)))
    figures = judge(exact, ours, keys[first:], settings)
    check(figures, settings)
    return lowered, figures


def judge(exact: np.ndarray, ours: np.ndarray, keys: Sequence[str], settings: Int8Settings) -> dict[str, Any]:
    """What int8 costs. exact, ours: (n, d) float32 vectors of the same images in float and in 8 bits.

    kept: the mean share of an image's ten nearest others that stay so; kept_by_float: the same where the query is
    embedded in float, as by a reader whose CPU lacks the instructions; map, map_int8: with labels, leave-one-out.
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (exact, ours))
    k = min(NEIGHBOURS, len(a) - 1)
    truth = _nearest(a, a, k)
    figures: dict[str, Any] = {
        "judged_by": len(a),
        "cosine": round(float((a * b).sum(axis=1).mean()), 6),
        "kept": _share(truth, _nearest(b, b, k)),
        "kept_by_float": _share(truth, _nearest(a, b, k)),
    }
    if settings.labels == "folder":
        relevance = by_labels(key.rpartition("/")[0].rpartition("/")[2] for key in keys)
        if not len(relevance.queries()) or len(relevance.names) < 2:
            raise SifBatchError(
                f"--labels folder: the {len(keys)} images that judge int8 lie in no folders that tell them apart",
                remedy="leave --labels out",
            )
        figures["map"], figures["map_int8"] = (evaluate_exact(x, relevance)["map"] for x in (exact, ours))
    return figures


def check(figures: dict[str, Any], settings: Int8Settings) -> None:
    """Raise SifBatchError where int8 costs more than the settings allow."""
    if "map" in figures:
        loss = figures["map"] - figures["map_int8"]
        if loss > settings.max_map_loss:
            raise SifBatchError(
                f"int8 refused: mAP falls from {figures['map']:.4f} to {figures['map_int8']:.4f}; "
                f"{settings.max_map_loss} is allowed",
                remedy="--precision fp32, or a larger --max-map-loss if that is good enough",
            )
    elif figures["kept"] < settings.min_kept:
        raise SifBatchError(
            f"int8 refused: it keeps {figures['kept']:.3f} of {NEIGHBOURS} nearest neighbours (of "
            f"{figures['judged_by']} images); {settings.min_kept} is asked",
            remedy="--precision fp32, or a lower --min-kept if that is good enough",
        )


def _nearest(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """(n, k) places of the nearest rows, each query's own place left out."""
    similarities = queries @ rows.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, :k]


def _share(truth: np.ndarray, found: np.ndarray) -> float:
    return round(float((truth[:, :, None] == found[:, None, :]).any(axis=2).mean()), 6)


def _read_sample(
    encoder: Encoder,
    entries: Sequence[dict[str, Any]],
    sources: dict[str, Source],
    limits: Limits,
    most: int,
    threads: int,
) -> tuple[list[str], list[str], np.ndarray]:
    """Keys, sha256 and pixels (n, s, s, 3) of up to `most` images; those that fail are passed over."""
    keys: list[str] = []
    digests: list[str] = []
    pixels: list[np.ndarray] = []

    def prepare(item: tuple[str, bytes]) -> np.ndarray | None:
        try:
            return encoder.read_image(item[1], limits.max_pixels)[0]
        except ImageError:
            return None

    with ThreadPoolExecutor(threads) as pool:
        for batch in _in_batches(_files(entries, sources, limits), 8 * threads):
            for (key, data), square in zip(batch, pool.map(prepare, batch), strict=True):
                if square is not None and len(keys) < most:
                    keys.append(key)
                    digests.append(hashlib.sha256(data).hexdigest())
                    pixels.append(square)
            if len(keys) == most:
                break
    return keys, digests, np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)


def _files(
    entries: Sequence[dict[str, Any]], sources: dict[str, Source], limits: Limits
) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        source, path, version = sources[entry["source"]], entry["path"], entry["version"]
        try:
            if container_kind(path) is None:
                yield key_of(source.name, path), read_file(source, path, entry["size"], version, limits.max_bytes)
                continue
            left = OF_ONE_CONTAINER
            for piece in read_container(source, path, version, 0, limits.max_bytes):
                for member in piece.members[:left]:
                    left -= 1
                    if isinstance(member.data, bytes):
                        yield member_key(source.name, path, member.name), member.data
                if left <= 0:
                    break
        except ImageError:
            continue


def _in_batches(items: Iterator[tuple[str, bytes]], size: int) -> Iterator[Sample]:
    batch: Sample = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _embed(encoder: Encoder, pixels: np.ndarray, threads: int) -> np.ndarray:
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(encoder.run, np.split(pixels, range(4, len(pixels), 4)))))

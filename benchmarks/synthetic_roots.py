"""ROOTs of made-up embeddings and codes, for the benchmark of indexes: no image is decoded, no network runs."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from sif_batch.config import IndexSettings, RootRecord, Source
from sif_batch.digests import digest
from sif_batch.encoders.installed import built_in_spec, install_encoder
from sif_batch.index.codes import codes_path
from sif_batch.index.quantize_part import encode_table
from sif_batch.index.quantizer import Quantizer, QuantizerRecord, load_quantizer
from sif_batch.index.quantizer_spec import QuantizerSpec, choose_spec
from sif_batch.index.train_quantizer import train
from sif_batch.index.training_sample import HELD_OUT, TRAINING_ROWS_PER_CELL
from sif_batch.ledger.parts import encode_part, part_path
from sif_batch.machine.arithmetic import quantizing_fingerprint
from sif_batch.sources.listing import LISTING_SCHEMA, Listing
from sif_batch.sources.names import hash_of, key_of
from sif_batch.storage.store import Store

SOURCE = Source(name="made", url="/made")
CENTRES = 1000

Vectors = Callable[[int], np.ndarray]  # of a part's number: (n, d) float16


def clustered(seed: int, count: int, dimension: int) -> np.ndarray:
    """(count, dimension) float16: noise around one of 1,000 centres, of falling variance."""
    scale = (1 + np.arange(dimension)) ** -0.5
    centres = np.random.default_rng(0).normal(size=(CENTRES, dimension)) * scale
    random = np.random.default_rng(seed + 1)
    noise = random.standard_normal((count, dimension), np.float32) * scale.astype(np.float32)
    return (centres[random.integers(CENTRES, size=count)] + 0.7 * noise).astype(np.float16)


def make_root(folder: Path, inventory: str | None = None) -> tuple[Store, str]:
    """A ROOT of the package's encoder, without parts. Returns the encoder's id too. inventory: names its images."""
    store, encoder = Store(str(folder)), built_in_spec("efficientnet_lite0")
    install_encoder(store, encoder)
    source = SOURCE.model_copy(update={"inventory": inventory})
    store.create("root.json", RootRecord(sources=(source,), encoder=encoder.id, index=IndexSettings()).canonical())
    return store, encoder.id


def part_paths(number: int, rows: int) -> list[str]:
    return [f"{number:05d}/{row:05d}.jpg" for row in range(rows)]


def write_part(store: Store, encoder: str, number: int, vectors: np.ndarray, version: str = "1") -> None:
    """The part of the images NNNNN/00000.jpg, ... with these vectors, (n, d) float16."""
    rows, spans = [], []
    for path, vector in zip(part_paths(number, len(vectors)), vectors, strict=True):
        key = key_of(SOURCE.name, path)
        span = {"source": SOURCE.name, "path": path, "version": version}
        rows.append(
            span
            | {"key": key, "member": None, "attempt": 1, "hash": hash_of(key), "width": 224, "height": 224}
            | {"sha256": bytes.fromhex(digest(f"{path}{version}".encode())), "fields": None, "embedding": vector}
            | {"error_kind": None, "error": None}
        )
        spans.append(span | {"first": 0, "last": 0, "end": True, "attempt": 1})
    name = digest(f"{number} {version}".encode(), 32)
    store.create(part_path(encoder, name), encode_part(rows, spans, encoder, {"made": "up"}))


def write_listing(store: Store, sizes: list[int], changed: dict[int, str]) -> None:
    """A listing of all parts' images; changed: the version of parts that have another."""
    paths = [path for number, rows in enumerate(sizes) for path in part_paths(number, rows)]
    versions = [changed.get(number, "1") for number, rows in enumerate(sizes) for _ in range(rows)]
    n = len(paths)
    columns = [pa.repeat(SOURCE.name, n), paths, np.ones(n, np.int64), pa.array(versions)]
    Listing(pa.table(columns, schema=LISTING_SCHEMA)).save(store)


def in_processes(task: str, jobs: int, *arguments: object, processes: int = 2) -> None:
    """Run `benchmarks.synthetic_roots` TASK on the numbers below `jobs`, spread over processes."""
    running = []
    for first in range(processes):
        command = [
            sys.executable,
            "-m",
            "benchmarks.synthetic_roots",
            task,
            f"{first}:{jobs}:{processes}",
            *map(str, arguments),
        ]
        running.append(subprocess.Popen(command))
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"{task} failed")


def make_quantizer(store: Store, encoder: str, dimension: int, rows: int, keep_rows: bool) -> QuantizerRecord:
    """An ivf-pq for so many rows of `clustered` vectors."""
    settings = IndexSettings(family="ivf-pq", recall=0.95 if keep_rows else 0.3)
    spec = choose_spec(settings, "ivf-pq", encoder, dimension, rows)
    if not keep_rows:
        spec = QuantizerSpec.model_validate(spec.model_dump() | {"rows": "none"})
    vectors = clustered(10**6, TRAINING_ROWS_PER_CELL * spec.cells, dimension)
    queries = clustered(2 * 10**6, HELD_OUT, dimension)
    keys = [f"held out {i}" for i in range(HELD_OUT)]
    files, prospect, explained, service = train(spec, settings, vectors, queries, keys, rows)
    name = f"ivf-pq-{'rows' if keep_rows else 'codes'}"
    for file, data in files.items():
        store.create(f"quantizers/{name}/{file}", data)
    record = QuantizerRecord(
        id=name,
        spec=spec,
        trained_for_rows=rows,
        training_rows=len(vectors),
        held_out=HELD_OUT,
        vectors_sha256="",
        explained=explained,
        prospect=prospect,
        service=service,
        seen_to=0,
        fingerprint=quantizing_fingerprint(),
        files={file: digest(data) for file, data in files.items()},
    )
    store.create(f"quantizers/{name}/quantizer.json", record.canonical())
    return record


def spread(rows: int, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """part, row and hash, (rows,) each, of rows in order of hash that lie at random in parts."""
    random = np.random.default_rng(0)
    hashes = np.sort(random.integers(0, 2**64 - 1, rows, np.uint64, endpoint=True))
    part = random.integers(parts, size=rows, dtype=np.int32)
    order = np.argsort(part.astype(np.uint16), kind="stable")
    sizes = np.bincount(part, minlength=parts)
    row = np.empty(rows, np.uint16)
    row[order] = np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return part, row, hashes


@functools.lru_cache(maxsize=1)
def _cached_quantizer(root: str, name: str) -> Quantizer:
    return load_quantizer(Store(root), name)


def write_codes(store: Store, quantizer_id: str, number: int, size: int) -> None:
    """The codes of a part, made up: random cells, codes and kept rows, which no held-out query is near to."""
    quantizer, random = _cached_quantizer(store.url, quantizer_id), np.random.default_rng(number)
    spec = quantizer.spec
    code = random.integers(256, size=(size, quantizer.code_width), dtype=np.uint8)
    cell_bytes = quantizer.code_width - spec.code_bytes
    cells = random.integers(spec.cells, size=size, dtype=np.uint32)
    code[:, :cell_bytes] = cells[:, None].view(np.uint8).reshape(size, 4)[:, :cell_bytes]
    kept = np.empty((size, 0), np.int8)
    if spec.rows != "none":
        numbers = random.integers(-127, 128, size=(size, spec.dimension), dtype=np.int8)
        kept = np.hstack([numbers, np.full((size, 1), 0.001, np.float32).view(np.int8)])
    nothing = pa.array(np.zeros(size + 1, np.int32))
    near = (
        pa.ListArray.from_arrays(nothing, pa.array([], pa.uint16())),
        pa.ListArray.from_arrays(nothing, pa.array([], pa.float32())),
    )
    likeness = random.integers(2**63, size=size, dtype=np.uint64)
    looks = np.ones(size, np.float32), likeness, np.zeros(size, np.float32)
    data = encode_table(np.arange(size, dtype=np.uint16), code, kept, *looks, near, "")
    store.create(codes_path(quantizer_id, f"{number:05d}"), data)


def main() -> None:
    task, numbers, root, *rest = sys.argv[1:]
    store = Store(root)
    first, jobs, step = map(int, numbers.split(":"))
    for number in range(first, jobs, step):
        if task == "parts":
            encoder, dimension, vectors = rest[0], int(rest[1]), rest[2]
            if vectors.isdecimal():
                x = clustered(number, int(vectors), dimension)
            else:  # a file of all parts' vectors, so many a part
                size = int(rest[3])
                x = np.load(vectors, mmap_mode="r")[number * size : (number + 1) * size].astype(np.float16)
            write_part(store, encoder, number, x)
        else:
            sizes = json.loads(Path(rest[1]).read_text())
            write_codes(store, rest[0], number, sizes[number])


if __name__ == "__main__":
    main()

"""Forecast: what a run will take, from what there is to do, a timed sample and past runs. Nothing is read here."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from sif_batch.index.quantizer_spec import QuantizerSpec

MB = 2**20
# What runs took here beside what a sample or past runs tell (benchmarks/RESULTS.md). Seconds:
START_S = 1.3  # importing, opening ROOT, writing down what came of it
BEAM_S = 1.5  # importing and starting Beam, while the network is loaded
IMAGE_S = 0.02  # where nothing was timed
TRAIN_S, TRAIN_NUMBER_S = 0.2, 250e-9  # the latter for each number of the training vectors
QUANTIZE_S, QUANTIZE_NUMBER_S = 0.5, 160e-9  # the latter of one process
MEASURE_S, QUERY_S, QUERIES = 0.3, 0.0065, 500  # the gate, for each held-out query
ASSEMBLE_BYTE_S = 14e-9  # of code and kept row
REPORT_S, REPORT_ROW_S, REPORT_ROWS = 1.3, 0.006, 500
# Bytes of memory:
MAIN_BYTES, ROW_BYTES = 330 * MB, 2000  # the latter for each image: its entry, its catalog rows, what is made of them
TRAINED_NUMBER_BYTES = 10
WORKER_BYTES, NETWORK_TIMES, THREAD_BYTES, QUANTIZING_BYTES = 150 * MB, 3, 45 * MB, 75 * MB
SHARD_NUMBER_BYTES = 120  # of each number of a shard's vectors, as they are written and quantized
# Bytes of disk for each image:
PART_BYTES = 330  # beside its vector, of two bytes a number
CODES_BYTES = 60  # beside code and kept row
IMAGE_BYTES = 240  # in a release, beside them: key, uri, sha256 and the like


@dataclass(frozen=True)
class Sample:
    """What some images took. seconds: of the work alone, in one worker process; worker_bytes: its peak; part_bytes: of
    their rows; start_s: until the process could begin."""

    images: int
    failed: int
    threads: int
    seconds: float
    start_s: float
    worker_bytes: int
    part_bytes: int

    def describe(self) -> dict[str, Any]:
        rate = round(self.images / self.seconds, 1) if self.images and self.seconds else None
        return dataclasses.asdict(self) | {"images_per_s": rate}


@dataclass(frozen=True)
class Task:
    """What there is to do. images: to be embedded, `shard` of them at a time; rows: of the release; quantized: rows
    that get codes; trained: rows of the training sample, 0: none is; installed: ROOT holds the encoder; lanes: threads
    of each worker process; quantizers: processes that quantize.
    """

    images: int
    shard: int
    rows: int
    quantized: int
    trained: int
    spec: QuantizerSpec
    encoder_bytes: int
    installed: bool
    lanes: list[int]
    quantizers: int
    report: bool


@dataclass(frozen=True)
class Past:
    """What runs of this ROOT took: seconds for each image, and for each row of a release of `rows`; peak bytes."""

    image_s: float | None = None
    row_s: float | None = None
    rows: int = 0
    main_bytes: int | None = None
    worker_bytes: int | None = None


def past_of(runs: list[dict[str, Any]], encoder: str, threads: int) -> Past:
    """The figures of the newest runs that have them, with this encoder and as many threads.

    runs: documents of run.json, newest first.
    """
    found: dict[str, Any] = {}
    for run in runs:
        result = run["result"]
        embedding, memory = result.get("embedding"), result.get("memory")
        steps, rows = result.get("index", {}).get("seconds", {}), result.get("in_index")
        if (
            embedding
            and embedding["images_per_s"]
            and (embedding["threads"], result.get("encoder")) == (threads, encoder)
        ):
            found.setdefault("image_s", 1 / embedding["images_per_s"])
            if memory and memory["workers"]:
                found.setdefault("worker_bytes", memory["workers"][0])
        if rows and "assemble" in steps and "rows" not in found:
            found["row_s"] = sum(steps.get(name, 0.0) for name in ("assemble", "measure", "seal")) / rows
            found |= {"rows": rows} | ({"main_bytes": memory["main"]} if memory else {})
    return Past(**found)


def foresee(task: Task, sample: Sample | None, past: Past, listed_s: float) -> dict[str, Any]:
    """Seconds by stage, bytes of disk by folder, and of memory at its peak: of this process and of its workers."""
    return {
        "seconds": seconds(task, sample, past, listed_s),
        "disk": disk(task, sample),
        "memory": memory(task, past, sample),
    }


def seconds(task: Task, sample: Sample | None, past: Past, listed_s: float) -> dict[str, float]:
    """By stage, and `total`."""
    found = {"start": START_S, "list": listed_s, "embed": 0.0, "index": 0.0, "report": 0.0}
    if task.images:
        image_s = past.image_s or IMAGE_S
        if sample is not None and sample.images:
            image_s = sample.seconds / sample.images * sample.threads / sum(task.lanes)
        found["embed"] = BEAM_S + task.images * image_s
    if task.quantized:
        numbers, width = task.spec.dimension, task.spec.bytes_per_row
        train = TRAIN_S + task.trained * numbers * TRAIN_NUMBER_S if task.trained else 0.0
        quantize = QUANTIZE_S + task.quantized * numbers * QUANTIZE_NUMBER_S / max(1, task.quantizers)
        asked = min(QUERIES, task.rows / 16)
        made = MEASURE_S + asked * QUERY_S + task.rows * width * ASSEMBLE_BYTE_S
        if past.row_s is not None and past.rows / 2 <= task.rows <= 2 * past.rows:
            made = past.row_s * task.rows
        found["index"] = train + quantize + made
        found["report"] = REPORT_S + min(task.rows, REPORT_ROWS) * REPORT_ROW_S if task.report else 0.0
    return {name: round(value, 2) for name, value in found.items()} | {"total": round(sum(found.values()), 2)}


def disk(task: Task, sample: Sample | None) -> dict[str, int]:
    """Bytes that the run adds to ROOT, by folder, and `total`."""
    part = PART_BYTES + 2 * task.spec.dimension
    if sample is not None and sample.images:
        part = round(sample.part_bytes / sample.images)
    width = task.spec.bytes_per_row
    release = task.rows * (width + IMAGE_BYTES + 8 * bool(task.spec.cells)) + task.encoder_bytes
    found = {
        "parts": task.images * part,
        "codes": task.quantized * (width + CODES_BYTES),
        "release": release if task.quantized else 0,
        "encoder": 0 if task.installed else task.encoder_bytes,
    }
    return found | {"total": sum(found.values())}


def memory(task: Task, past: Past, sample: Sample | None) -> dict[str, int]:
    """Bytes at the peak of each process: `main` and all `workers` together, and their sum `total`."""
    main = MAIN_BYTES + task.rows * ROW_BYTES
    if past.main_bytes is not None:
        main = past.main_bytes + max(0, task.rows - past.rows) * ROW_BYTES
    main = max(main, MAIN_BYTES + task.trained * task.spec.dimension * TRAINED_NUMBER_BYTES)
    each = [lane_bytes(task, threads) for threads in task.lanes]
    if sample is not None and sample.worker_bytes:
        grown = sample.worker_bytes + QUANTIZING_BYTES + shard_bytes(task)
        each = [grown + (threads - sample.threads) * THREAD_BYTES for threads in task.lanes]
    elif past.worker_bytes is not None:
        each = [past.worker_bytes] * len(task.lanes)
    each += [worker_bytes(0, 1) + shard_bytes(task) // 2] * (task.quantizers - len(task.lanes))
    return {"main": main, "workers": sum(each), "total": main + sum(each)}


def shard_bytes(task: Task) -> int:
    """What a shard's vectors take in a worker, written and quantized."""
    return min(task.shard, max(1, task.quantized)) * task.spec.dimension * SHARD_NUMBER_BYTES


def lane_bytes(task: Task, threads: int) -> int:
    """What a worker process of so many threads takes, by the size of its network."""
    return worker_bytes(task.encoder_bytes, threads) + shard_bytes(task)


def worker_bytes(encoder_bytes: int, threads: int) -> int:
    """The same without a shard's vectors; encoder_bytes: 0: of a process that quantizes."""
    embedding = NETWORK_TIMES * encoder_bytes + QUANTIZING_BYTES if encoder_bytes else 0
    return WORKER_BYTES + embedding + threads * THREAD_BYTES


def lanes_within(room: int, task: Task, lanes: list[int]) -> list[int]:
    """The threads of each worker process, as many as there is room for; none: not even for one of one thread."""
    fitting = list(lanes)
    while fitting and sum(lane_bytes(task, threads) for threads in fitting) > room:
        if len(fitting) > 1:
            fitting.pop()
        elif fitting[0] > 1:
            fitting[0] -= 1
        else:
            return []
    return fitting

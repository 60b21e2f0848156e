"""photos, families: quality and size of each kind of index on real vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import synthetic_roots
from benchmarks.index.processes import sif_batch

FAMILIES: dict[str, list[str]] = {
    "flat": [],
    "ivf-flat": [],
    "ivf-pq": [],
    "ivf-pq, 8 bits": ["--bits", "8"],
    "ivf-rabitq": [],
    "hnsw": [],
}
CROPS, SMALLEST = 100, 0.3  # of each photo, and the side of a crop at least


def photos_case(scratch: Path, photos: Path) -> dict[str, Any]:
    sif_batch("run", photos, scratch / "root", "--family", "ivf-pq")
    report = sif_batch("evaluate", scratch / "root", "--labels", "folder")
    return {"map": report["map"], "map_exact": report["exact"]["map"], "queries": report["n_queries"]}


def families_case(scratch: Path, photos: Path, at_most: int) -> dict[str, Any]:
    """The families beside each other on the vectors of crops, at --recall .97."""
    count = make_crops(scratch, photos, at_most)
    store, encoder = synthetic_roots.make_root(scratch / "root")
    size = 1000
    parts = -(-count // size)
    synthetic_roots.in_processes("parts", parts, store.url, encoder, 1280, scratch / "vectors.npy", size)
    synthetic_roots.write_listing(store, [min(size, count - size * i) for i in range(parts)], {})
    report: dict[str, Any] = {"rows": count, "families": {}}
    for name, options in FAMILIES.items():
        found = sif_batch("index", store.url, "--family", name.split(",")[0], "--recall", "0.97", "--no-gate", *options)
        manifest = json.loads(Path(store.path(f"releases/{found['release']}/release.json")).read_bytes())
        report["families"][name] = {
            "build_s": found["seconds"]["index"],
            "recall_at_10": found["gate"]["recall_at_10"],
            "interval": found["gate"]["recall"]["interval"]["at_10"],
            "codes_scanned": manifest["codes_scanned"],
            "query_ms": found["index"]["query_ms"],
            "bytes_per_row": sum(f["size"] for n, f in manifest["files"].items() if n.startswith("segments/")) / count,
        }
        if options:  # a ROOT records them
            record = json.loads(store.read("root.json"))
            store.replace("root.json", json.dumps(record | {"index": {}}).encode())
    return report


def make_crops(scratch: Path, photos: Path, at_most: int) -> int:
    """vectors.npy: the default encoder's vectors of random crops, mirrored by half."""
    from PIL import Image

    from sif_batch.encoders.installed import built_in_spec
    from sif_batch.encoders.networks import BUILT_IN
    from sif_batch.encoders.runtime import Encoder

    encoder = Encoder(built_in_spec("efficientnet_lite0"), BUILT_IN["efficientnet_lite0"] / "model.onnx")
    random = np.random.default_rng(0)
    files = sorted(file for file in photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    each = min(CROPS, max(1, at_most // max(1, len(files))))
    found = []
    for file in files[: max(1, at_most // each)]:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        crops = []
        for _ in range(each):
            side = random.uniform(SMALLEST, 1, 2) * image.size
            left, top = random.uniform(0, 1, 2) * (image.size - side)
            crop = image.crop((int(left), int(top), int(left + side[0]) + 1, int(top + side[1]) + 1))
            crops.append(
                encoder.prepare(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop)
            )
        found.append(encoder.embed(np.stack(crops)))
    vectors = np.concatenate(found)
    np.save(scratch / "vectors.npy", vectors[random.permutation(len(vectors))].astype(np.float16))
    return len(vectors)

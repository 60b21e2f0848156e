"""What the peers of `benchmarks.quality` share: the images of a folder of folders, and what they hand over.

Run in the peers' own environment, as scripts: IMAGES OUT.npy.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def arguments():
    """The folder, its images in order of their paths, and the file to write."""
    folder, out = map(Path, sys.argv[1:])
    return folder, sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES), out


def hand_over(folder, paths, vectors, out, seconds, bytes_per_image, query_ms):
    """vectors: (n, d) that exact cosine search compares."""
    np.save(out, np.asarray(vectors, np.float32))
    names = [p.relative_to(folder).as_posix() for p in paths]
    report = {"paths": names, "seconds": seconds, "bytes_per_image": bytes_per_image, "query_ms": query_ms}
    print(json.dumps(report))


def median_ms(ask, queries):
    """Milliseconds of one query after the other."""
    ask(queries[0])
    spent = []
    for query in queries[:64]:
        started = time.perf_counter()
        ask(query)
        spent.append(1000 * (time.perf_counter() - started))
    return float(np.median(spent))

"""autofaiss 2.18 in its own environment: EMBEDDINGS (a folder of .npy) QUERIES.npy LIMIT (such as 278MB) CORES OUT.

Prints one JSON object: seconds of building, wall and of all threads, bytes of the index, and milliseconds a query alone
on one thread; the ten found rows of each query go to OUT.
"""

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np
from autofaiss import build_index


def main():
    embeddings, queries, limit, cores, out = sys.argv[1:]
    path = Path(out).with_suffix(".index")
    started = time.time()
    index, _ = build_index(
        embeddings=embeddings,
        index_path=str(path),
        index_infos_path=str(path.with_suffix(".json")),
        max_index_memory_usage=limit,
        current_memory_available="8GB",
        metric_type="ip",
        nb_cores=int(cores),
        verbose=40,
    )
    build_s, cpu_s = time.time() - started, time.process_time()
    infos = json.loads(path.with_suffix(".json").read_text())
    faiss.omp_set_num_threads(1)
    found, elapsed = [], []
    for query in np.load(queries):
        asked = time.perf_counter()
        found.append(index.search(query[None], 10)[1][0])
        elapsed.append(time.perf_counter() - asked)
    np.save(out, np.stack(found))
    result = {
        "build_s": build_s,
        "cpu_s": cpu_s,
        "query_ms": 1000 * float(np.median(elapsed)),
        "bytes": path.stat().st_size,
    }
    print(json.dumps(result | {"key": infos.get("index_key"), "param": infos.get("index_param")}))


main()

"""The index stage: beside autofaiss, at tens of millions of rows, after a night's change, and on photos.

    python -m benchmarks.index [--rows 500000] [--cases peer millions hundred night photos families] [--json]

peer: faiss's SyntheticDataset of 512 dimensions, built by `sif-batch index` and by autofaiss 2.18 at the same size
limit, in an environment of its own (build/peers), which is made at the first run; one query at a time, one thread.
millions: 10M rows of 128 dimensions, assembled and opened. hundred: 100M made-up codes, in segments.
night: 1M rows of 256 dimensions in 1,000 parts, of which one changes. photos: mAP of an ivf-pq beside exact search.
families: each kind of index on the vectors of random crops of the photos. Up to 15 GB of disk, below --scratch.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.index.assembly import assemble, assemble_case, open_release
from benchmarks.index.goals import show
from benchmarks.index.night import night
from benchmarks.index.peer import ask, peer
from benchmarks.index.photos import families_case, photos_case
from benchmarks.index.processes import REPOSITORY

CASES = ("peer", "millions", "hundred", "night", "photos", "families")
PROMISED = ("build_s", "build_ratio", "recall_at_10", "query_ms")  # keys that stay at the report's top
TASKS: dict[str, Callable[..., dict[str, Any]]] = {"ask": ask, "assemble": assemble, "open": open_release}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    share = min(1.0, given.rows / 500_000)  # --rows makes every case as small
    cases = {
        "peer": lambda folder: peer(folder, given.rows, not given.no_peer),
        "millions": lambda folder: assemble_case(folder, int(10_000_000 * share), 1000, ("rows", "codes")),
        "hundred": lambda folder: assemble_case(folder, int(100_000_000 * share), 2000, ("codes",)),
        "night": lambda folder: night(folder, max(10, int(1000 * share))),
        "photos": lambda folder: photos_case(folder, given.photos),
        "families": lambda folder: families_case(folder, given.photos, max(1000, int(20_000 * share))),
    }
    report: dict[str, Any] = {"cores": os.cpu_count()}
    for name in given.cases:
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="sif-batch-", dir=given.scratch) as folder:
            found = cases[name](Path(folder))
        report[name] = found
        if name == "peer":
            report |= {key: found[key] for key in PROMISED if key in found}
    return report


def main() -> None:
    if sys.argv[1:2] == ["--task"]:
        print(json.dumps(TASKS[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000, help="of the peer case; fewer make every case as small")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--no-peer", action="store_true", help="leave autofaiss out")
    parser.add_argument("--photos", type=Path, default=REPOSITORY / "examples" / "photos", help="a folder per label")
    parser.add_argument("--scratch", type=Path, help="where the data is made; default: the system's folder")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report = measure(given)
    print(json.dumps(report)) if given.json else show(report)


if __name__ == "__main__":
    main()

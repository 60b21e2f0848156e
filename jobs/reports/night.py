"""runs/<id>/report.html: one self-contained page that tells a night to someone who was not there. Needs the extra
`report`."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.errors import SifBatchError
from sif_batch.failures import PERMANENT, TRANSIENT
from sif_batch.jobs.reports import plots
from sif_batch.jobs.reports.compare import compare_neighbours, is_there, keeps_rows, open_release, strips
from sif_batch.jobs.reports.html import check_extra, missing_extra, picture_of, render
from sif_batch.jobs.reports.map_page import map_files, page_values
from sif_batch.jobs.reports.map_places import Map, make_map
from sif_batch.jobs.result_files import write_file
from sif_batch.jobs.run_record import read_runs
from sif_batch.jobs.wording import describe_drift
from sif_batch.ledger.live import failed_rows
from sif_batch.query.index import Index
from sif_batch.release.manifest import read_manifest
from sif_batch.storage.root import open_root
from sif_batch.storage.store import Store

MAPPED = 500  # images of the map
QUERIES, ACROSS = 8, 8  # of the contact sheet
PAIRED, PAIRS, ALIKE = 500, 8, 0.97  # images looked at for near twins, pairs shown, their least similarity
EXAMPLES = 3  # of each kind of failure
COMPARED = 64  # images whose neighbours are compared with the last release's
MOST_BYTES = 5_000_000
STAGES = {"list": "listing", "embed": "embedding", "index": "indexing", "report": "report"}

Say = Callable[[str], None]


def report_run(root: str, run: str | None, out: str | None, say: Say) -> str:
    """Write the report of a run, by default the newest. Returns where it is. Raises SifBatchError."""
    check_extra()
    store = Store(root)
    document = find_run(store, run)
    return write_report(store, document, say, out)


def find_run(store: Store, run: str | None) -> dict[str, Any]:
    """The document of the run whose id begins so; None: of the newest. Raises SifBatchError."""
    found = [document for document in read_runs(store) if run is None or document["id"].startswith(run)]
    if not found:
        what = f"no run {run!r}" if run else "no run yet"
        raise SifBatchError(f"{store.url}: {what}", remedy=f"their names are the folders in {store.path('runs')}")
    if run is not None and len(found) > 1:
        raise SifBatchError(f"{run!r} begins {len(found)} runs: {found[0]['id']}, {found[1]['id']}", remedy="say more")
    return found[0]


def try_report(store: Store, run: str, say: Say) -> None:
    """The report at a run's end: where it cannot be made, one line says why, and nothing else fails."""
    if missing := missing_extra():
        say(f"no report: {missing}; install 'sif-batch[report]'")
        return
    try:
        say(f"report    {write_report(store, find_run(store, run), lambda text: None)}")
    except Exception as error:  # whatever it is, the release stands
        say(f"no report: {type(error).__name__}: {error}")


def write_report(store: Store, document: dict[str, Any], say: Say, out: str | None = None) -> str:
    """report.html of a run, and of one with a release of its own the map beside it."""
    page, beside = make_report(store, document, say)
    folder = f"runs/{document['id']}"
    for name, data in beside.items():
        store.replace(f"{folder}/{name}", data)
    if out:
        write_file(out, page)
        return out
    store.replace(f"{folder}/report.html", page)
    return store.path(f"{folder}/report.html")


def make_report(store: Store, document: dict[str, Any], say: Say) -> tuple[bytes, dict[str, bytes]]:
    """The page, and the files of the map by name."""
    result = document["result"]
    release = result.get("release")
    index = open_release(store, release) if release and is_there(store, release) else None
    values: dict[str, Any] = {
        "run": document,
        "result": result,
        "root": store.url,
        "when": readable(document["started"]),
        "took": sum((result.get("seconds") or {}).values()),
        "ledger": ledger(result),
        "failures": failed_kinds(store, result),
        "plots": {"recall": None, "stages": stage_plot(result), "threads": thread_plot(result)},
        "manifest": index.manifest if index else None,
        "quantizer": quantizer_drift(store, document, index.manifest) if index else [],
        "queries": [],
        "pairs": [],
        "twins": None,
        "drift": None,
        "strips": [],
        "sizes": [],
        "map": None,
        "earlier": None,
    }
    files: dict[str, bytes] = {}
    if index is not None:
        values |= {"sizes": sizes(store, index)}
        values["plots"]["recall"] = recall_plot(index.manifest, result)
        if result["outcome"] == "unchanged":
            values["earlier"] = pictured_run(store, document["id"], release)
        if values["earlier"] is None and keeps_rows(index):
            values |= pictures(store, document, index, say)
            found = values.pop("found_map")
            values["map"] = page_values(found, index.column("uri").slice(0, len(found)).to_pylist())
            files = map_files(found, index, values["map"])
    page = render("report.html", **values)
    if len(page) > MOST_BYTES and values["map"]:
        page = render("report.html", **values | {"map": None})
    return page, files


def pictures(store: Store, document: dict[str, Any], index: Index, say: Say) -> dict[str, Any]:
    """What of the page holds images: the map, queries with their neighbours, near twins, what changed."""
    parent = document.get("parent")
    compared = None
    if parent and parent != index.release and is_there(store, parent):
        say("report: comparing with the last release")
        compared = compare_neighbours(open_release(store, parent), index, COMPARED)
    say("report: pictures")
    twins, pairs = near_twins(index)
    return {
        "found_map": make_map(index, MAPPED, last=last_map(store, document["id"]), say=say),
        "queries": sample_queries(index),
        "pairs": [pair_pictures(index, *pair) for pair in pairs],
        "twins": twins,
        "drift": compared and compared.report,
        "strips": strips(compared, 3) if compared else [],
    }


def readable(time: str) -> str:
    """20261124T233000Z as 2026-11-24 23:30 UTC."""
    return f"{time[:4]}-{time[4:6]}-{time[6:8]} {time[9:11]}:{time[11:13]} UTC" if len(time) == 16 else time


def ledger(result: dict[str, Any]) -> list[tuple[str, int]]:
    rows = (
        ("listed", "listed"),
        ("unchanged", "unchanged"),
        ("embedded", "embedded"),
        ("reused: known bytes under a new key", "reused"),
        ("failed now", "failed"),
        ("failed before", "failed_before"),
        ("in the index", "in_index"),
        ("stale: a new version failed, the old one is served", "stale"),
        ("deleted", "deleted"),
        ("superseded in their container", "superseded"),
        ("ignored by name", "ignored"),
    )
    always = ("listed", "embedded", "in_index")
    return [(text, int(result[name])) for text, name in rows if name in result and (result[name] or name in always)]


def failed_kinds(store: Store, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each kind of failure: how many, what it means, what to do, and some images; these not where nothing changed."""
    kinds: dict[str, int] = result.get("failed_by_kind") or {}
    ask = kinds and result["outcome"] != "unchanged"
    rows = failed_rows(*open_root(store.url), list(kinds)) if ask else []
    found = []
    for kind, number in kinds.items():
        meaning, remedy = (PERMANENT | TRANSIENT).get(kind, ("", ""))
        examples = [(row["key"], row["error"]) for row in rows if row["kind"] == kind][:EXAMPLES]
        found.append({"kind": kind, "count": number, "meaning": meaning, "remedy": remedy, "examples": examples})
    return found


def recall_plot(manifest: dict[str, Any], result: dict[str, Any]) -> str | None:
    """Recall against milliseconds, or codes scanned where no time was measured; None: one point alone is no curve."""
    point = manifest.get("operating_point")
    curve = (result.get("index") or {}).get("curve") or manifest.get("curve") or []
    if len(curve) < 2 or not point:
        return None
    cost, axis = ("ms", "milliseconds a query") if "ms" in curve[0] else ("codes_scanned", "codes scanned a query")
    points = [(row[cost], row["recall"], f"{row['cells']} cells, {row['rerank']} re-ranked") for row in curve]
    chosen = [i for i, row in enumerate(curve) if (row["cells"], row["rerank"]) == (point["cells"], point["rerank"])]
    target = manifest["recall"].get("target") or manifest.get("settings", {}).get("recall") or 0.9
    return plots.recall_and_cost(points, chosen[0] if chosen else None, axis, target)


def quantizer_drift(store: Store, document: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """How the quantizer serves new images, in this release and the one before, and why another was trained."""
    lines = []
    if training := document["result"].get("training"):
        lines.append(f"A quantizer was trained: {training['why']}")
    if told := describe_drift(manifest.get("drift")):
        lines.append(told[0].upper() + told[1:])
    parent = document.get("parent")
    if lines and parent and is_there(store, parent):
        before = read_manifest(store, f"releases/{parent}").get("drift")
        if told := describe_drift(before):
            lines.append(f"In the release before: {told}")
    return lines


def stage_plot(result: dict[str, Any]) -> str | None:
    seconds: dict[str, float] = result.get("seconds") or {}
    rows = [(STAGES.get(name, name), value, f"{value:.1f} s") for name, value in seconds.items()]
    return plots.bars(rows, "seconds") if rows and result["outcome"] != "unchanged" else None


def thread_plot(result: dict[str, Any]) -> str | None:
    """What the embedding threads did."""
    spent: dict[str, float] = (result.get("embedding") or {}).get("thread_s") or {}
    total = sum(spent.values())
    if not total:
        return None
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return plots.bars([(name, s, f"{s / total:.0%}") for name, s in ordered], "seconds of all threads")


def sizes(store: Store, index: Index) -> list[tuple[str, int, float]]:
    """What takes room: name, bytes, bytes an image."""
    manifest, groups = index.manifest, dict[str, int]()
    for name, file in manifest["files"].items():
        group = name.rpartition("/")[2] if name.startswith("segments/") else name.partition("/")[0]
        groups[f"release: {group}"] = groups.get(f"release: {group}", 0) + file["size"]
    quantizer = manifest["quantizer"]
    for name, folder in (("parts", f"parts/{quantizer['encoder']}"), ("codes", f"codes/{quantizer['id']}")):
        groups[f"ROOT: {name}"] = sum(store.sizes(folder).values())
    return [(name, size, size / max(1, len(index))) for name, size in groups.items() if size]


def pictured_run(store: Store, this: str, release: str) -> str | None:
    """An earlier run whose report shows this release."""
    for run in read_runs(store):
        if run["id"] != this and run["result"].get("release") == release and run["result"]["outcome"] != "unchanged":
            return str(run["id"]) if store.exists(f"runs/{run['id']}/report.html") else None
    return None


def last_map(store: Store, this: str) -> Map | None:
    """The newest earlier map of ROOT; None where there is none that can be read."""
    for run in read_runs(store):
        name = f"runs/{run['id']}/map.parquet"
        if run["id"] < this and store.exists(name):
            try:
                return Map.decode(store.read(name))
            except (OSError, ValueError, pa.ArrowException):
                return None
    return None


def sample_queries(index: Index) -> list[dict[str, Any]]:
    """Some images with their neighbours; other ones for another release."""
    seed = int.from_bytes(hashlib.sha256(index.release.encode()).digest()[:8], "big")
    rows = np.sort(np.random.default_rng(seed).choice(len(index), min(QUERIES, len(index)), replace=False))
    ranked = index.neighbours_of(rows, ACROSS)
    return [
        {
            "query": picture_of(index, int(row)),
            "hits": [picture_of(index, int(r), "", f"{s:.3f}") for r, s in zip(hits, found, strict=True)],
        }
        for row, (hits, found) in zip(rows, ranked, strict=True)
    ]


def near_twins(index: Index) -> tuple[dict[str, int], list[tuple[int, int, float]]]:
    """How many images have the very bytes of another, and of a sample the pairs that are nearly the same.

    Returns counts, and (row, row, similarity), most similar first, byte for byte equal ones left out.
    """
    digests = index.column("sha256")
    counts = pc.value_counts(digests).field("counts")
    repeated = int(pc.sum(pc.subtract(counts.filter(pc.greater(counts, 1)), 1)).as_py() or 0)
    pairs: dict[tuple[int, int], float] = {}
    sample = np.arange(min(len(index), PAIRED))
    for row, (hits, similar) in zip(sample.tolist(), index.neighbours_of(sample, 1), strict=True):
        if len(hits) and similar[0] >= ALIKE and digests[row].as_py() != digests[int(hits[0])].as_py():
            low, high = sorted((row, int(hits[0])))
            pairs[low, high] = float(similar[0])
    ordered = sorted(((a, b, s) for (a, b), s in pairs.items()), key=lambda pair: (-pair[2], pair[0]))
    return {"repeated": repeated, "sampled": len(sample), "alike": len(pairs)}, ordered[:PAIRS]


def pair_pictures(index: Index, a: int, b: int, similarity: float) -> dict[str, Any]:
    return {"similarity": similarity, "both": [picture_of(index, a), picture_of(index, b)]}

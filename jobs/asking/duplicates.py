"""Find the duplicates of a release: part by part, then groups, a table and a picture of them."""

import time
from typing import Any

import pyarrow.compute as pc

from sif_batch.jobs.asking.search import Answer
from sif_batch.jobs.fan_out import spread
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.result_files import whole_path, working_folder, write_result
from sif_batch.pipelines.engines import check_options
from sif_batch.query.duplicates import check_threshold, group, pairs_name, part_count
from sif_batch.query.hits import Hit
from sif_batch.query.index import Index

SHOWN, ACROSS = 100, 12  # groups on a contact sheet, and images of each


def find_duplicates(
    place: str,
    threshold: float,
    out: str,
    contact_sheet: str | None,
    reporter: Reporter,
    beam: tuple[str, ...] = (),
    workers: int | None = None,
) -> dict[str, Any]:
    """What `--json` prints. Parts that stand from an interrupted run are taken as they are. Raises SifBatchError."""
    beam = tuple(check_options(beam))
    index = Index.open(place)
    check_threshold(index, threshold)
    began = time.monotonic()
    with working_folder(out) as work:
        done = work.sizes("")
        numbers = [n for n in range(part_count(index)) if pairs_name(index, threshold, n) not in done]
        common = {"place": index.url, "work": work.url, "threshold": threshold}
        elements = [{"number": number} for number in numbers]
        spread(
            "sif_batch.query.duplicates:find_part", common, elements, "comparing", (work, ""), reporter, beam, workers
        )
        reporter.say("grouping")
        found = group(index, work, threshold)
        write_result(out, found.schema, [found])
    if contact_sheet:
        from sif_batch.jobs.asking.contact_sheet import write_contact_sheet

        write_contact_sheet(contact_sheet, strips(found))
    kinds = {row["values"]: row["counts"] for row in pc.value_counts(found["kind"]).to_pylist()}
    return {
        "release": index.release,
        "rows": len(index),
        "threshold": threshold,
        "groups": kinds.get("first", 0),
        "exact": kinds.get("exact", 0),
        "near": kinds.get("near", 0),
        "largest": int(pc.max(pc.value_counts(found["group"]).field("counts")).as_py()) if len(found) else 0,
        "out": whole_path(out),
        "contact_sheet": contact_sheet,
        "seconds": round(time.monotonic() - began, 2),
    }


def strips(found: Any) -> list[Answer]:
    """The first groups as a contact sheet shows them."""
    shown: list[Answer] = []
    for row in found.filter(pc.less(found["group"], SHOWN)).to_pylist():
        if row["kind"] == "first":
            shown.append(Answer(row["key"], row["uri"], []))
        elif len(shown[-1].hits) < ACROSS - 1:
            shown[-1].hits.append(Hit(row["key"], row["uri"], row["similarity"], {}))
    return shown

"""The evaluation as a folder: evaluation.json, evaluation.html and its plots."""

import json
import os
from typing import Any

from sif_batch.jobs.reports import plots
from sif_batch.jobs.reports.evaluate import Evaluation, worst_pictures
from sif_batch.jobs.reports.html import picture_of, render
from sif_batch.jobs.result_files import write_file
from sif_batch.jobs.wording import FIGURES, STAGES, evaluation_notes, evaluation_split


def write_evaluation(evaluation: Evaluation, out: str) -> None:
    """Write evaluation.json, evaluation.html and *.svg into the folder `out`. Raises SifBatchError."""
    report = evaluation.report
    drawn = draw(report)
    names = [(f"{n}@{cut}", n, cut) for n in ("precision", "recall", "f1") for cut in report["precision"]]
    table = [_row(report, *name) for name in [*names, *((label, name, None) for label, name in FIGURES)]]
    page = render(
        "evaluation.html",
        report=report,
        split=evaluation_split(report),
        headline=[(label, report[name], report["intervals"][name]) for label, name in FIGURES],
        metrics=list(report["metrics"] or {}),
        table=table,
        notes=evaluation_notes(report),
        plots=drawn,
        worst=[_strip(evaluation, row) for row in worst_pictures(evaluation)],
    )
    files = {"evaluation.html": page, "evaluation.json": json.dumps(report, ensure_ascii=False, indent=1).encode()}
    files |= {f"{name}.svg": svg.encode() for name, svg in drawn.items() if svg}
    for name, data in files.items():
        write_file(os.path.join(out, name), data)


def _row(report: dict[str, Any], label: str, name: str, cut: str | None) -> list[str]:
    low, high = report["intervals"][name][cut] if cut else report["intervals"][name]
    sides = [report, *(report["metrics"] or {}).values()]
    first, *others = (f"{side[name][cut] if cut else side[name]:.4f}" for side in sides)
    return [label, first, f"{low:.4f} to {high:.4f}", *others]


def draw(report: dict[str, Any]) -> dict[str, str | None]:
    """The plots by name; None for one that there are no figures for."""
    sides = {"release": report} | ({"exact": report["exact"]} if report["exact"] else {})
    lines: plots.Lines = {}
    for name, side in sides.items():
        lines[name] = [float(level) for level in side["curve"]], list(side["curve"].values())
    timing, labels = report["timing"], report["per_label"]
    return {
        "precision_recall": plots.curves(lines, "recall", "precision, interpolated"),
        "losses": report["losses"]
        and plots.ladder([(STAGES[row["stage"]], row["map"]) for row in report["losses"]], "mAP"),
        "labels": labels and plots.sorted_bars([row["map"] for row in labels], "labels, worst first", "mAP"),
        "images": timing["images"]
        and plots.curves(
            {"extraction": tuple(zip(*((r["images"], r["seconds"]) for r in timing["images"]), strict=True))},  # type: ignore[dict-item]
            "images",
            "seconds to extract",
        ),
        "queries": timing["queries"]
        and plots.curves(
            {
                name: ([r["rows"] for r in timing["queries"]], [1000 * r[key] for r in timing["queries"]])
                for name, key in (("release", "seconds_per_query"), ("exact", "seconds_per_exact_query"))
            },
            "rows",
            "milliseconds a query",
        ),
    }


def _strip(evaluation: Evaluation, row: dict[str, Any]) -> dict[str, Any]:
    """A worst query with pictures."""
    hits = [picture_of(evaluation.index, number, "good" if good else "bad") for number, good in row["hits"]]
    return row | {"query": picture_of(evaluation.index, row["query"]), "hits": hits}

"""What is asked for, what was reached, and both as a table."""

import sys
from typing import Any

GOAL_RECALL = 0.97


def goals(report: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What is asked for, what was reached, and whether it is enough."""
    rows: list[tuple[str, str, str, bool]] = []

    def goal(what: str, wanted: str, value: float, reached: bool, form: str = ".2f") -> None:
        rows.append((what, wanted, f"{value:{form}}", reached))

    if found := report.get("peer"):
        build, quickest = found["build_s"]["sif-batch"], found["quickest"]
        if "build_ratio" in found:
            goal("build, times faster than autofaiss", ">= 50", found["build_ratio"], found["build_ratio"] >= 50, ".1f")
        goal("build, seconds", "", build, True)
        reached = quickest["recall"]
        goal("recall@10, one query, one thread", ">= .97", reached, reached >= GOAL_RECALL, ".4f")
        goal("milliseconds a query there", "<= 0.3", quickest["query_ms"], quickest["query_ms"] <= 0.3, ".3f")
        size = found["bytes_per_row"]["sif-batch"]
        goal("bytes a row", "<= 560", size, size <= 560, ".1f")
    if found := report.get("millions"):
        for kind, limit in (("rows", 40), ("codes", 8)):
            spent = found[kind]["assemble_s"]
            goal(f"10M rows: assemble {kind}, s", f"<= {limit}", spent, spent <= limit)
        for kind in ("rows", "codes"):
            codes, peak = found[kind]["codes_mb"], found[kind]["peak_rss_mb"]
            goal(f"10M {kind}: peak MB", f"<= {2 * codes + 1024:.0f}", peak, peak <= 2 * codes + 1024, ".0f")
            opened, reader = found[kind]["open_s"], found[kind]["reader_mb"]
            goal(f"10M {kind}: open, s", "<= 1", opened, opened <= 1)
            goal(f"10M {kind}: reader MB", f"<= {codes + 300:.0f}", reader, reader <= codes + 300, ".0f")
    if found := report.get("hundred"):
        spent = found["codes"]["assemble_s"] + found["codes"]["open_s"]
        goal("100M codes: assemble and open, s", "<= 180", spent, spent <= 180, ".1f")
        peak = max(found["codes"]["peak_rss_mb"], found["codes"]["reader_mb"]) / 1024
        goal("100M codes: peak GB", "<= 16", peak, peak <= 16, ".1f")
    if found := report.get("night"):
        goal("one part of 1,000 changed: index stage, s", "<= 8", found["one_part_s"], found["one_part_s"] <= 8)
    if found := report.get("photos"):
        lost = found["map_exact"] - found["map"]
        goal("photos, ivf-pq: mAP lost to exact search", "<= .005", lost, lost <= 0.005, ".4f")
    return rows


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title="index", title_justify="left")
    for column in ("", "goal", "reached", ""):
        table.add_column(column)
    for what, wanted, value, reached in goals(report):
        table.add_row(what, wanted, value, "" if reached else "missed")
    console.print(table)
    if found := report.get("peer"):
        for name, shape in found["shape"].items():
            figures = (found["build_s"][name], found["recall_at_10"][name], found["query_ms"][name])
            console.print(f"{name}: build {figures[0]:.1f} s, recall@10 {figures[1]:.4f}, {figures[2]:.3f} ms; {shape}")
        for point in found["curve"]:
            console.print(f"  {point}")
    if found := report.get("families"):
        table = Table(title=f"families, {found['rows']} crops of photos, --recall .97", title_justify="left")
        for column in ("", "build s", "recall@10", "codes scanned", "ms a query", "bytes a row"):
            table.add_column(column, justify="right" if column else "left")
        for name, f in found["families"].items():
            row = f"{f['build_s']:.1f}", f"{f['recall_at_10']:.4f}", f"{f['codes_scanned']:.0f}", f"{f['query_ms']:.3f}"
            table.add_row(name, *row, f"{f['bytes_per_row']:.0f}")
        console.print(table)

"""Plots as SVG text, to stand in a page or in a file. Needs the extra `report`."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

BLUE, ORANGE, GREEN, RED, GREY = "#2563eb", "#ea7a0b", "#16a34a", "#dc2626", "#9ca3af"
WIDTH, HEIGHT = 6.4, 3.2  # inches
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sif-batch",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
}

Lines = dict[str, tuple[Sequence[float], Sequence[float]]]  # name: xs, ys


@contextmanager
def _figure(height: float = HEIGHT) -> Iterator[tuple[Any, list[str]]]:
    """An axis to draw on, and a list that will hold its SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    svg: list[str] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure.add_subplot(), svg
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    svg.append(text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1))


def recall_and_cost(points: Sequence[tuple[float, float, str]], chosen: int | None, cost: str, target: float) -> str:
    """Recall against what a query costs. points: (cost, recall, what it is); chosen: the one that is used.

    The line joins those that nothing cheaper beats: costs are measured, and a few of them by noise too high.
    """
    with _figure() as (axis, svg):
        ordered = sorted(points)
        best = [p for i, p in enumerate(ordered) if p[1] > max((q[1] for q in ordered[:i]), default=-1.0)]
        axis.plot([p[0] for p in ordered], [p[1] for p in ordered], "o", color=BLUE, markersize=4)
        axis.plot([p[0] for p in best], [p[1] for p in best], "-", color=BLUE)
        axis.axhline(target, color=GREY, linestyle="--", linewidth=1, label=f"target {target:g}")
        if chosen is not None:
            x, y, what = points[chosen]
            axis.plot([x], [y], "o", color=ORANGE, markersize=9, label=f"chosen: {what}")
        if 0 < 10 * ordered[0][0] <= ordered[-1][0]:
            from matplotlib.ticker import LogLocator, StrMethodFormatter

            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axis.xaxis.set_minor_formatter("")
        axis.set_xlabel(cost)
        axis.set_ylabel("recall@10")
        axis.margins(0.06)
        axis.set_ylim(0, 1.05)
        axis.legend(loc="lower right")
    return svg[0]


def bars(rows: Sequence[tuple[str, float, str]], unit: str, height: float | None = None) -> str:
    """Horizontal bars: (name, value, the text at its end), the first on top."""
    with _figure(height or 0.7 + 0.28 * len(rows)) as (axis, svg):
        names = range(len(rows))
        axis.barh(names, [row[1] for row in rows], color=BLUE, height=0.62)
        for i, (_, value, text) in enumerate(rows):
            axis.annotate(text, (value, i), (4, 0), textcoords="offset points", va="center")
        axis.set_yticks(names, [row[0] for row in rows])
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.margins(0.18, 0.04)
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
    return svg[0]


def ladder(rows: Sequence[tuple[str, float]], unit: str) -> str:
    """What is left after each stage, beginning at 1, with what each one lost."""
    with _figure(0.9 + 0.34 * len(rows)) as (axis, svg):
        before = 1.0
        for i, (_, value) in enumerate(rows):
            axis.barh(i, value, color=BLUE, height=0.6)
            lost = before - value
            axis.barh(i, abs(lost), left=min(value, before), color=RED if lost > 0 else GREEN, height=0.6, alpha=0.35)
            text = f"{value:.4f}  ({-lost:+.4f})"
            axis.annotate(text, (max(value, before), i), (4, 0), textcoords="offset points", va="center")
            before = value
        axis.set_yticks(range(len(rows)), [name for name, _ in rows])
        axis.invert_yaxis()
        axis.set_xlim(0, 1.32)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axis.set_xlabel(unit)
        axis.grid(axis="y", visible=False)
    return svg[0]


def curves(lines: Lines, x: str, y: str, log: bool = False) -> str:
    """Named lines of (x, y)."""
    with _figure() as (axis, svg):
        for (name, (xs, ys)), colour in zip(lines.items(), (BLUE, ORANGE, GREEN, RED), strict=False):
            axis.plot(xs, ys, "-o", label=name, color=colour, markersize=3.5)
        if log:
            axis.set_xscale("log")
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        if len(lines) > 1:
            axis.legend()
    return svg[0]


def sorted_bars(values: Sequence[float], x: str, y: str) -> str:
    """Values in their order as bars without names, however many there are."""
    with _figure() as (axis, svg):
        axis.bar(range(1, len(values) + 1), values, width=0.9 if len(values) < 60 else 1.0, color=BLUE)
        axis.set_ylim(0, 1)
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.grid(axis="x", visible=False)
    return svg[0]

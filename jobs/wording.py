"""Wording that the terminal and the pages share: durations, figures, drift, notes of an evaluation."""

from typing import Any


def format_seconds(seconds: float) -> str:
    """12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def describe_drift(drift: dict[str, Any] | None) -> str | None:
    """How the quantizer serves what came after its training, in a line; None where nothing came or nothing is lost."""
    if not drift or drift["ratio"] is None:
        return None
    trained, now = drift["imbalance"]["trained"], drift["imbalance"]["now"]
    cells = f"; its cells are {now / trained:.2f} times as uneven" if trained and now else ""
    share = drift["new"] / drift["sampled"]
    return f"images new since the training, {share:.1%}, lose {drift['ratio']:.2f} times what others do{cells}"


FIGURES = (("mAP", "map"), ("R-precision", "r_precision"), ("MRR", "mrr"))
STAGES = {
    "exact": "the network: exact search",
    "cut": "fewer dimensions",
    "codes": "codes",
    "release": "the release: re-ranked",
}


def evaluation_split(report: dict[str, Any]) -> str:
    split = report["split"]
    if split["kind"] == "k-fold":
        return f"each of {split['folds']} folds among the rest"
    return "leave-one-out" if split["kind"] == "leave-one-out" else f"{split['share']:.0%} held out"


def evaluation_notes(report: dict[str, Any]) -> list[str]:
    """What could not be judged, and the seconds."""
    matched, timing = report["matched"], report["timing"]
    notes = []
    if matched["unmatched"]["count"]:
        notes.append(_counted("name no image of the release", matched["unmatched"]))
    if matched["labels_of_one_image"]["count"]:
        notes.append(_counted("labels have one image, which is not asked with", matched["labels_of_one_image"]))
    if matched["labelled"] < matched["images"]:
        notes.append(f"{matched['images'] - matched['labelled']:,} images have no label: relevant to none")
    if timing["images"]:
        notes.append(f"{timing['images'][-1]['seconds_per_image']:.4f} s from a file to its vector, one thread")
    if timing["queries"]:
        last = timing["queries"][-1]
        notes.append(
            f"{1000 * last['seconds_per_query']:.2f} ms a query of {last['rows']:,} rows, "
            f"{1000 * last['seconds_per_exact_query']:.2f} ms by exact search"
        )
    return notes


def _counted(what: str, found: dict[str, Any]) -> str:
    more = ", ..." if found["count"] > len(found["examples"]) else ""
    return f"{found['count']:,} {what}: {', '.join(found['examples'])}{more}"

"""What a person sees: ledgers and tables."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sif_batch.jobs.progress import format_seconds
from sif_batch.query.hits import Hit


def show_run(console: Console, result: dict[str, Any]) -> None:
    """The ledger of a run, the gate's verdict, where the release is and how to ask it."""
    table = _table("ledger", "images")
    rows = [
        ("listed", result["listed"], ""),
        ("  unchanged", result["unchanged"], ""),
        ("  embedded", result["embedded"], ""),
        ("  reused, their bytes being known", result["reused"], "reused"),
        ("  failed now", result["failed"], ""),
        ("  failed before", result["failed_before"], ""),
        ("ignored by name", result["ignored"], "ignored"),
        ("stale, still served", result["stale"], "stale"),
        ("superseded in their container", result["superseded"], "superseded"),
        ("deleted", result.get("deleted", 0), "deleted"),
        ("in the index", result["in_index"], ""),
    ]
    for label, number, only_if in rows:
        if number or not only_if:
            table.add_row(label, f"{number:,}")
    console.print(table)
    say = functools.partial(console.print, soft_wrap=True)  # a path must stay one to copy
    for kind, number in result["failed_by_kind"].items():
        say(f"  {number:,} failed: {kind}")
    if result["failed_by_kind"]:
        say(f"  each with its reason: sif-batch status {result['root']} --failures")
    stages = ", ".join(f"{name} {format_seconds(value)}" for name, value in result["seconds"].items())
    if "index" not in result:
        say(f"time      {stages}" + (f"; {result['bottleneck']}" if result["bottleneck"] else ""))
        say(f"outcome   {result['outcome']}; sif-batch index {result['root']} makes a release of them")
        return
    gate, index = result["gate"], result["index"]
    recall = "not measured: no held-out image" if gate["recall_at_10"] is None else f"{gate['recall_at_10']:.3f}"
    say(f"recall@10 {recall} on {gate['queries']} held-out queries")
    say(f"index     {index['shape']}")
    if training := result["training"]:
        cost = sum(training["seconds"].values())
        say(f"trained   {training['why']}; it took {format_seconds(cost)}")
    if told := describe_drift(result["drift"]):
        say(f"drift     {told}")
    say(f"time      {stages}" + (f"; {result['bottleneck']}" if result["bottleneck"] else ""))
    say(f"outcome   {result['outcome']}")
    for reason in gate["reasons"]:
        say(f"          {'refused' if gate['enabled'] else 'passed over'}: {reason}")
    root, where = result["root"], f"{result['root']}/releases/{result['release']}"
    if result["outcome"] == "refused":
        say(f"candidate {where}")
        say(f"          kept, not published; sif-batch publish {root} {result['release'][:12]} does so all the same")
    elif result["outcome"] == "held":
        say(f"candidate {where}")
        say(f"          kept, not published: after a rollback; sif-batch publish {root} ends that")
    else:
        say(f"release   {where}")
        say(f"ask it    sif-batch search {root} IMAGE")


def show_forecast(console: Console, found: dict[str, Any]) -> None:
    """What a dry run foretells."""
    todo, sample, forecast = found["to_do"], found["sample"], found["forecast"]
    say = functools.partial(console.print, soft_wrap=True)
    about = "" if todo["counted"] else "about "
    known = f"{found['standing']:,} images known, {found['ignored']:,} ignored by name"
    say(f"listed    {found['listed']:,} entries, {known}")
    say(f"to do     {todo['entries']:,} entries, {about}{todo['images']:,} images, {_size(todo['bytes'])}")
    say(f"index     {found['index']['rows']:,} images; {found['index']['shape']}")
    if sample:
        say(f"sample    {sample['images']} images, {sample['images_per_s']} images/s on {sample['threads']} threads")
    for name, shown in (("seconds", format_seconds), ("disk", _size), ("memory", _size)):
        parts = dict(forecast[name])
        total = parts.pop("total")
        label = {"seconds": "time", "disk": "disk", "memory": "memory"}[name]
        split = ", ".join(f"{part} {shown(value)}" for part, value in parts.items() if value)
        say(f"{label:<9} {shown(total)}: {split}" if split else f"{label:<9} {shown(total)}")
    for problem in found["problems"]:
        say(f"problem   {problem['problem']}; {problem['remedy']}")
    say("outcome   nothing was written" + ("; it would not fit" if found["problems"] else ""))


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def describe_drift(drift: dict[str, Any] | None) -> str | None:
    """How the quantizer serves what came after its training, in a line; None where nothing came or nothing is lost."""
    if not drift or drift["ratio"] is None:
        return None
    trained, now = drift["imbalance"]["trained"], drift["imbalance"]["now"]
    cells = f"; its cells are {now / trained:.2f} times as uneven" if trained and now else ""
    share = drift["new"] / drift["sampled"]
    return f"images new since the training, {share:.1%}, lose {drift['ratio']:.2f} times what others do{cells}"


def show_hits(console: Console, query: str, hits: Sequence[Hit]) -> None:
    table = _table("", "similarity", "key", "uri", title=query)
    for rank, hit in enumerate(hits, 1):
        table.add_row(str(rank), f"{hit.similarity:.4f}", hit.key, hit.uri)
    console.print(table)


def show_facts(console: Console, facts: dict[str, Any]) -> None:
    """Figures and places, a line each."""
    for name, value in facts.items():
        if value is not None:
            text = f"{value:,}" if isinstance(value, int) else str(value)
            console.print(f"{name.replace('_', ' '):<16} {text}")


def show_usage(console: Console, found: dict[str, Any]) -> None:
    lists = ("days", "most_asked", "most_clicked")
    plain = {name: value for name, value in found.items() if name not in lists}
    plain |= {"by": ", ".join(f"{kind} {n}" for kind, n in found["by"].items()) or None}
    plain |= {"seconds": found["seconds"] and "median {median}, 95 % below {p95}".format(**found["seconds"])}
    show_facts(console, plain)
    for name in lists:
        if found[name]:
            table = _table(*found[name][0], title=name.replace("_", " "))
            for row in found[name]:
                table.add_row(*map(str, row.values()))
            console.print(table)


def show_status(console: Console, status: dict[str, Any]) -> None:
    table = _table("ROOT", status["root"])
    for source in status["sources"]:
        table.add_row("source", f"{source['name']} = {source['url']}")
    table.add_row("encoder", status["encoder"])
    for name in ("listed", "good", "failed", "to_do"):
        table.add_row(name.replace("_", " "), f"{status[name]:,}")
    for kind, number in status["failed_by_kind"].items():
        table.add_row(f"  {kind}", f"{number:,}")
    table.add_row("unfinished plans", str(status["open_plans"]))
    release = status["release"]
    table.add_row("release", f"{release['n']}: {release['release']}, {release['time']}" if release else "none yet")
    last = status["last_run"]
    table.add_row("last run", f"{last['id']}: {last['outcome']}" if last else "none yet")
    console.print(table)


def show_failures(console: Console, failures: Sequence[dict[str, Any]]) -> None:
    table = _table("key", "kind", "attempt", "reason")
    for failure in failures:
        table.add_row(failure["key"], failure["kind"], str(failure["attempt"]), failure["error"])
    console.print(table)


def show_explanation(console: Console, report: dict[str, Any]) -> None:
    say = functools.partial(console.print, soft_wrap=True)
    say(report["key"])
    say(f"  state      {report['state']}")
    for name in ("uri", "size", "version"):
        if report[name] is not None:
            say(f"  {name:<10} {report[name]}")
    for row in report["rows"]:
        outcome = "embedded" if row["kind"] is None else f"{row['kind']}: {row['error']}"
        standing = " (stands)" if row["stands"] else ""
        size = f", {row['width']} x {row['height']}" if row["width"] else ""
        say(f"  attempt {row['attempt']}  {outcome}{size}{standing}, version {row['version']}, part {row['part']}")
    if report["meaning"]:
        say(f"  meaning    {report['meaning']}")
        say(f"  remedy     {report['remedy']}")
    for name, value in (report["fields"] or {}).items():
        say(f"  field      {name} = {value}")
    say(f"  release    {report['release'] or 'not in the current one'}")


def show_releases(console: Console, releases: Sequence[dict[str, Any]]) -> None:
    table = _table("n", "release", "time", "by", "action", "rows", "recall@10", "MB", "")
    for release in releases:
        recall = "" if release["recall_at_10"] is None else f"{release['recall_at_10']:.3f}"
        size = f"{release['bytes'] / 1e6:.1f}"
        current = "current" if release["current"] else "gone" if release["gone"] else ""
        current += ", publishing is held" if release["current"] and release["held"] else ""
        current += f"{', ' if current else ''}{release['note']}" if release["note"] else ""
        who = (release["n"], release["id"], release["time"], release["by"], release["action"])
        row = (*who, f"{release['rows']:,}", recall, size, current)
        table.add_row(*map(str, row))
    console.print(table)


def show_encoders(console: Console, encoders: Sequence[dict[str, Any]]) -> None:
    table = _table("encoder", "dimension", "input", "weights", "licence", "here")
    for row in encoders:
        size = row["input_size"] and f"{row['input_size']} px"
        here = f"yes: {row['where']}" if row["available"] else f"no: {row['where']}"
        table.add_row(
            *(str(v or "") for v in (row["name"], row["dimension"], size, row["source"], row["licence"], here))
        )
    console.print(table)
    console.print("and timm:NAME, your own FILE.onnx, or --weights for any of torchvision's", markup=False)


def show_damage(console: Console, report: dict[str, Any]) -> None:
    if report["ok"]:
        console.print(f"no damage in {report['files']:,} files")
        return
    table = _table("damaged file", "reason")
    for damage in report["damaged"]:
        table.add_row(damage["file"], damage["reason"])
    console.print(table)


def show_sources(console: Console, sources: Sequence[dict[str, Any]]) -> None:
    table = _table("source", "place", "options")
    for source in sources:
        options = {name: value for name, value in source.items() if name not in ("name", "url") and value}
        table.add_row(source["name"], source["url"], ", ".join(f"{name} {value}" for name, value in options.items()))
    console.print(table)


MOST_SHOWN = 20  # images of a kind of difference
MOST_LISTED = 3  # entries that are compared one by one


def show_differences(console: Console, report: dict[str, Any]) -> None:
    say = functools.partial(console.print, soft_wrap=True)
    say(f"from {report['old']}\nto   {report['new']}")
    for name in ("added", "deleted", "moved", "changed", "relabelled"):
        found = report[name]
        say(f"{len(found):>9,} {name}")
        for one in found[:MOST_SHOWN]:
            say(f"          {one if isinstance(one, str) else ' -> '.join(one)}")
        if len(found) > MOST_SHOWN:
            say("          ...")
    for name, (old, new) in report["settings"].items():
        for line in _changes(name, old, new):
            say(line)
    neighbours = report["neighbours"]
    if neighbours["asked"]:
        kept = f"{neighbours['kept_at_10']:.1%} of the ten nearest stayed"
        say(f"{kept}, asked with {neighbours['asked']}; most changed: {_most_changed(neighbours)}")
    if report["mean_cosine"] is not None:
        say(f"{report['mean_cosine']:.4f} cosine of the mean vectors")


def _changes(name: str, old: Any, new: Any) -> Iterator[str]:
    """What differs between two values, one line for each number or text in them; of long lists that they differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old | new):
            yield from _changes(f"{name}.{key}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) <= MOST_LISTED:
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(f"{name}.{i}", *pair)
    elif old != new:
        long = [f"{len(value)} entries" if isinstance(value, list) else value for value in (old, new)]
        yield f"{name}: {long[0]} -> {long[1]}"


def _most_changed(neighbours: dict[str, Any]) -> str:
    changed = [f"{row['key']} ({row['kept']:.0%} kept)" for row in neighbours["changed_most"] if row["kept"] < 1]
    return ", ".join(changed) or "none"


def show_garbage(console: Console, report: dict[str, Any]) -> None:
    table = _table("no longer needed", "bytes")
    for one in report["garbage"]:
        table.add_row(one["file"], f"{one['bytes']:,}")
    console.print(table)
    done = "removed" if report["deleted"] else "could be removed, with --delete"
    console.print(f"{len(report['garbage'])} files and folders, {report['bytes']:,} bytes, {done}")


def show_compaction(console: Console, report: dict[str, Any]) -> None:
    done = "copied; sif-batch gc removes the old ones" if report["compacted"] else "could be copied, with --yes"
    rows = f"{report['rows']:,} rows, without {report['dead']:,} dead ones"
    console.print(f"{report['merged']} parts into {report['into']}, {rows}: {done}")


def show_erasure(console: Console, report: dict[str, Any]) -> None:
    table = _table("key", "sha256")
    for image in report["images"]:
        table.add_row(image["key"], image["sha256"] or "")
    console.print(table)
    held = f"in {report['parts']} parts, {len(report['releases'])} releases, {len(report['quantizers'])} quantizers"
    done = "erased" if report["erased"] else "would be erased, with --yes; nothing was changed"
    console.print(f"{len(report['images'])} images {held}: {done}")
    for name in report["trained_on"]:
        console.print(f"{name} was trained on some of them among others: sif-batch run --retrain now makes another")
    for old, new in report.get("replaced", {}).items():
        console.print(f"replaced  {old[:12]} by {new[:12]}" if new else f"removed   {old[:12]}")


FIGURES = (("mAP", "map"), ("R-precision", "r_precision"), ("MRR", "mrr"))
STAGES = {
    "exact": "the network: exact search",
    "cut": "fewer dimensions",
    "codes": "codes",
    "release": "the release: re-ranked",
}


def show_evaluation(console: Console, report: dict[str, Any]) -> None:
    exact, metrics = report["exact"], report["metrics"] or {}
    sides = {"release": report, **{f"exact, {name}": found for name, found in metrics.items()}}
    table = _table("", "release", "95 % interval", *list(sides)[1:], title=_evaluation_title(report))
    figures = [(f"{n}@{cut}", (n, cut)) for n in ("precision", "recall", "f1") for cut in report["precision"]]
    for label, (name, cut) in figures + [(label, (name, None)) for label, name in FIGURES]:
        values = [f"{side[name][cut] if cut else side[name]:.4f}" for side in sides.values()]
        low, high = report["intervals"][name][cut] if cut else report["intervals"][name]
        table.add_row(label, values[0], f"{low:.4f} to {high:.4f}", *values[1:])
    console.print(table)
    if report["losses"]:
        _show_losses(console, report["losses"])
    if report["per_label"]:
        worst = _table("worst labels", "images", "mAP", "most taken for")
        for row in report["per_label"][:5]:
            worst.add_row(row["label"], str(row["images"]), f"{row['map']:.4f}", row["most_taken_for"] or "")
        console.print(worst)
    for line in evaluation_notes(report):
        console.print(line, soft_wrap=True)
    if exact is None:
        console.print("a ROOT instead of a release shows exact search too, and what each stage loses", soft_wrap=True)


def _show_losses(console: Console, losses: Sequence[dict[str, Any]]) -> None:
    table = _table("stage", "mAP", "lost", "95 % interval", "kept of exact ten")
    for row in losses:
        low, high = row["interval"]
        figures = (f"{row['map']:.4f}", f"{row['lost']:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{row['kept_at_10']:.4f}")
        table.add_row(STAGES[row["stage"]], *figures)
    console.print(table)


def _evaluation_title(report: dict[str, Any]) -> str:
    same = "same " if report["per_label"] else ""
    return f"{report['n_queries']:,} queries, relevant: {same}{report['labels']}, {evaluation_split(report)}"


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


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table

"""Commands that judge and show: evaluate, compare, map, report."""

import click

from sif_batch.jobs.cli.group import cli
from sif_batch.jobs.cli.options import json_option
from sif_batch.jobs.cli.output import print_json, stdout
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.terminal.reports import show_differences, show_evaluation


@cli.command()
@click.argument("old", metavar="ROOT|RELEASE|ROOT@N")
@click.argument("new", required=False, metavar="[ROOT|RELEASE|ROOT@N]")
@click.option("--out", metavar="FILE.html", help="Write a page there that shows whose neighbours changed.")
@json_option
def compare(old: str, new: str | None, out: str | None, as_json: bool) -> None:
    """What differs between two releases.

    Images added, deleted, moved, changed, with other columns; settings; and of a sample of images how many neighbours
    stayed. One ROOT alone: its last two releases. N is a number of `sif-batch releases`, or the beginning of an id.
    """
    from sif_batch.jobs.reports.compare import compare as work

    report = work(old, new, out)
    print_json(report) if as_json else show_differences(stdout(), report)


@cli.command()
@click.argument("place", metavar="ROOT|RELEASE")
@click.option(
    "--labels",
    required=True,
    metavar="COLUMN|folder|FILE.csv|DIR",
    help="What makes images relevant to each other: folder (its last component), another column, a CSV file whose "
    "first line is key,label or, for pairs, query,relevant, or a folder of judgements.",
)
@click.option("-k", "cuts", type=click.IntRange(min=1), multiple=True, help="Judge at so many hits. Default: 1, 5, 10.")
@click.option(
    "--holdout",
    type=click.FloatRange(0, 0.5, min_open=True),
    metavar="SHARE",
    help="Ask with this share of the images, a half, third, quarter, ..., among the rest. Default: leave one out.",
)
@click.option("--folds", type=click.IntRange(min=2), help="Ask with each of so many parts in turn, among the rest.")
@click.option(
    "--max-queries",
    type=click.IntRange(min=1),
    help="Ask with so many images at most, a uniform sample. Default: 10000, fewer where the index is large.",
)
@click.option("--out", metavar="DIR", help="Write evaluation.json, evaluation.html and the plots there.")
@json_option
def evaluate(
    place: str,
    labels: str,
    cuts: tuple[int, ...],
    holdout: float | None,
    folds: int | None,
    max_queries: int | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Judge a release by labels: precision, recall, mAP, ...

    Precision, recall and F1 at k, mAP, R-precision and MRR with 95 % intervals, label by label; each image is asked
    with and itself left out. For a ROOT, beside exact search with the same vectors by cosine, Euclidean distance and
    Pearson correlation, and with what each stage of the index loses and how its time grows.
    """
    from sif_batch.evaluation.metrics import CUTS
    from sif_batch.jobs.reports.evaluate import evaluate as evaluate_release

    if holdout and folds:
        raise click.UsageError("--holdout and --folds exclude each other")
    if out:
        from sif_batch.jobs.reports.html import check_extra

        check_extra()
    found = evaluate_release(place, labels, cuts or CUTS, holdout, folds, max_queries)
    if out:
        from sif_batch.jobs.reports.evaluation_page import write_evaluation

        write_evaluation(found, out)
    print_json(found.report) if as_json else show_evaluation(stdout(), found.report)


@cli.command("map")
@click.argument("place", metavar="ROOT|RELEASE")
@click.option("--sample", type=click.IntRange(min=1), default=2000, show_default=True, help="Show so many images.")
@click.option(
    "--label", default="folder", show_default=True, metavar="COLUMN", help="Colour the points by this column."
)
@click.option("--out", metavar="DIR", help="Write there. Default: beside the run that made the release.")
@json_option
def map_(place: str, sample: int, label: str, out: str | None, as_json: bool) -> None:
    """Show a release as a map.

    Similar images lie together. map.html is a page to look around in: by t-SNE or PCA, a point shows its image, and
    zoomed in all do. map.png is a picture of it, map.parquet has the places.
    """
    from sif_batch.jobs.reports.map_page import map_release

    files = map_release(place, sample, label, out, Reporter().say)
    if as_json:
        print_json({"files": files})
    for path in files.values() if not as_json else ():
        click.echo(path)


@cli.command()
@click.argument("root")
@click.argument("run", required=False)
@click.option("--out", metavar="FILE.html", help="Write it there. Default: report.html beside the run's run.json.")
@json_option
def report(root: str, run: str | None, out: str | None, as_json: bool) -> None:
    """Tell a run as one page.

    The ledger, the gate, the time, what changed, a map, answers with their pictures: one file that needs no network.
    Every run makes its own; this makes it again. RUN is the beginning of its id; without it, the newest.
    """
    from sif_batch.jobs.reports.night import report_run

    path = report_run(root, run, out, Reporter().say)
    print_json({"report": path}) if as_json else click.echo(path)

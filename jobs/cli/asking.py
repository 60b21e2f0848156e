"""Commands that ask: search, duplicates, usage."""

from typing import Any

import click

from sif_batch.jobs.cli.group import cli
from sif_batch.jobs.cli.options import json_option, split_at_options
from sif_batch.jobs.cli.output import print_json, stdout
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.terminal.asking import show_facts, show_hits, show_usage


@cli.command()
@click.argument("place", metavar="ROOT|RELEASE")
@click.argument("images", nargs=-1, metavar="[IMAGE]... [-- BEAM OPTIONS]")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Ask with an image of the release instead.")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many hits for each query.")
@click.option("--together", is_flag=True, help="Ask with all images, or all keys, as one query.")
@click.option("--right", multiple=True, metavar="KEY", help="A hit that was right: the query moves towards it.")
@click.option("--wrong", multiple=True, metavar="KEY", help="A hit that was wrong: the query moves away from it.")
@click.option("--expand", type=click.IntRange(min=0), default=0, metavar="N", help="Average the first N hits in.")
@click.option("--where", metavar="FILTER", help="Only images of these columns: \"folder = 'cats' and width >= 600\".")
@click.option("--judgements", metavar="DIR", help="Keep --right and --wrong there; evaluate --labels DIR takes them.")
@click.option("--queries", metavar="SOURCE|FILE.parquet", help="Ask with a source of images, or a table of vectors.")
@click.option("--out", metavar="FILE.parquet", help="Where the hits of --queries go.")
@click.option("--feedback-log", metavar="FILE", help="Note queries there; no image, no name of one. Default: off.")
@click.option("--contact-sheet", metavar="FILE.png", help="Write the queries and their hits there as a picture.")
@json_option
def search(place: str, images: tuple[str, ...], contact_sheet: str | None, as_json: bool, **options: Any) -> None:
    """The images most similar to each IMAGE.

    An IMAGE is a path or an fsspec URL; instead of images, keys may ask, or marks alone. Wrong ones are left out of the
    answer. FILTER compares columns by = != < <= > >= in like is, with and or not. With --queries many ask at once,
    through Beam where they are very many: the hits go to --out, and the same command goes on where one was killed.
    """
    from sif_batch.jobs.asking.search import Asking, answers_json, ask

    images, beam = split_at_options(images)
    queries, out = options.pop("queries"), options.pop("out")
    asking = Asking(images=images, **options)
    if queries or out:
        if contact_sheet:
            raise click.UsageError("--queries goes without --contact-sheet")
        search_queries(place, queries, out, asking, beam, as_json)
        return
    if beam:
        raise click.UsageError(f"{beam[0]} goes with --queries")
    if images and asking.keys:
        raise click.UsageError("IMAGE and --key exclude each other")
    if not (images or asking.keys or asking.right):
        raise click.UsageError("nothing to ask with: give an IMAGE, --key, --right or --queries")
    if (asking.right or asking.wrong) and not asking.together and len(images or asking.keys) > 1:
        raise click.UsageError("--right and --wrong go with one query: add --together")
    if asking.judgements and not (asking.right or asking.wrong):
        raise click.UsageError("--judgements keeps marks: add --right KEY or --wrong KEY")
    if contact_sheet:
        from sif_batch.jobs.asking.contact_sheet import check_name, write_contact_sheet

        check_name(contact_sheet)
    release, found = ask(place, asking)
    if contact_sheet:
        write_contact_sheet(contact_sheet, found)
    if as_json:
        print_json(answers_json(release, found))
        return
    for answer in found:
        show_hits(stdout(), answer.query, answer.hits)


def search_queries(
    place: str, queries: str | None, out: str | None, asking: Any, beam: tuple[str, ...], as_json: bool
) -> None:
    """`search --queries --out`."""
    if not (queries and out):
        raise click.UsageError("--queries and --out go together")
    alone = ("images", "keys", "together", "right", "wrong", "judgements", "feedback_log")
    if given := [name for name in alone if getattr(asking, name)]:
        raise click.UsageError(f"--queries goes without {given[0]}")
    from sif_batch.jobs.asking.bulk import search_in_bulk

    report = search_in_bulk(place, queries, out, asking, Reporter(), beam)
    print_json(report) if as_json else show_facts(stdout(), report)


@cli.command()
@click.argument("place", metavar="ROOT|RELEASE")
@click.argument("beam", nargs=-1, metavar="[-- BEAM OPTIONS]")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    required=True,
    help="Images at least so similar are near-duplicates; 0.95 is a beginning.",
)
@click.option(
    "--out", default="duplicates.parquet", show_default=True, metavar="FILE.parquet", help="Where the groups go."
)
@click.option("--contact-sheet", metavar="FILE.png", help="Write the first groups there as a picture.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that compare. Default: the cores there are.")
@json_option
def duplicates(
    place: str,
    beam: tuple[str, ...],
    threshold: float,
    out: str,
    contact_sheet: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Groups of the same and nearly the same images.

    The same: of equal bytes. Nearly: as similar as --threshold, or joined by images that are. The table names of each
    group the image with the most pixels first. What a killed run has compared stands beside --out; the same command
    goes on.
    """
    from sif_batch.jobs.asking.duplicates import find_duplicates

    if contact_sheet:
        from sif_batch.jobs.asking.contact_sheet import check_name

        check_name(contact_sheet)
    report = find_duplicates(place, threshold, out, contact_sheet, Reporter(), beam, workers)
    print_json(report) if as_json else show_facts(stdout(), report)


@cli.command()
@click.argument("log")
@json_option
def usage(log: str, as_json: bool) -> None:
    """What a --feedback-log says: queries, clicks, time, what is asked and opened most."""
    from sif_batch.query.usage_log import summarise

    found = summarise(log)
    print_json(found) if as_json else show_usage(stdout(), found)

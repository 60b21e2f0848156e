"""Commands that look into a ROOT (status, explain, verify, releases, ...) and after it (publish, gc, erase, ...)."""

import sys
from typing import Any

import click

from sif_batch.failures import PERMANENT, TRANSIENT
from sif_batch.jobs.cli.group import cli
from sif_batch.jobs.cli.options import SOURCE_OPTIONS, json_option, options_of
from sif_batch.jobs.cli.output import EXIT_DAMAGED, print_json, stdout
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.terminal.upkeep import (
    show_compaction,
    show_damage,
    show_encoders,
    show_erasure,
    show_explanation,
    show_failures,
    show_garbage,
    show_releases,
    show_sources,
    show_status,
)


@cli.command()
@click.argument("root", required=False, metavar="[ROOT]")
@json_option
def encoders(root: str | None, as_json: bool) -> None:
    """The networks that --encoder can name, and which are on this machine.

    With ROOT, those that it holds too.
    """
    from sif_batch.jobs.upkeep.encoders import list_encoders

    report = list_encoders(root)
    print_json(report) if as_json else show_encoders(stdout(), report["encoders"])


@cli.command()
@click.argument("root")
@click.option("--failures", is_flag=True, help="List the images that failed, with the reason for each.")
@click.option("--kind", multiple=True, type=click.Choice([*PERMANENT, *TRANSIENT]), help="Only failures of this kind.")
@json_option
def status(root: str, failures: bool, kind: tuple[str, ...], as_json: bool) -> None:
    """What ROOT holds and what its last run did."""
    from sif_batch.jobs.upkeep.status import status as status_of
    from sif_batch.ledger.live import failed_rows
    from sif_batch.storage.root import open_root

    if failures or kind:
        found = failed_rows(*open_root(root), kind)
        print_json({"failures": found}) if as_json else show_failures(stdout(), found)
    else:
        report = status_of(root)
        print_json(report) if as_json else show_status(stdout(), report)


@cli.command()
@click.argument("root")
@click.argument("key")
@json_option
def explain(root: str, key: str, as_json: bool) -> None:
    """All that is known of one image.

    Whether it is listed, each attempt at it, why it failed and what to do, and whether the current release has it. KEY
    is its key, its path or its uri.
    """
    from sif_batch.jobs.upkeep.explain import explain_image

    report = explain_image(root, key)
    print_json(report) if as_json else show_explanation(stdout(), report)


@cli.command()
@click.argument("place", metavar="ROOT|RELEASE")
@json_option
def verify(place: str, as_json: bool) -> None:
    """Compare every file with its checksum.

    The files of a release, or all that ROOT holds. Exit 5 if one is damaged.
    """
    from sif_batch.jobs.upkeep.verify import verify as check

    report = check(place)
    print_json(report) if as_json else show_damage(stdout(), report)
    sys.exit(0 if report["ok"] else EXIT_DAMAGED)


@cli.command()
@click.argument("root")
@json_option
def releases(root: str, as_json: bool) -> None:
    """The releases of ROOT, oldest first.

    All that was ever published, and by whom.
    """
    from sif_batch.jobs.upkeep.releases import releases as list_releases

    found = list_releases(root)
    print_json({"releases": found}) if as_json else show_releases(stdout(), found)


@cli.command()
@click.argument("root")
@click.argument("release", required=False)
@json_option
def rollback(root: str, release: str | None, as_json: bool) -> None:
    """Make an older release current, and hold publishing.

    RELEASE is the beginning of an id, or a number n; without it, the release before. Nights go on and make candidates,
    but none is published until `sif-batch publish`.
    """
    from sif_batch.jobs.upkeep.releases import rollback as roll_back

    print_entry(roll_back(root, release), as_json)


@cli.command()
@click.argument("root")
@click.argument("release", required=False)
@json_option
def publish(root: str, release: str | None, as_json: bool) -> None:
    """Publish a candidate by hand, and end a hold.

    RELEASE is the beginning of an id, or a number n: also one that the gate refused. Without it, what the newest run
    held back; if it made nothing, the current release stays and later nights publish again.
    """
    from sif_batch.jobs.upkeep.releases import publish_by_hand

    print_entry(publish_by_hand(root, release), as_json)


@cli.group()
def sources() -> None:
    """The sources that ROOT records: list, add, replace, remove."""


def _sources_command(name: str, replace: bool, text: str) -> None:
    @sources.command(name, help=text)
    @click.argument("root")
    @click.argument("places", nargs=-1, required=True, metavar="[NAME=]SOURCE...")
    @options_of(SOURCE_OPTIONS)
    @json_option
    def command(root: str, places: tuple[str, ...], as_json: bool, **options: Any) -> None:
        from sif_batch.jobs.upkeep.sources import add_sources

        print_sources(add_sources(root, places, replace, **options), as_json)


_sources_command("add", False, "Record more sources. The next run lists them.")
_sources_command("replace", True, "Record other places under the names of sources that ROOT has.")


@sources.command("list")
@click.argument("root")
@json_option
def sources_list(root: str, as_json: bool) -> None:
    """The sources that ROOT records."""
    from sif_batch.jobs.upkeep.sources import list_recorded

    print_sources(list_recorded(root), as_json)


@sources.command("remove")
@click.argument("root")
@click.argument("name")
@json_option
def sources_remove(root: str, name: str, as_json: bool) -> None:
    """Forget a source. The next run takes its images out of the index."""
    from sif_batch.jobs.upkeep.sources import remove_source

    print_sources(remove_source(root, name), as_json)


def print_sources(report: dict[str, Any], as_json: bool) -> None:
    print_json(report) if as_json else show_sources(stdout(), report["sources"])


@cli.command()
@click.argument("root")
@click.option("--keep", type=click.IntRange(min=1), default=3, show_default=True, help="Newest releases that stay.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="Nothing younger goes.",
)
@click.option("--delete", is_flag=True, help="Remove it. Without, it is only listed.")
@json_option
def gc(root: str, keep: int, older_than: float, delete: bool, as_json: bool) -> None:
    """List what is no longer needed, or remove it.

    Never what a kept release, an unfinished plan or the next night needs.
    """
    from sif_batch.jobs.upkeep.gc import collect_garbage

    report = collect_garbage(root, keep, older_than, delete, Reporter())
    print_json(report) if as_json else show_garbage(stdout(), report)


@cli.command()
@click.argument("root")
@click.option("--yes", is_flag=True, help="Write the new parts. Without, it is only told what would be.")
@json_option
def compact(root: str, yes: bool, as_json: bool) -> None:
    """Copy many small or mostly dead parts into few.

    Rows are copied, never embedded again; the current release stays what it is. A row that neither a release nor the
    next night needs is left behind, and goes with its old part: sif-batch gc removes those by its own rules.
    """
    from sif_batch.jobs.upkeep.compact import compact as work

    report = work(root, yes, Reporter())
    print_json(report) if as_json else show_compaction(stdout(), report)


@cli.command()
@click.argument("root")
@click.argument("images", nargs=-1, required=True, metavar="KEY|SHA256...")
@click.option("--yes", is_flag=True, help="Erase them. Without, what would be written anew is only listed.")
@json_option
def erase(root: str, images: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Erase images for good: a takedown.

    Parts, codes, quantizers, releases, listings and pages of runs that hold one are written anew without it, and it is
    never indexed again: by KEY whatever bytes that has, by SHA256 these bytes under whatever key. A KEY may be a path
    or uri, or a whole container. What a source holds is not touched. After an interruption the same command finishes.
    """
    from sif_batch.jobs.upkeep.erase import erase as work

    report = work(root, images, yes, Reporter())
    print_json(report) if as_json else show_erasure(stdout(), report)


def print_entry(entry: dict[str, Any], as_json: bool) -> None:
    held = "; publishing is held until sif-batch publish" if entry["held"] else ""
    print_json(entry) if as_json else click.echo(f"current   {entry['n']}: {entry['release']}{held}")

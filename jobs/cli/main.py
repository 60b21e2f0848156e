"""sif-batch: the command line. Each command parses, makes frozen settings, calls and shows."""

import json
import os
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click
from pydantic import BaseModel, ValidationError
from rich.console import Console

import sif_batch
from sif_batch.config import GateSettings, IndexSettings, Int8Settings
from sif_batch.errors import SifBatchError
from sif_batch.failures import PERMANENT, TRANSIENT
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.run_record import note_end
from sif_batch.jobs.terminal import table
from sif_batch.machine.child import close_shared_children
from sif_batch.machine.memory import parse_size
from sif_batch.pipelines.engines import stop_serving
from sif_batch.pipelines.logs import silence
from sif_batch.storage.lease import release_all
from sif_batch.storage.store import FULL

EXIT = {"published": 0, "unchanged": 0, "held": 0, "embedded": 0, "error": 1, "refused": 3}
EXIT_DAMAGED = 5
CONFIG = "sif_batch.config"
PLACE_NAMES = ("root", "sources", "beam")
GIVE_BACK_S = 5.0
LIFTED = {"bits": "auto", "max_bytes_per_row": "none", "max_query_ms": "none"}  # what takes back a recorded choice


def read_config(context: click.Context, _: click.Parameter, file: str | None) -> None:
    """Take what the command line leaves out from a TOML file: its top level, and its table of the command's name."""
    if file is None:
        return
    try:
        with open(file, "rb") as opened:
            document = tomllib.load(opened)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"--config {file}: {error}") from error
    command = str(context.info_name)
    tables = {name: value for name, value in document.items() if isinstance(value, dict)}
    if wrong := sorted(set(tables) - set(cli.commands)):
        raise click.UsageError(f"--config {file}: [{wrong[0]}] is no command of sif-batch")
    own = {_option(name): value for name, value in tables.get(command, {}).items()}
    shared = {_option(name): value for name, value in document.items() if name not in tables}
    known = {str(parameter.name) for parameter in context.command.params} | set(PLACE_NAMES)
    of_all = known | {str(parameter.name) for other in cli.commands.values() for parameter in other.params}
    for name in [*(set(own) - known), *(set(shared) - of_all)]:
        raise click.UsageError(f"--config {file}: {command} has no option {name.replace('_', '-')!r}")
    named = shared | own
    context.default_map = {name: value for name, value in named.items() if name in known}
    context.meta[CONFIG] = named


def _option(name: str) -> str:
    return name.replace("-", "_")


class Limit(click.ParamType):
    """A number of a range, or `none`."""

    name = "limit"

    def __init__(self, number: click.IntRange | click.FloatRange):
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "none" else self.number.convert(value, param, ctx)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json and --config, which every command has."""
    command = click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="A TOML file with any of these options, and root, sources and beam; the command line stands before it.",
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")(
        command
    )


ENCODER_OPTIONS = (
    click.option(
        "--encoder",
        metavar="NAME|FILE.onnx",
        help="The network to embed with: a name that `sif-batch encoders` lists, timm:NAME, or your own ONNX file. "
        "ROOT records it. Default: efficientnet_lite0.",
    ),
    click.option("--weights", metavar="FILE_OR_URL", help="A state dict for that network, instead of its own weights."),
    click.option("--random-weights", is_flag=True, default=None, help="Leave the network untrained."),
    click.option(
        "--preprocess",
        metavar="SPEC|exact",
        help="exact: the weights' own transforms to the pixel, which is slower. SPEC: a TOML or JSON file: size, fit, "
        "resize, filter, mean, std, order (rgb, bgr), range (1, 255), pooling, ...",
    ),
    click.option("--fit", type=click.Choice(["crop", "pad"]), help="Crop images to a square, or pad them."),
    click.option(
        "--pooling",
        type=click.Choice(["avg", "gem", "max", "cls", "own"]),
        help="How the network's last map becomes a vector. Default: as the network does itself.",
    ),
    click.option(
        "--views",
        type=click.Choice(["none", "flip", "scales", "flip+scales"]),
        help="Average over the mirror image, over three scales, or both: 2, 3 or 6 times the work.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "int8"]),
        help="int8 is about twice as fast on CPUs with VNNI. It is calibrated on images of the sources, once, and must "
        "pass a measure of its own. Default: fp32.",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(sif_batch.__version__, prog_name="sif-batch")
def cli() -> None:
    """Images in, a published similarity index out, every night.

    Exit codes: 0 done, 1 error, 2 wrong usage, 3 the gate refused, 4 another run holds ROOT, 5 damage found, 130/143
    interrupted.
    """


SOURCE_OPTIONS = (
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Take files in whose path in the source matches, whatever their extension.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB|@FILE",
        help="Leave files out whose path in the source matches a glob, or a line of FILE, which is read every night.",
    ),
    click.option(
        "--inventory",
        metavar="FILE|GLOB",
        help="Parquet, CSV or S3's manifest.json that lists the SOURCE's files (key, size, version or e_tag), as "
        "buckets' inventories do: it is read every night, and nobody walks through the SOURCE.",
    ),
    click.option("--image-column", metavar="NAME", help="Of Parquet sources: the column of image bytes."),
    click.option(
        "--keep",
        multiple=True,
        metavar="COLUMN",
        help="Of Parquet sources: a column to keep with the images; * for all.",
    ),
)
EMBED_OPTIONS = (
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Threads that decode and embed. Default: the cores this process may use.",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "torch-cpu"]),
        help="Where the network runs; auto takes the GPUs that there are. torch-cpu tries the GPU's way without one.",
    ),
    click.option("--shard-images", type=click.IntRange(1, 65_535), help="Images in one unit of work. Default: 1000."),
    click.option("--max-pixels", type=click.IntRange(min=1), help="Larger images are too_large. Default: 100000000."),
    click.option("--max-bytes", type=click.IntRange(min=1), help="Larger files are too_large. Default: 536870912."),
    click.option(
        "--image-timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="An image that takes longer to read and decode fails as timeout. Default: 120.",
    ),
    click.option("--retry-failed", is_flag=True, default=None, help="Try all failed images once more."),
    click.option(
        "--max-attempts", type=click.IntRange(1, 100), help="Nights that a passing failure is tried again. Default: 3."
    ),
    click.option(
        "--min-kept",
        type=click.FloatRange(0, 1),
        help="Of ten nearest neighbours int8 must keep this share. Default: 0.9.",
    ),
    click.option("--labels", type=click.Choice(["folder"]), help="Judge int8 by the mAP of these labels instead."),
    click.option("--max-map-loss", type=click.FloatRange(0, 1), help="With --labels: mAP that int8 may cost."),
)
LIMIT_OPTIONS = (
    click.option(
        "--max-memory",
        metavar="SIZE",
        help="Memory that the run may take with all its processes, such as 4G: fewer of them work at once, and one "
        "that takes more than its share ends with the image that it is at.",
    ),
)
DRY_RUN = (
    click.option(
        "--dry-run",
        is_flag=True,
        help="List, plan, time a sample, and say how long the run will take, how much disk and memory; write nothing.",
    ),
)
REPORT_OPTIONS = (
    click.option(
        "--report/--no-report",
        default=None,
        envvar="SIF_BATCH_REPORT",
        show_envvar=True,
        help="Write report.html and the map beside run.json. Default: yes, where the extra `report` is installed.",
    ),
)

INDEX_OPTIONS = (
    click.option(
        "--family",
        type=click.Choice(["auto", "flat", "ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw"]),
        help="Kind of index; auto is exact (flat) below about 10,000 images, else ivf-pq. ROOT records this and the "
        "other options of the index.",
    ),
    click.option(
        "--metric",
        type=click.Choice(["cosine", "euclidean", "pearson"]),
        help="Similarity: the cosine, 1 / (1 + Euclidean distance), or the correlation. Default: cosine.",
    ),
    click.option("--power/--no-power", default=None, help="Take the signed square root of each number first."),
    click.option(
        "--whitening",
        type=click.FloatRange(0, 1),
        help="Divide principal components by their standard deviation to this power: 0.5 and 1 help to find the same "
        "object, not the same kind. Default: 0.",
    ),
    click.option(
        "--recall",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Share of the k nearest that a query must find; the gate holds it. Default: 0.95.",
    ),
    click.option("--k", type=click.IntRange(1, 100), help="The k of --recall. Default: 10."),
    click.option(
        "--bits",
        type=click.Choice(["4", "8", "32", "auto"]),
        help="Of a code's numbers. ivf-pq: 4 or 8; ivf-flat: 8 or 32. Default: auto.",
    ),
    click.option(
        "--max-bytes-per-row",
        type=Limit(click.IntRange(min=1)),
        metavar="N|none",
        help="Limit of code and kept row together. Default: none.",
    ),
    click.option(
        "--max-query-ms",
        type=Limit(click.FloatRange(min=0, min_open=True)),
        metavar="X|none",
        help="Limit of one query alone on one core: an exact index gives way sooner; one that is slower here is "
        "refused. Default: none.",
    ),
    click.option(
        "--retrain",
        type=click.Choice(["auto", "never", "now"]),
        help="Train another quantizer. auto: when the images have doubled since the last training, or new ones drifted "
        "too far from it. Default: auto.",
    ),
    click.option(
        "--max-failures",
        type=click.FloatRange(0, 1),
        help="Share of failed images that the gate lets pass. Default: 0.05.",
    ),
    click.option(
        "--max-shrink",
        type=click.FloatRange(0, 1),
        help="Share of the last release's images that may go. Default: 0.5.",
    ),
    click.option(
        "--scratch",
        metavar="DIR",
        help="Folder for what does not fit into memory as a release is assembled. Default: in ROOT, or the system's.",
    ),
    click.option(
        "--metadata",
        metavar="TABLE",
        help="Parquet or CSV, a path or URL: its columns join the images by `key`. ROOT records it; none forgets it.",
    ),
    click.option("--no-gate", is_flag=True, default=None, help="Publish whatever the gate says; history records it."),
)
PLACES = click.argument("places", nargs=-1, metavar="[[NAME=]SOURCE]... ROOT [-- BEAM OPTIONS]")


def options_of(*groups: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator that adds these options, in order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


@cli.command()
@PLACES
@options_of(ENCODER_OPTIONS, SOURCE_OPTIONS, EMBED_OPTIONS, LIMIT_OPTIONS, INDEX_OPTIONS, REPORT_OPTIONS, DRY_RUN)
@json_option
def run(places: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """List, embed what is new, index, measure, publish: the nightly job.

    A SOURCE is a directory or glob of image files, tar archives (*.tar) or Parquet files (*.parquet): a path or an
    fsspec URL. Without SOURCE, those that ROOT records. Options of Beam may follow after --.
    """
    run_night(("embed", "index"), places, as_json, options)


@cli.command()
@PLACES
@options_of(ENCODER_OPTIONS, SOURCE_OPTIONS, EMBED_OPTIONS, LIMIT_OPTIONS, REPORT_OPTIONS)
@json_option
def embed(places: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """The first half of run: list and embed what is new.

    Makes parts and no release; `sif-batch index ROOT` is the other half.
    """
    run_night(("embed",), places, as_json, options)


@cli.command()
@click.argument("places", nargs=-1, metavar="ROOT [-- BEAM OPTIONS]")
@options_of(INDEX_OPTIONS, LIMIT_OPTIONS, REPORT_OPTIONS)
@json_option
def index(places: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """The second half of run: index, measure and publish.

    It takes the newest listing, whose images must be embedded; it reads no source.
    """
    if len(split_beam_options(places)[0]) > 1:
        raise click.UsageError("index takes a ROOT alone: it reads no SOURCE")
    run_night(("index",), places, as_json, options)


def run_night(halves: tuple[str, ...], places: tuple[str, ...], as_json: bool, options: dict[str, Any]) -> None:
    """What run, embed and index do with their arguments."""
    from sif_batch.jobs.nightly.run import run as work
    from sif_batch.jobs.settings import RunSettings
    from sif_batch.ledger.plan import Limits
    from sif_batch.model_export.request import EncoderRequest

    places, beam = split_beam_options(places)
    given = {name: value for name, value in options.items() if value is not None}
    dry_run = given.pop("dry_run", False)
    if "max_memory" in given:
        given["max_memory"] = parse_size(str(given["max_memory"]))
    given["index"] = {name: given.pop(name) for name in IndexSettings.model_fields if name in given}
    for name, word in LIFTED.items():
        if name in given["index"]:
            value = given["index"][name]
            given["index"][name] = None if value == word else int(value) if name == "bits" else value
    if "views" in given:
        given["views"] = tuple(view for view in given["views"].split("+") if view != "none")
    if given.pop("no_gate", False):
        given["enabled"] = False
    grouped: dict[str, type[BaseModel]] = {
        "encoder": EncoderRequest,
        "int8": Int8Settings,
        "limits": Limits,
        "gate": GateSettings,
    }
    for group, model in grouped.items():
        given[group] = model(**{name: given.pop(name) for name in model.model_fields if name in given})
    settings = RunSettings(sources=places[:-1], root=places[-1], beam=beam, **given)
    reporter = Reporter()
    if "DirectRunner" in " ".join(beam):
        reporter.say("DirectRunner is run as FnApiRunner")
    if dry_run:
        from sif_batch.jobs.nightly.dry_run import preflight

        foretold = preflight(settings, reporter)
        print_json(foretold) if as_json else table.show_forecast(stdout(), foretold)
        sys.exit(1 if foretold["problems"] else 0)
    result = work(settings, reporter, halves)
    print_json(result) if as_json else table.show_run(stdout(), result)
    sys.exit(EXIT[result["outcome"]])


@cli.command()
@click.argument("root", required=False, metavar="[ROOT]")
@json_option
def encoders(root: str | None, as_json: bool) -> None:
    """The networks that --encoder can name, and which are on this machine.

    With ROOT, those that it holds too.
    """
    from sif_batch.jobs.upkeep.encoders import list_encoders

    report = list_encoders(root)
    print_json(report) if as_json else table.show_encoders(stdout(), report["encoders"])


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
        table.show_hits(stdout(), answer.query, answer.hits)


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
    print_json(report) if as_json else table.show_facts(stdout(), report)


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
    print_json(report) if as_json else table.show_facts(stdout(), report)


@cli.command()
@click.argument("log")
@json_option
def usage(log: str, as_json: bool) -> None:
    """What a --feedback-log says: queries, clicks, time, what is asked and opened most."""
    from sif_batch.query.usage_log import summarise

    found = summarise(log)
    print_json(found) if as_json else table.show_usage(stdout(), found)


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
        print_json({"failures": found}) if as_json else table.show_failures(stdout(), found)
    else:
        report = status_of(root)
        print_json(report) if as_json else table.show_status(stdout(), report)


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
    print_json(report) if as_json else table.show_explanation(stdout(), report)


@cli.command()
@click.argument("place", metavar="ROOT|RELEASE")
@json_option
def verify(place: str, as_json: bool) -> None:
    """Compare every file with its checksum.

    The files of a release, or all that ROOT holds. Exit 5 if one is damaged.
    """
    from sif_batch.jobs.upkeep.verify import verify as check

    report = check(place)
    print_json(report) if as_json else table.show_damage(stdout(), report)
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
    print_json({"releases": found}) if as_json else table.show_releases(stdout(), found)


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

    show_entry(roll_back(root, release), as_json)


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

    show_entry(publish_by_hand(root, release), as_json)


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
    print_json(report) if as_json else table.show_differences(stdout(), report)


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

        show_sources(add_sources(root, places, replace, **options), as_json)


_sources_command("add", False, "Record more sources. The next run lists them.")
_sources_command("replace", True, "Record other places under the names of sources that ROOT has.")


@sources.command("list")
@click.argument("root")
@json_option
def sources_list(root: str, as_json: bool) -> None:
    """The sources that ROOT records."""
    from sif_batch.jobs.upkeep.sources import list_recorded

    show_sources(list_recorded(root), as_json)


@sources.command("remove")
@click.argument("root")
@click.argument("name")
@json_option
def sources_remove(root: str, name: str, as_json: bool) -> None:
    """Forget a source. The next run takes its images out of the index."""
    from sif_batch.jobs.upkeep.sources import remove_source

    show_sources(remove_source(root, name), as_json)


def show_sources(report: dict[str, Any], as_json: bool) -> None:
    print_json(report) if as_json else table.show_sources(stdout(), report["sources"])


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
    print_json(report) if as_json else table.show_garbage(stdout(), report)


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
    print_json(report) if as_json else table.show_compaction(stdout(), report)


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
    print_json(report) if as_json else table.show_erasure(stdout(), report)


def show_entry(entry: dict[str, Any], as_json: bool) -> None:
    held = "; publishing is held until sif-batch publish" if entry["held"] else ""
    print_json(entry) if as_json else click.echo(f"current   {entry['n']}: {entry['release']}{held}")


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
    print_json(found.report) if as_json else table.show_evaluation(stdout(), found.report)


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


@cli.command()
@click.argument("place", metavar="ROOT|RELEASE")
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address; 0.0.0.0: on all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8501, show_default=True, help="Listen on this port; 0: a free one."
)
@click.option(
    "--judgements", metavar="DIR", help="Let visitors keep their marks there, as evaluate --labels takes them."
)
@click.option("--feedback-log", metavar="FILE", help="Note queries and clicks there, one a line, without any image.")
@json_option
def serve(place: str, host: str, port: int, judgements: str | None, feedback_log: str | None, as_json: bool) -> None:
    """Look around in a release by a web page.

    Random images and uploaded ones, what is similar to them, marks and filters, the map, the report. A newer release
    of ROOT shows itself. Nobody is asked for a password: listen elsewhere than on this machine only where all may look.
    """
    from sif_batch.jobs.page.gallery import PageSettings
    from sif_batch.jobs.page.serve import check_extra
    from sif_batch.jobs.page.serve import serve as serve_page

    def ready(url: str, release: str, rows: int) -> None:
        if as_json:
            print_json({"url": url, "release": release, "rows": rows})
        else:
            click.echo(f"{rows:,} images of release {release[:12]} at {url}  (Ctrl+C ends it)")

    check_extra()
    serve_page(PageSettings(place=place, judgements=judgements, feedback_log=feedback_log), host, port, ready)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--id", "worker_id", required=True, help="Which worker this is.")
@click.option("--provision_endpoint", required=True, metavar="HOST:PORT", help="Where the engine says all else.")
def worker(worker_id: str, provision_endpoint: str) -> None:
    """What a node of a Flink or Spark cluster runs.

    An engine starts it, as `sif-batch-worker`: see docs/engines.md. Other options that it gives are passed over.
    """
    from sif_batch.pipelines.worker import boot

    boot(worker_id, provision_endpoint)


def split_at_options(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """click takes `--` away: what begins with -- behind other words is Beam's."""
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return words[:first], words[first:]


def split_beam_options(places: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The places, and Beam's options behind them.

    Where the command line gives no place, those of --config.
    """
    places, beam = split_at_options(places)
    config = click.get_current_context().meta.get(CONFIG, {})
    if not places and "root" in config:
        places = (*config.get("sources", ()), config["root"])
    if not places:
        raise click.UsageError("ROOT is missing")
    return places, beam or tuple(config.get("beam", ()))


def stdout() -> Console:
    """The terminal, or a file or pipe at a width that cuts no key."""
    width = None if sys.stdout.isatty() else 200
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def fail(error: BaseException, as_json: bool) -> int:
    """One clear line on stderr, with --json one object on stdout too. Returns the exit code."""
    remedy = getattr(error, "remedy", "")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror or error}"
        todo = "make room there (sif-batch gc)" if error.errno in FULL else "see to that place"
        remedy = f"{todo}; the same command goes on where this one stopped"
    else:
        message = str(error)
    message = " ".join(message.split())
    click.echo(f"sif-batch: {message}" + (f"; {remedy}" if remedy else ""), err=True)
    if as_json:
        print_json({"outcome": "error", "error": message, "remedy": remedy})
    return getattr(error, "exit_code", 1)


def interrupted(number: int, frame: object) -> None:
    """Stop at once: all that stands is whole, and what was in work is not there. ROOT is given back."""
    if "sif_batch.pipelines.runner" in sys.modules:
        from sif_batch.pipelines.runner import cancel

        cancel()
    slow = threading.Timer(GIVE_BACK_S, os._exit, [128 + number])  # the store does not answer: the lease ends by itself
    slow.daemon = True
    slow.start()
    close_shared_children()
    note_end("interrupted", signal=signal.Signals(number).name)
    release_all()
    click.echo("sif-batch: interrupted; the same command goes on where this one stopped", err=True)
    os._exit(128 + number)


def guarded(command: Callable[[], Any], as_json: bool) -> int:
    """Run a command and turn what it raises into a line and an exit code."""
    try:
        return command() or 0
    except click.ClickException as error:
        error.show()
        if as_json:
            print_json({"outcome": "error", "error": error.format_message(), "remedy": "sif-batch --help"})
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except ValidationError as error:
        return fail(
            SifBatchError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())), as_json
        )
    except (SifBatchError, OSError) as error:
        return fail(error, as_json)
    except Exception as error:
        traceback.print_exc()
        return fail(RuntimeError(f"a defect of sif-batch: {type(error).__name__}: {error}"), as_json)
    finally:
        close_shared_children()
        stop_serving()


def main() -> None:
    silence()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    sys.exit(guarded(lambda: cli(standalone_mode=False), "--json" in sys.argv[1:]))


def worker_main() -> None:
    """`sif-batch-worker`: `sif-batch worker`, for engines that take a command without arguments of its own."""
    sys.argv[1:1] = ["worker"]
    main()

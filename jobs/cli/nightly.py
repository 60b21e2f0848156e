"""Commands of the night: run, embed, index, and the worker of a cluster."""

import sys
from typing import Any

import click
from pydantic import BaseModel

from sif_batch.config import GateSettings, IndexSettings, Int8Settings
from sif_batch.jobs.cli.group import cli
from sif_batch.jobs.cli.options import (
    DRY_RUN,
    EMBED_OPTIONS,
    ENCODER_OPTIONS,
    INDEX_OPTIONS,
    LIFTED,
    LIMIT_OPTIONS,
    PLACES,
    REPORT_OPTIONS,
    SOURCE_OPTIONS,
    json_option,
    options_of,
    split_beam_options,
)
from sif_batch.jobs.cli.output import EXIT, print_json, stdout
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.terminal.nightly import show_forecast, show_run
from sif_batch.machine.memory import parse_size


@cli.command()
@PLACES
@options_of(ENCODER_OPTIONS, SOURCE_OPTIONS, EMBED_OPTIONS, LIMIT_OPTIONS, INDEX_OPTIONS, REPORT_OPTIONS, DRY_RUN)
@json_option
def run(places: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """List, embed what is new, index, measure, publish: the nightly job.

    A SOURCE is a directory or glob of image files, archives (*.tar, *.zip) or Parquet files (*.parquet): a path or an
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
        from sif_batch.jobs.nightly.dry_run import dry_run as foretell

        foretold = foretell(settings, reporter)
        print_json(foretold) if as_json else show_forecast(stdout(), foretold)
        sys.exit(1 if foretold["problems"] else 0)
    result = work(settings, reporter, halves)
    print_json(result) if as_json else show_run(stdout(), result)
    sys.exit(EXIT[result["outcome"]])


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--id", "worker_id", required=True, help="Which worker this is.")
@click.option("--provision_endpoint", required=True, metavar="HOST:PORT", help="Where the engine says all else.")
def worker(worker_id: str, provision_endpoint: str) -> None:
    """What a node of a Flink or Spark cluster runs.

    An engine starts it, as `sif-batch-worker`: see docs/engines.md. Other options that it gives are passed over.
    """
    from sif_batch.pipelines.worker import boot

    boot(worker_id, provision_endpoint)

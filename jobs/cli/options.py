"""The options that several commands share, and the words behind them."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from sif_batch.jobs.cli.config_file import CONFIG, read_config

LIFTED = {"bits": "auto", "max_bytes_per_row": "none", "max_query_ms": "none"}  # what takes back a recorded choice


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

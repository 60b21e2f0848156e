"""--config FILE.toml: options that the command line leaves out."""

import tomllib

import click

from sif_batch.jobs.cli.group import cli

CONFIG = "sif_batch.config"
PLACE_NAMES = ("root", "sources", "beam")


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

"""Write docs/reference.md from the code: every command with its options, the Python API, settings and kinds of failure.

python scripts/make_reference.py [--check]
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel

from sif_batch import config, failures, query
from sif_batch.jobs.cli.main import cli
from sif_batch.ledger.plan import Limits

OUT = Path(__file__).parents[1] / "docs" / "reference.md"
SETTINGS = (config.Source, config.IndexSettings, config.GateSettings, config.Int8Settings, Limits)
API = ("open", "refresh", "search", "search_vectors", "embed", "row_of", "vectors_of", "column", "columns", "encoder")


def commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, those of groups too."""
    for name in sorted(group.commands):
        command = group.commands[name]
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


def describe_command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100)
    return f"### `{name}`\n\n```text\n{command.get_help(context).strip()}\n```\n"


def describe_settings(model: type[BaseModel]) -> str:
    lines = [f"### `{model.__name__}`\n", _words(model.__doc__), "", "| name | type | default |", "| --- | --- | --- |"]
    for name, found in model.model_fields.items():
        kind = str(inspect.formatannotation(found.annotation)).replace("typing.", "").replace("|", "\\|")
        default = "required" if found.is_required() else f"`{found.get_default()!r}`".replace("|", "\\|")
        lines.append(f"| `{name}` | `{kind}` | {default} |")
    return "\n".join(lines) + "\n"


def describe_api() -> str:
    lines = [_words(query.Index.__doc__), ""]
    for name in API:
        member = inspect.getattr_static(query.Index, name)
        if isinstance(member, staticmethod):
            member = member.__func__
        function = getattr(member, "fget", None) or getattr(member, "func", None) or member
        is_call = function is member
        shown = f"{name}{inspect.signature(function)}" if is_call else name
        shown = shown.replace("(self, ", "(").replace("(self)", "()")
        shown = re.sub(r"sif_batch\.query\.([a-z_]+\.)?", "", shown)
        lines += [f"### `Index.{shown}`", "", _words(function.__doc__), ""]
    lines += [f"### `Hit({', '.join(query.Hit.__annotations__)})`", "", _words(query.Hit.__doc__), ""]
    return "\n".join(lines)


def _words(doc: str | None) -> str:
    return inspect.cleandoc(doc or "")


def make() -> str:
    """The whole page."""
    kinds = [
        f"| `{kind}` | {name} | {means} | {remedy} |"
        for name, found in (("permanent", failures.PERMANENT), ("transient", failures.TRANSIENT))
        for kind, (means, remedy) in found.items()
    ]
    parts = [
        "# Reference\n",
        "Written from the code by `python scripts/make_reference.py`; a test holds that it is up to date.\n",
        "## Commands\n",
        "```text\n" + _words(cli.help) + "\n```\n",
        *(describe_command(name, command) for name, command in commands(cli, "sif-batch")),
        "## Python\n",
        describe_api(),
        "## Settings\n",
        "As they stand in root.json, release.json and run.json.\n",
        *(describe_settings(model) for model in SETTINGS),
        "## Kinds of failure\n",
        "\n".join(["| kind | | means | what to do |", "| --- | --- | --- | --- |", *kinds]) + "\n",
    ]
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is out of date")
    given = parser.parse_args()
    text = make()
    if not given.check:
        OUT.write_text(text, encoding="utf-8")
    elif not OUT.exists() or OUT.read_text(encoding="utf-8") != text:
        sys.exit(f"{OUT.name} is out of date: python scripts/make_reference.py writes it anew")


if __name__ == "__main__":
    main()

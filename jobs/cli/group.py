"""The click group that all commands belong to."""

import click

import sif_batch


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(sif_batch.__version__, prog_name="sif-batch")
def cli() -> None:
    """Images in, a published similarity index out, every night.

    Exit codes: 0 done, 1 error, 2 wrong usage, 3 the gate refused, 4 another run holds ROOT, 5 damage found, 130/143
    interrupted.
    """

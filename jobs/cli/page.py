"""The command that serves the page of a release."""

import click

from sif_batch.jobs.cli.group import cli
from sif_batch.jobs.cli.options import json_option
from sif_batch.jobs.cli.output import print_json


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

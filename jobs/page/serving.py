"""The gallery of this process: opened once, before the first visitor."""

from sif_batch.jobs.page.gallery import Gallery, PageSettings

_open: list[Gallery] = []


def open_gallery(settings: PageSettings, **options: float) -> Gallery:
    """Open what is to be shown, in place of what was before. Raises SifBatchError."""
    _open[:] = [Gallery(settings, **options)]
    return _open[0]


def gallery() -> Gallery:
    return _open[0]

"""A table of aligned columns."""

from rich import box
from rich.table import Table


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without frame, ruled below its head; what does not fit is folded."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table

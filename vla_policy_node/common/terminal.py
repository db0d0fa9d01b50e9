"""What all commands print on: text as it is, tables that fit, whole lines where nobody looks."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

_PIPED_COLUMNS = 10_000  # no line is cut or folded
_NAME_COLUMNS = 24


def make_console() -> Console:
    """Return a console that takes text as it is: names of files and topics are no markup.

    Into a file or a pipe lines are as long as they have to be, without colours.
    """
    console = Console(markup=False, highlight=False)
    if not console.is_terminal and not os.environ.get('COLUMNS'):
        console.width = _PIPED_COLUMNS
    return console


def fitted(table: Table, names: int = 0) -> Table:
    """Have a table fold its cells where a terminal is narrow; those of column `names` last."""
    for column in table.columns:
        column.overflow, column.no_wrap = 'fold', False
    column = table.columns[names]
    longest = max((len(str(cell)) for cell in (column.header, *column.cells)), default=0)
    column.min_width = min(longest, _NAME_COLUMNS)
    return table

"""Tables for people, which programs can read too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

MAX_WIDTH = 10_000
"""Columns of a table that no person reads; what is in it has its own limits below that."""


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below their titles; folded to the width of a terminal, and nowhere else."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        # As Text, because a name or path may look like rich's markup or one of its emoji.
        table.add_row(*(Text(shown(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
    console.print(table)


def shown(text: str) -> str:
    """`text` without what a terminal obeys or cannot show; names of files may hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)

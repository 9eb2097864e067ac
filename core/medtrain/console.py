"""How medtrain prints: the console and its tables, for its own commands and for those of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["cell", "console", "table"]


def console(stderr: bool = False) -> Console:
    """Standard output (or error); as wide as the text when it is not a terminal."""
    # Brackets in our texts are types and section names, not markup.
    screen = Console(stderr=stderr, highlight=False, markup=False)
    return screen if screen.is_terminal else Console(stderr=stderr, highlight=False, markup=False, width=120)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A plain table; numbers right-aligned, undefined values as a dash."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], (int, float)) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*[cell(value) for value in row])
    return made


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

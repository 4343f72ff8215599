"""A table that fits its terminal: columns for which there is no room go, the least important first; it says which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

_GAP = 2
_LEAST_NAME = 16


@dataclass(frozen=True, slots=True)
class Column:
    """A column."""

    name: str
    """Its head."""
    rank: int = 0
    """The larger, the earlier it goes; 0 stays."""
    is_number: bool = False
    """True: flush right."""
    is_name: bool = False
    """True: cut to a third of the width, so that a long name does not cost other columns their room."""


def fitted_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Table:
    """Return a table of texts, at most so wide unless what must stay is wider.

    Args:
        columns: from left to right.
        rows: a text per column; never taken for markup, and cleaned of what a terminal takes for commands.
        width: characters there are.
    """
    most_name = max(_LEAST_NAME, width // 3)
    shown = [
        [
            _shorten(cell, most_name) if column.is_name else printable(cell)
            for column, cell in zip(columns, row, strict=True)
        ]
        for row in rows
    ]
    widths = [max(map(cell_len, (column.name, *cells))) for column, *cells in zip(columns, *shown, strict=True)]
    kept = set(range(len(columns)))
    while sum(widths[index] + _GAP for index in kept) - _GAP > width:
        last = max(kept, key=lambda index: (columns[index].rank, index))
        if not columns[last].rank:
            break
        kept.discard(last)
    left_out = [column.name for index, column in enumerate(columns) if index not in kept]
    caption = Text(f"no room here for: {', '.join(left_out)}", "dim") if left_out else None
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold", caption=caption)
    table.caption_justify = "left"
    for index in sorted(kept):
        is_number = columns[index].is_number
        table.add_column(
            columns[index].name,
            justify="right" if is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=widths[index] if is_number else None,  # half a number is worse than none
        )
    for row in shown:
        table.add_row(*(Text(row[index]) for index in sorted(kept)))
    return table


def printable(text: str) -> str:
    """Return a text without control characters: a name must not move the cursor."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _shorten(name: str, most: int) -> str:
    text = printable(name)
    return text if len(text) <= most else text[: most - 1] + "…"

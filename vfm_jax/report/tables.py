"""Small tables of results: for a terminal, for a file, for another program."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from vfm_jax.report.numbers import format_value

Rows = Sequence[Mapping[str, Any]]


def _columns(rows: Rows, columns: Sequence[str] | None) -> list[str]:
    """The columns asked for, or all of them in order of first appearance."""
    return list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _right_aligned(rows: Rows, name: str) -> bool:
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and all(_is_number(value) for value in values)


def table_text(rows: Rows, columns: Sequence[str] | None = None, title: str = "") -> str:
    """The table as plain lines, numbers aligned to the right; nothing but text, whatever reads it."""
    columns = _columns(rows, columns)
    cells = [[format_value(row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [_right_aligned(rows, name) for name in columns]

    def line(texts: Sequence[str]) -> str:
        padded = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([*([title] if title else []), line(columns), rule, *map(line, cells)])


def print_table(
    rows: Rows, columns: Sequence[str] | None = None, title: str = "", file: TextIO | None = None
) -> None:
    """Prints the table: ruled and bold on a terminal, plain lines anywhere else (never cut to a width)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    file = file or sys.stdout
    console = Console(file=file)
    if not console.is_terminal or console.is_dumb_terminal:
        print(table_text(rows, columns, title), file=file)
        return
    columns = _columns(rows, columns)
    table = Table(title=Text(title) if title else None, title_justify="left")
    for name in columns:
        table.add_column(Text(name), justify="right" if _right_aligned(rows, name) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(format_value(row.get(name))) for name in columns))
    console.print(table)


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def table_json(rows: Rows, columns: Sequence[str] | None = None) -> str:
    """The table as a JSON list of objects, numbers unrounded; a non-finite number is null."""
    columns = _columns(rows, columns)
    return json.dumps([{name: _json_value(row.get(name)) for name in columns} for row in rows], indent=1)

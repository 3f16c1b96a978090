"""Tables on standard output: formatted with rich on a terminal, aligned plain text if piped."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

PIPED_WIDTH = 120


def width() -> int:
    """Return the number of columns of the terminal, or a fixed number if output is piped."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print rows under headers; columns whose index is in `right` are right-aligned."""
    if sys.stdout.isatty():
        _print_rich(headers, rows, right)
    else:
        print("\n".join(plain_table(headers, rows, right=right)))


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Return the lines of an aligned table without borders."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    return [
        "  ".join(
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    ]


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def matrix_lines(tasks: Sequence[str], matrix: Sequence[Sequence[float | None]], columns: int) -> list[str]:
    """Return the matrix as text no wider than `columns`, with numbered tasks, split into blocks of columns if needed.

    A row is the task learned last, a column the task tested; a block omits rows without a value in it.
    """
    names = [f"{i + 1:>2} {_middle_cut(task, 30)}" for i, task in enumerate(tasks)]
    left = max(map(len, names), default=0)
    per_block = max(1, (columns - left) // 6)
    lines: list[str] = []
    for start in range(0, len(tasks), per_block):
        block = range(start, min(start + per_block, len(tasks)))
        if lines:
            lines.append("")
        lines.append("after \\ on".ljust(left) + "".join(f"{j + 1:>6}" for j in block))
        for name, row in zip(names, matrix, strict=True):
            if any(row[j] is not None for j in block):
                cells = ("" if row[j] is None else f"{row[j]:.1f}" for j in block)
                lines.append((name.ljust(left) + "".join(f"{cell:>6}" for cell in cells)).rstrip())
    return lines


def _middle_cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}..{text[-(limit - limit // 2 - 1) :]}"

"""Tables of what kernels take or execute: written as Markdown, read again, and compared line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

# By architecture (or instruction set), kernel and launch; every line has the same columns, `launch` among them.
Rows = dict[tuple[str, ...], dict[str, str]]


def numbered(lines: Iterable[tuple[tuple[str, str, str], dict[str, str]]]) -> Rows:
    """Lines by architecture, kernel and launch; those that share all three are numbered."""
    rows: Rows = {}
    often: Counter[tuple[str, ...]] = Counter()
    for key, cells in lines:
        often[key] += 1
        label = key[2] if often[key] == 1 else f"{key[2]} ({often[key]})"
        rows[*key[:2], label] = cells | {"launch": label}
    return rows


def as_markdown(rows: Rows, title: str, command: str, test: str, how: str = "Compiled without a GPU.") -> str:
    """The table, one part per architecture; `command` rewrites it, `test` compares it, `how` says where it is from."""
    lines = [f"# {title}", "", f"{how} Written by `{command}`, compared by `{test}`."]
    architecture = ""
    for key, row in rows.items():
        if key[0] != architecture:
            architecture = key[0]
            lines += ["", f"## {architecture}", "", _line(name.replace("_", " ") for name in row)]
            lines.append(_line("---" for _ in row))
        lines.append(_line(row.values()))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def from_text(text: str) -> Rows:
    """The rows of a table that `as_markdown` wrote."""
    rows: Rows = {}
    architecture = ""
    names: list[str] = []
    for line in text.splitlines():
        if line.startswith("## "):
            architecture, names = line[3:], []
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not names:
                names = [cell.replace(" ", "_") for cell in cells]
            elif cells[0] != "---":
                row = dict(zip(names, cells, strict=True))
                rows[architecture, row["kernel"], row["launch"]] = row
    return rows


def differences(old: Rows, new: Rows) -> list[str]:
    """What moved, one line per launch: old -> new."""
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before is None or after is None:
            moved = "is new" if before is None else "is gone"
        else:
            names = [*after, *(name for name in before if name not in after)]
            moved = ", ".join(
                f"{name} {before.get(name, 'none')} -> {after.get(name, 'none')}"
                for name in names
                if before.get(name) != after.get(name)
            )
        if moved:
            lines.append(f"{key[0]} {key[1]}, {key[2]}: {moved}")
    return lines

"""Tables of one result file, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from bench.measure.report import (
    Span,
    bytes_text,
    digits,
    first_line,
    is_timed,
    main_of,
    ratio_of,
    shape_text,
    time_of,
    time_texts,
    untimed_text,
)
from bench.reading.files import Record, Results, ceilings_of, conditions, families, is_gpu
from bench.reading.targets import target_of

LEGEND = (
    "Each ratio is that variant's time over ours, taken turn by turn: **more than 1 means that ours is faster**. In "
    "brackets, and under 10-90 %, stand the 10th and 90th percentile."
)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """A Markdown table; right: the columns that are aligned to the right."""
    rule = ["---:" if one else "---" for one in right] + ["---"] * (len(head) - len(right))
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (head, *lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


class Column(NamedTuple):
    """A column of a group's table; kept: also where it says nothing, or the same of every case."""

    head: str
    cell: Callable[[Record], str]
    kept: bool = False
    right: bool = False


def _ours(record: Record) -> dict[str, Any]:
    return record["variants"].get(main_of(record), {})


def _time(record: Record) -> str:
    ours = _ours(record)
    return time_texts(time_of(ours))[0] if is_timed(ours) else untimed_text(ours)


def _spread(record: Record) -> str:
    ours = _ours(record)
    return time_texts(time_of(ours))[1] if is_timed(ours) else "-"


def _share(record: Record) -> str:
    ours = _ours(record)
    return f"{ours['roofline_share']:.0%}" if is_timed(ours) and "roofline_share" in ours else "-"


def _check(record: Record) -> str:
    ours = _ours(record)
    return "FAILED" if "failed" in ours else ours.get("checked", "-") if is_timed(ours) else "-"


def ratio_text(ratio: Span) -> str:
    """A ratio and its spread."""
    return f"{digits(ratio.median)} ({digits(ratio.low)}-{digits(ratio.high)})"


def _against(record: Record, name: str, gpu: bool) -> str:
    variant, ratio = record["variants"].get(name), ratio_of(record, name)
    if variant is None or name == main_of(record):
        return "-"
    if "failed" in variant:
        return untimed_text(variant)
    if ratio is None:
        return "-"
    target = target_of(record, name, gpu)
    missed = target is not None and ratio.median < target.least
    return ratio_text(ratio) + (f", misses {target.least:.3g}" if target is not None and missed else "")


def names_of(records: Iterable[Record]) -> list[str]:
    """The variants that ours is compared with, in the order in which they appear; those that never ran are left out."""
    return list(dict.fromkeys(
        name for record in records for name, variant in record["variants"].items()
        if name != main_of(record) and (is_timed(variant) or "failed" in variant)
    ))  # fmt: skip


def _columns(records: Sequence[Record], gpu: bool) -> list[Column]:
    columns = [
        Column("operation", lambda record: record["operation"], kept=True),
        Column("shape", lambda record: shape_text(record["shape"]), kept=True),
        Column("dtype", lambda record: record.get("dtype", "-")),
        Column("threads", lambda record: "-" if gpu else str(record.get("threads", "-"))),
        Column("ours", _time, kept=True, right=True),
        Column("10-90 %", _spread, kept=True, right=True),
        Column("of ceiling", _share, right=True),
    ]
    for name in names_of(records):
        columns.append(Column(name, lambda record, name=name: _against(record, name, gpu), kept=True, right=True))
    return [
        *columns,
        Column("peak memory", lambda record: bytes_text(_ours(record).get("peak_bytes")), right=True),
        Column("check", _check),
    ]


def _left_out(records: Sequence[Record]) -> list[str]:
    """Which variants have no time for other reasons than a failed check, by reason; in how many cases if not in all."""
    counted: dict[str, dict[str, int]] = {}
    for record in records:
        for name, variant in record["variants"].items():
            if "skipped" in variant and "failed" not in variant:
                names = counted.setdefault(first_line(variant["skipped"]), {})
                names[name] = names.get(name, 0) + 1
    cases = {
        count: "" if count == len(records) else f" in {count} of {len(records)}" for count in range(len(records) + 1)
    }
    return [
        f"{' and '.join(f'`{name}`{cases[count]}' for name, count in names.items())} ({reason})"
        for reason, names in counted.items()
    ]


def _differs(records: Sequence[Record]) -> list[str]:
    """What the floors compute instead, where they say so."""
    said = {
        name: first_line(variant["checked"].removeprefix("not checked: "))
        for record in records
        for name, variant in record["variants"].items()
        if variant["role"] == "floor" and "checked" in variant
    }
    return [f"{name} ({what})" for name, what in said.items()]


def cases_table(records: Sequence[Record], gpu: bool) -> str:
    """One line a case. What all cases share, and a column that says nothing of any, goes into the sentences below."""
    shown, shared = [], []
    for column in _columns(records, gpu):
        values = {column.cell(record) for record in records}
        if column.kept or (len(values) > 1 and values != {"-", ""}):
            shown.append(column)
        elif values != {"-"}:
            value = values.pop()
            shared.append({"threads": "1 thread" if value == "1" else f"{value} threads",
                           "check": f"checked: {value}"}.get(column.head, value if column.head == "dtype"
                          else f"{column.head} {value}"))  # fmt: skip
    lines = [[column.cell(record) for column in shown] for record in records]
    text = markdown([column.head for column in shown], lines, [column.right for column in shown])
    notes = [("All", "; ".join(shared)), ("Floors, which compute less or something else, and are not checked:",
             ", ".join(_differs(records))), ("Left out:", "; ".join(_left_out(records)))]  # fmt: skip
    said = [f"{head} {what}." for head, what in notes if what]
    return text + ("\n\n" + " ".join(said) if said else "")


def group_table(group: str, records: Sequence[Record], gpu: bool) -> str:
    """The tables of a group, one where all its cases are compared with the same."""
    return "\n\n".join(cases_table(shown, gpu) for shown in families(group, records).values())


def tables(results: Results, groups: Sequence[str] = ()) -> str:
    """Every group of a file, or the named ones, under headings."""
    chosen, gpu = results.chosen(groups), is_gpu(results)
    parts = [f"### {name}\n\n{group_table(name, records, gpu)}" for name, records in chosen.items()]
    return "\n\n".join([conditions_text(results), LEGEND, *parts])


def conditions_text(results: Results) -> str:
    """A sentence: what was measured on what, with which versions, when, of which commit."""
    at = conditions(results)
    machine = ", ".join(part for part in (at.machine, at.threads, at.versions()) if part)
    ceilings = ceilings_of(results)
    limits = ", ".join(
        f"{name} {digits(rate / 1e9)} {'GB/s' if name == 'copies' else 'GFLOP/s'}" for name, rate in ceilings.items()
    )
    when = f", {at.date}" if at.date else ""
    of = f", commit {at.commit}" if at.commit else ""
    return f"{machine}{when}{of} (`{results.name}`)." + (f" Its ceilings, measured: {limits}." if limits else "")

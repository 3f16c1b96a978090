"""Tables of one result file, in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from bench.core.timing import Span
from bench.report.results import Line, Record, Results, digits, summarise, time_text
from bench.report.targets import verdicts

# Groups shown in the README's table and figure, if a file has them.
HEADLINES = ("layers", "gated_adapter", "adamw", "step", "importance_pass", "tasks")


def paragraph(text: str) -> str:
    """Return a text in lines of at most 120 characters, without breaking words."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (head, *lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(head), *rows[1:]))


def headlines(results: Results) -> list[Line]:
    """Return the summaries that the README shows of a file, as table and as figure."""
    there = {record.group for record in results.records}
    return summarise(results.of([group for group in HEADLINES if group in there]))


def _cell(line: Line, role: str) -> str:
    return "<br>".join(f"{one.name} **{one.text}**" for one in line.summaries if one.role == role) or "-"


def summary_table(lines: Sequence[Line]) -> str:
    """Return one line per operation: the geometric mean of each competitor's ratios, and the worst and best case."""
    rows = [
        (line.title + (f" (*busy*: {line.busy})" if line.busy else ""), str(line.cases), _cell(line, "floor"),
         _cell(line, "rival"))
        for line in lines
    ]  # fmt: skip
    return markdown(("operation", "cases", "floors: less work", "rivals: the same work"), rows)


def targets_table(results: Results) -> str:
    """Return the targets for this kind of machine, the number of cases that meet them, and the worst case of each."""
    rows = []
    for target, met, count, worst in verdicts(results.device, results.records):
        word = "not measured" if not count else "**met**" if met == count else "partly" if met else "missed"
        counted = f"{word}: {met} of {count}" if count else word
        rows.append((target.words, target.against, f"{target.least:.3g}", counted, worst))
    return markdown(("target", "against", "at least", "met in cases", "worst case"), rows)


def _ratio(ratio: Span | None) -> str:
    return "-" if ratio is None else f"{digits(ratio.median)} ({digits(ratio.low)}-{digits(ratio.high)})"


def _bytes(count: float | None) -> str:
    return "-" if count is None else f"{digits(count / 2**20)} MiB"


def cases_table(records: Sequence[Record]) -> str:
    """Return one line per case: our time, its share of the machine's ceilings, and competitors' times over ours."""
    names = list(dict.fromkeys(one.name for record in records for one in record.others))
    memory = any(record.ours and record.ours.info.get("peak_bytes") for record in records)
    rows = []
    for record in records:
        ours, others = record.ours, {one.name: one.ratio for one in record.others}
        info = {} if ours is None else ours.info
        share = info.get("roofline_share")
        rows.append((
            record.operation, record.sizes, record.dtype,
            "no time" if ours is None else time_text(ours.time) + (" *busy*" if info.get("busy") else ""),
            "-" if share is None else f"{share:.0%}", *(_ratio(others.get(name)) for name in names),
            *([_bytes(info.get("peak_bytes"))] if memory else []),
        ))  # fmt: skip
    head = ("operation", "shape", "dtype", "ours (10-90 %)", "of ceiling", *names, *(["peak memory"] if memory else []))
    return markdown(head, rows)


def tables(results: Results, groups: Sequence[str] = ()) -> str:
    """Return the cases of every group of a file, or of the named ones."""
    records = results.of(groups)
    found = dict.fromkeys(record.group for record in records)
    parts = [f"**{group}**\n\n{cases_table([one for one in records if one.group == group])}" for group in found]
    differing = {
        f"{one.name} ({one.info['checked'].removeprefix('not checked: ')})"
        for record in records for one in record.entries if one.role == "floor"
    }  # fmt: skip
    notes = [paragraph(f"Floors, which are not checked: {', '.join(sorted(differing))}.")] if differing else []
    return "\n\n".join([*parts, *notes, *failures(results)])


def failures(results: Results) -> list[str]:
    """Return a paragraph with every failed check, if there are any."""
    return ["Checks that FAILED, so that there is no time:\n\n" + "\n".join(f"- {line}" for line in results.failed)] * (
        bool(results.failed)
    )

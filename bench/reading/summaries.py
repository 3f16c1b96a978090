"""All cases of an operation in one line, and the targets in one table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bench.measure.report import Span, digits, is_timed, ratio_of, shape_text
from bench.reading.files import Record, Results, is_gpu
from bench.reading.tables import markdown, names_of
from bench.reading.targets import CEILING, TARGETS, Target, has_failed, reached


class Summary(NamedTuple):
    """A variant over all cases of an operation; ratio: geometric mean, lowest and highest of the cases' medians."""

    name: str
    role: str
    ratio: Span
    cases: int


def operation_of(record: Record) -> str:
    """The operation; into how many tensors an optimizer's scores are divided is a size of it, not another operation."""
    return re.sub(r"^(soft_masked_adamw_ \w+), .*", r"\1", record["operation"])


class Line(NamedTuple):
    """An operation over all its cases; cases: of which something was timed. failed: what, and where."""

    operation: str
    dtype: str
    threads: int | None
    cases: int
    summaries: list[Summary]
    failed: list[str]

    def title(self, others: Iterable[Line]) -> str:
        """The operation, and what tells it from other lines of the same operation."""
        twins = [one for one in others if one.operation == self.operation]
        title = self.operation + (f", {self.dtype}" if len({one.dtype for one in twins}) > 1 else "")
        counts = {one.threads for one in twins if one.dtype == self.dtype}
        return title + (f", {self.threads} thread{'' if self.threads == 1 else 's'}" if len(counts) > 1 else "")


def _summaries(records: Sequence[Record]) -> list[Summary]:
    summaries = []
    for name in names_of(records):
        medians = [ratio.median for record in records if (ratio := ratio_of(record, name)) is not None]
        if medians:
            role = next(record["variants"][name]["role"] for record in records if name in record["variants"])
            mean = math.exp(math.fsum(map(math.log, medians)) / len(medians))
            summaries.append(Summary(name, role, Span(mean, min(medians), max(medians)), len(medians)))
    return summaries


def summarise(results: Results, groups: Sequence[str] = ()) -> list[Line]:
    """Every operation over all the shapes at which it was measured."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for records in results.chosen(groups).values():
        for record in records:
            key = operation_of(record), record.get("dtype", ""), record.get("threads")
            found.setdefault(key, []).append(record)
    return [
        Line(
            operation, dtype, threads, sum(any(map(is_timed, record["variants"].values())) for record in records),
            _summaries(records),
            [f"{name} at {shape_text(record['shape'])}"
             for record in records for name, variant in record["variants"].items() if "failed" in variant],
        )
        for (operation, dtype, threads), records in found.items()
    ]  # fmt: skip


def _cell(line: Line, role: str) -> str:
    texts = [
        f"{one.name} **{digits(one.ratio.median)}**"
        + (f" ({digits(one.ratio.low)}-{digits(one.ratio.high)})" if one.cases > 1 else "")
        for one in line.summaries
        if one.role == role
    ]
    return "<br>".join(texts) or "-"


def summary_table(results: Results, groups: Sequence[str] = ()) -> str:
    """One line an operation: the geometric mean of each variant's ratios, and the worst and best case."""
    lines = summarise(results, groups)
    rows = [
        (
            line.title(lines), str(line.cases), _cell(line, "floor"), _cell(line, "rival"),
            "FAILED: " + "; ".join(line.failed) if line.failed else "passed" if line.cases else "-",
        )
        for line in lines
    ]  # fmt: skip
    return markdown(("operation", "cases", "floors: less work", "rivals: the same work", "checks"), rows, (False, True))


def _verdict(target: Target, covered: Sequence[Record]) -> tuple[str, str]:
    """In how many of the cases a target is met, and the worst of them."""
    cases = [(value, record) for record in covered if (value := reached(record, target)) is not None]
    failed = sum(has_failed(record, target) for record in covered)
    lost = f", {failed} FAILED their check" if failed else ""
    if not cases:
        return "not measured" + lost, "-"
    met = sum(value >= target.least for value, _ in cases)
    worst, record = min(cases, key=lambda case: case[0])
    word = "**met**" if met == len(cases) and not failed else "missed" if not met else "partly"
    return f"{word}: {met} of {len(cases)}{lost}", f"{worst:.3g} ({record['operation']}, {shape_text(record['shape'])})"


def targets_table(results: Results) -> str:
    """What was set out to be reached on this kind of machine, in how many cases it is, and where it is furthest off."""
    rows, gpu = [], is_gpu(results)
    records = [record for group in results.chosen(()).values() for record in group]
    for target in (one for one in TARGETS if one.gpu == gpu):
        against = "the machine's ceiling" if target.against == CEILING else target.against
        verdict = _verdict(target, [record for record in records if target.covers(record)])
        rows.append((target.title, target.words, against, f"{target.least:.3g}", *verdict))
    return markdown(("operation", "target", "against", "at least", "met in cases", "worst case"), rows)

"""Two result files side by side: what got slower or faster beyond noise, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from bench.measure.report import (
    Span,
    aligned,
    digits,
    is_timed,
    main_of,
    ratio_of,
    shape_text,
    time_of,
    time_texts,
    untimed_text,
)
from bench.reading.files import Record, Results, ceilings_of, conditions

Verdict = Literal["slower", "faster", "within noise"]
Key = tuple[Any, ...]


def verdict(before: Span, after: Span) -> Verdict:
    """Of two times: within noise where their ranges from the 10th to the 90th percentile touch."""
    if after.low > before.high:
        return "slower"
    return "faster" if after.high < before.low else "within noise"


def _case_text(record: Record) -> str:
    along = f"along {record['curve']}" if record.get("curve") else ""
    return ", ".join(filter(None, (record["operation"], shape_text(record["shape"]), record.get("dtype"), along)))


class Change(NamedTuple):
    """A variant of a case that both files have, with the case in each."""

    old: Record
    new: Record
    name: str

    @property
    def before(self) -> dict[str, Any]:
        """The variant in the first file."""
        return self.old["variants"][self.name]

    @property
    def after(self) -> dict[str, Any]:
        """The variant in the second file."""
        return self.new["variants"][self.name]

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return self.before["role"] == "ours"

    @property
    def lost(self) -> bool:
        """Whether it had a time and then failed its check."""
        return is_timed(self.before) and "failed" in self.after

    @property
    def time(self) -> Verdict | None:
        """What became of its time, None where one of the files has none."""
        if not is_timed(self.before) or not is_timed(self.after):
            return None
        return verdict(time_of(self.before), time_of(self.after))

    @property
    def ratios(self) -> tuple[Span | None, Span | None]:
        """Its ratios to ours in both files, None where there is none, or one to something else."""
        if main_of(self.old) != main_of(self.new):
            return None, None
        return ratio_of(self.old, self.name), ratio_of(self.new, self.name)

    @property
    def ratio(self) -> Verdict | None:
        """What became of its ratio: "slower" where it now needs more times our time than before."""
        before, after = self.ratios
        return None if before is None or after is None else verdict(before, after)

    def __str__(self) -> str:
        return f"{_case_text(self.old)}: {self.name}"


class Comparison(NamedTuple):
    """Everything of two files. differences: of the conditions, one line each; with any, times are not comparable."""

    before: Results
    after: Results
    differences: list[str]
    changes: list[Change]
    only_before: list[str]
    only_after: list[str]

    def slower(self) -> list[Change]:
        """Ours beyond noise: by time, or where times are not comparable by ratio, the other then being faster beside
        ours than before. Variants of ours that failed their check count."""
        if not self.differences:
            return [change for change in self.changes if change.ours and (change.lost or change.time == "slower")]
        return [
            change for change in self.changes
            if (change.ours and change.lost) or (change.ratio == "slower" if change.ours else change.ratio == "faster")
        ]  # fmt: skip


def _thread_counts(results: Results) -> set[int | None]:
    return {record.get("threads") for cases in results.groups.values() for record in cases}


def _key_of(before: Results, after: Results) -> Callable[[Record], Key]:
    """What a case is known by; its threads only where one of the files has several numbers of them."""
    several = max(len(_thread_counts(before)), len(_thread_counts(after))) > 1

    def key(record: Record) -> Key:
        shape = tuple(sorted(record["shape"].items()))
        threads = record.get("threads") if several else None
        return record["operation"], shape, record.get("dtype"), record.get("curve"), threads

    return key


def _cases(results: Results, groups: Sequence[str], key: Callable[[Record], Key]) -> dict[Key, Record]:
    known = [name for name in groups if name in results.groups]
    chosen = results.chosen(known) if known or not groups else {}
    return {key(record): record for records in chosen.values() for record in records}


def _differences(before: Results, after: Results) -> list[str]:
    named = zip(conditions(before)._asdict().items(), conditions(after), strict=True)
    return [
        f"{name}: {old or 'unknown'} -> {new or 'unknown'}"
        for (name, old), new in named
        if name not in {"date", "commit"} and old != new
    ]


def _alone(here: dict[Key, Record], there: dict[Key, Record]) -> list[str]:
    """Cases that only one side has, and variants that only one side has of a case of both."""
    found = []
    for key, record in here.items():
        if key not in there:
            found.append(_case_text(record))
            continue
        found += [f"{_case_text(record)}: {name}" for name in record["variants"] if name not in there[key]["variants"]]
    return found


def compare(before: Results, after: Results, groups: Sequence[str] = ()) -> Comparison:
    """All cases of both files, or of the named groups. Raises Unreadable for a group that neither has."""
    missing = [name for name in groups if name not in before.groups and name not in after.groups]
    if missing:
        before.chosen(missing)  # raises
    key = _key_of(before, after)
    old, new = _cases(before, groups, key), _cases(after, groups, key)
    changes = [
        Change(record, new[known], name)
        for known, record in old.items() if known in new
        for name in record["variants"] if name in new[known]["variants"]
    ]  # fmt: skip
    return Comparison(before, after, _differences(before, after), changes, _alone(old, new), _alone(new, old))


def _time_text(variant: dict[str, Any]) -> str:
    if not is_timed(variant):
        return untimed_text(variant)
    text, spread = time_texts(time_of(variant))
    return f"{text} ({spread})"


def _ratio_text(ratio: Span | None) -> str:
    return "-" if ratio is None else f"{digits(ratio.median)} ({digits(ratio.low)}-{digits(ratio.high)})"


RATIO_WORDS: dict[Verdict | None, str] = {"slower": "up", "faster": "down", "within noise": "within noise"}
NOTE = """* what the ratios are to. Ratios cancel the machine's speed; up: in B the variant needs more times our time.
Within noise: the ranges from the 10th to the 90th percentile touch."""
HEAD = (
    "operation", "shape", "dtype", "variant", "A", "B", "B/A", "time", "A: theirs/ours", "B: theirs/ours", "ratio",
)  # fmt: skip


def _line(change: Change, comparable: bool) -> tuple[str, ...]:
    quotient = change.after["median_us"] / change.before["median_us"] if change.time else None
    record = change.old
    name = change.name if change.name != main_of(record) else f"{change.name} *"
    return (
        record["operation"], shape_text(record["shape"]), record.get("dtype", "-"), name, _time_text(change.before),
        _time_text(change.after), "-" if quotient is None else digits(quotient),
        "FAILED NOW" if change.lost else (change.time or "-") if comparable or not change.time else "not comparable",
        *map(_ratio_text, change.ratios), RATIO_WORDS.get(change.ratio, "-"),
    )  # fmt: skip


def _listed(head: str, lines: Sequence[str]) -> list[str]:
    return [f"{head} ({len(lines)}):", *(f"  {line}" for line in lines), ""] if lines else []


def _at(results: Results) -> str:
    at = conditions(results)
    known = ", ".join(filter(None, (at.machine, at.threads, at.versions(), at.date, at.commit)))
    return f"{results.path} ({known})"


def _speed(comparison: Comparison) -> str:
    """How fast the machine itself was, by the ceilings that were measured in both files."""
    old, new = (ceilings_of(results) for results in (comparison.before, comparison.after))
    shared = [name for name in old if name in new]
    if {conditions(comparison.before).sizes, conditions(comparison.after).sizes} != {"published"}:
        return ""  # tiny sizes measure no ceiling
    said = ", ".join(f"{name} {digits(new[name] / old[name])}" for name in shared)
    return f"The machine's own ceilings, B/A: {said}." if said else ""


def text(comparison: Comparison) -> str:
    """For a terminal: what failed, what differs, what changed beyond noise, then every variant of every case."""
    changes = comparison.changes
    lost = [f"{change}: {untimed_text(change.after)}" for change in changes if change.lost]
    lines = [f"A: {_at(comparison.before)}", f"B: {_at(comparison.after)}", ""]
    speed = _speed(comparison)
    lines += [speed, ""] if speed else []
    lines += _listed("!!! FAILED IN B, timed in A", lost)
    lines += _listed("Times are NOT comparable, only ratios are: conditions differ", comparison.differences)
    judged = "ratio" if comparison.differences else "time"
    said = [
        f"{change}: {change.time or 'FAILED NOW'}, ratio {RATIO_WORDS.get(change.ratio, '-')}"
        for change in comparison.slower()
    ]
    lines += _listed(f"Ours slower beyond noise, by {judged}", said) or [
        f"Ours nowhere slower beyond noise, by {judged}.",
        "",
    ]
    if changes:
        lines += [aligned([HEAD, *(_line(change, not comparison.differences) for change in changes)]), ""]
        lines += [NOTE, ""]
    else:
        lines += ["No case is in both files.", ""]
    lines += _listed("Only in A", comparison.only_before)
    return "\n".join(lines + _listed("Only in B", comparison.only_after)).rstrip()

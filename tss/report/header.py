"""Header of a report: the runs, their state, headline numbers, and what ran where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from tss.report import html
from tss.report.names import duration, number, size
from tss.report.run import Run

Summary = dict[str, Any]


def title(runs: Sequence[Run]) -> str:
    """Return the page's title."""
    names = [run.label for run in runs]
    return f"{runs[0].series}: {' and '.join(names)}" if runs[0].series else " · ".join(names)


def header(runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Return the header: title, state of the run, headline numbers, and what ran."""
    first, summary = runs[0], summaries[0]
    families = list(dict.fromkeys(t.split("/", 1)[0] for t in first.tasks))
    many = "family" if len(families) == 1 else "families"
    lead = f"{len(first.tasks)} tasks of {len(families)} {many} ({', '.join(families)})"
    started = next((e.get("time") for e in first.of("run_begin")), None)
    if started is not None:
        lead += f" · started {datetime.fromtimestamp(float(started)).strftime('%Y-%m-%d %H:%M')}"
    if first.seconds is not None:
        lead += f" · {duration(first.seconds)}"
    parts = [html.element("h1", title(runs)), html.element("p", lead, "lead")]
    parts += [
        html.prose("p", f"{run.label}: {note}" if len(runs) > 1 else note, "note")
        for run in runs
        for note in [*(f"Damaged: {line}" for line in run.damage), *run.notes]
    ]
    parts.append(html.cards(_cards(runs, summaries)))
    pairs = [
        ("Method", _of_runs(runs, lambda run: run.method)),
        ("Soft mask", soft_masks(runs)),
        ("Backbone", _of_runs(runs, lambda run: str(run.config.get("backbone", "–")))),
        ("Computed", _of_runs(runs, _computed)),
        ("Kept per task", _of_runs(runs, _kept)),
    ]
    if first.method == "tss" and summary.get("forgetting") == 0:
        pairs.append(
            (
                "Forgetting" + (f" · {first.label}" if len(runs) > 1 else ""),
                "exactly zero: what is sealed for a task never changes",
            )
        )
    parts.append(html.facts(pairs))
    return "\n".join(parts)


def soft_masks(runs: Sequence[Run]) -> str:
    """Return where the runs applied the soft mask; runs of other methods than `tss` are left out if there are both."""
    users = [run for run in runs if run.method == "tss"]
    return _of_runs(users or runs, lambda run: run.soft_mask)


def _of_runs(runs: Sequence[Run], value: Callable[[Run], str]) -> str:
    """Return a fact common to all runs, or the fact of each run if they differ."""
    values = {run.label: value(run) for run in runs}
    if len(set(values.values())) == 1:
        return value(runs[0])
    return " · ".join(text if text == label else f"{label}: {text}" for label, text in values.items())


def _computed(run: Run) -> str:
    """Return precision, device, threads and seed."""
    precision = run.first.get("precision") or run.env.get("precision") or run.config.get("precision")
    device, name = run.first.get("device"), run.env.get("device")
    where = f"{device} ({name})" if device and name and name != device else device or name
    threads = run.env.get("threads")
    many = None if threads is None else f"{threads} thread{'' if threads == 1 else 's'}"
    seed = run.config.get("seed")
    parts = [precision, where, many, None if seed is None else f"seed {seed}"]
    return ", ".join(str(part) for part in parts if part is not None) or "–"


def _kept(run: Run) -> str:
    """Return the mean bytes kept per task, with the head separate from the rest."""
    kept = [end["bytes"] for end in run.by_task("task_end").values() if end.get("bytes")]
    if not kept:
        return "–"
    own, head = (sum(parts.get(key, 0) for parts in kept) / len(kept) for key in ("gates", "head"))
    parts = [f"{size(own)} of {run.kept}"] if own else []
    return " and ".join([*parts, f"{size(head)} of head"]) + ", on average"


def _cards(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[str]:
    """Return the headline numbers of one run, or a card for each of several."""
    if len(runs) > 1:
        return [
            run_card(
                run.label, number(values.get("average")), values.get("forgetting"), "mean score after the last task"
            )
            for run, values in zip(runs, summaries, strict=True)
        ]
    (summary,) = summaries
    lost = summary.get("forgetting")
    cards = [
        html.card("Average", number(summary.get("average")), "mean score of all tasks after the last one"),
        html.card("Learning", number(summary.get("learning")), "mean score just after learning each task"),
        html.card("Forgetting", number(lost), "points lost since learning, mean over earlier tasks", _judged(lost)),
    ]
    if summary.get("transfer") is not None:
        value = number(summary["transfer"], signed=True)
        cards.append(html.card("Transfer", value, "points above each task learned alone"))
    return cards


def run_card(name: str, average: str, lost: float | None, how: str, digits: int = 2) -> str:
    """Return the headline numbers of one of several runs or methods.

    Args:
        name: name of the run or method.
        average: its mean score over tasks.
        lost: its forgetting, if it was measured.
        how: what kind of mean the score is.
        digits: decimals of the forgetting.
    """
    under = "" if lost is None else f"forgetting {number(lost, digits)}"
    return html.card(name, average, how, _judged(lost, digits), under)


def _judged(lost: float | None, digits: int = 2) -> str:
    """Return the class of a forgetting's colour."""
    return "" if lost is None else "good" if round(lost, digits) <= 0 else "bad"

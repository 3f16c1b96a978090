"""Short names for figures, and formatting of numbers."""

from __future__ import annotations

from collections.abc import Sequence

FAMILIES = {
    "asc": "aspect sentiment classification: how a review judges one aspect",
    "ccd": "classification of texts: topics, intents, opinions",
    "ner": "named entity recognition: which words name a person, a place and so on",
    "sum": "summarisation",
    "drg": "dialogue response generation: the next reply in a conversation",
}
"""Meanings of the short names of the paper's families."""


def shorten(name: str, limit: int = 26) -> str:
    """Replace the middle of `name` by an ellipsis if it is longer than `limit` characters."""
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return name[: limit - 1 - tail] + "…" + name[len(name) - tail :]


def distinct_parts(names: Sequence[str]) -> list[str]:
    """Remove the parts that all dotted names share: `model.encoder.layers.0.tss.down` -> `encoder.0.down`."""
    split = [name.split(".") for name in names]
    if len(split) < 2:
        return list(names)
    shared = set.intersection(*(set(parts) for parts in split))
    short = [".".join(p for p in parts if p not in shared) for parts in split]
    return short if len(set(short)) == len(names) else list(names)


def duration(seconds: float | None) -> str:
    """Format seconds: `4.2 s`, `3 min 05 s`, `2 h 14 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short_duration(seconds: float | None) -> str:
    """Format a time below a second: `12.3 µs`, `4.5 ms`."""
    if seconds is None:
        return "–"
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def size(count: float | None) -> str:
    """Format bytes in binary units: `393 KiB`."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Format a fixed-point number, `–` for None; a rounded zero has no minus sign."""
    if value is None:
        return "–"
    value = round(float(value), digits) + 0.0
    text = f"{value:+.{digits}f}" if signed and value != 0 else f"{value:.{digits}f}"
    return text.replace("-", "−")

"""What all task metrics ask of their input."""

from __future__ import annotations

from collections.abc import Sequence


def same_length(predictions: Sequence[object], references: Sequence[object]) -> None:
    """Raise ValueError unless there is one prediction for each of at least one reference."""
    if not references:
        raise ValueError("nothing to score: there are no references")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: one is needed for each")

"""Input checks shared by all task metrics."""

from __future__ import annotations

from collections.abc import Sequence


def same_length(predictions: Sequence[object], references: Sequence[object]) -> None:
    """Raise ValueError unless there is at least one reference and exactly one prediction for each."""
    if not references:
        raise ValueError("nothing to score: there are no references")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: one is needed for each")

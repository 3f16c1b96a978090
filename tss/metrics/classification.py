"""Macro-F1 and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from tss.metrics.checks import same_length

METRICS = ("macro_f1", "accuracy")


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return {"macro_f1", "accuracy"}, 0 to 100.

    Macro-F1 is the unweighted mean of F1 over the labels that occur in predictions or references (scikit-learn's rule);
    a label of the task that occurs in neither is not counted as 0.
    """
    same_length(predictions, references)
    from sklearn.metrics import accuracy_score, f1_score  # takes two seconds, so import it only for scoring

    macro = f1_score(list(references), list(predictions), average="macro", zero_division=0)  # type: ignore[arg-type]
    return {
        "macro_f1": 100.0 * float(macro),
        "accuracy": 100.0 * float(accuracy_score(list(references), list(predictions))),
    }


def signature() -> str:
    """Return the library, version and settings that `score` uses."""
    return f"scikit-learn {version('scikit-learn')}, average=macro over labels that occur, zero_division=0"

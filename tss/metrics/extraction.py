"""Entity F1 from BIO tags."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from tss.metrics.checks import same_length

METRICS = ("f1", "precision", "recall")


def score(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return {"f1", "precision", "recall"} of whole entities, micro-averaged, 0 to 100.

    seqeval's default mode follows conlleval: an I- tag that continues no entity starts a new one.

    Raises:
        ValueError: there are no references, or the numbers of rows or their lengths differ.
    """
    same_length(predictions, references)
    for i, (row, words) in enumerate(zip(predictions, references, strict=True)):
        if len(row) != len(words):
            raise ValueError(f"row {i} has {len(row)} predicted tags for {len(words)} words: one is needed for each")
    from seqeval.metrics import sequence_labeling as seqeval  # slow: imports scikit-learn

    truth, rows = [list(row) for row in references], [list(row) for row in predictions]
    metrics = (("f1", seqeval.f1_score), ("precision", seqeval.precision_score), ("recall", seqeval.recall_score))
    return {name: 100.0 * float(metric(truth, rows, zero_division=0)) for name, metric in metrics}  # type: ignore[arg-type]


def signature() -> str:
    """Return the library, version and settings that `score` uses."""
    return f"seqeval {version('seqeval')}, default mode (conlleval), average=micro, zero_division=0"

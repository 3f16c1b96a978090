"""Entity F1 from BIO tags."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from tss.metrics.checks import same_length

METRICS = ("f1", "precision", "recall")


def score(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """{"f1", "precision", "recall"} of whole entities, micro-averaged, 0 to 100.

    seqeval's default mode follows conlleval: an I- tag that nothing begins starts an entity of its own.

    Raises:
        ValueError: no references, or rows of different numbers or lengths.
    """
    same_length(predictions, references)
    for i, (row, truth) in enumerate(zip(predictions, references, strict=True)):
        if len(row) != len(truth):
            raise ValueError(f"row {i} has {len(row)} predicted tags for {len(truth)} words: one is needed for each")
    precision, recall, f1, _ = precision_recall_fscore_support(
        [list(row) for row in references], [list(row) for row in predictions], average="micro", zero_division=0
    )
    return {"f1": 100.0 * float(f1), "precision": 100.0 * float(precision), "recall": 100.0 * float(recall)}


def signature() -> str:
    """How the numbers were made."""
    return f"seqeval {version('seqeval')}, default mode (conlleval), average=micro, zero_division=0"

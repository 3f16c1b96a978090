"""ROUGE and BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from sacrebleu.metrics.bleu import BLEU

from tss.metrics.checks import same_length

ROUGES = ("rouge1", "rouge2", "rougeL")
METRICS = (*ROUGES, "bleu")


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{"rouge1", "rouge2", "rougeL", "bleu"}, 0 to 100: ROUGE F with stemming, mean over rows; BLEU of the corpus."""
    same_length(predictions, references)
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: half a second that only scoring is to pay

    scorer = RougeScorer(list(ROUGES), use_stemmer=True)
    rows = [scorer.score(truth, text) for text, truth in zip(predictions, references, strict=True)]
    result = {name: 100.0 * sum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGES}
    result["bleu"] = float(_bleu().corpus_score(list(predictions), [list(references)]).score)
    return result


def signature() -> str:
    """How the numbers were made; for BLEU this is sacrebleu's own signature."""
    bleu = _bleu()
    bleu.corpus_score(["a"], [["a"]])  # the number of references is part of the signature
    return f"rouge-score {version('rouge-score')}, stemmer, F, mean over rows; BLEU {bleu.get_signature()}"


def _bleu() -> BLEU:
    # Replies are often lower-cased and tokenised already; sacrebleu would warn about that on every call.
    return BLEU(force=True)

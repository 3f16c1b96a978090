"""ROUGE and BLEU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import version

from sacrebleu.metrics.bleu import BLEU

from tss.metrics.checks import same_length

NGRAMS = ("rouge1", "rouge2")
METRICS = (*NGRAMS, "rougeL", "bleu")


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return {"rouge1", "rouge2", "rougeL", "bleu"}, 0 to 100: mean ROUGE F of the rows with stemming, corpus BLEU.

    ROUGE is bit-identical to rouge-score; only the longest common subsequence is computed with a faster algorithm.
    """
    same_length(predictions, references)
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, half a second, so import it only for scoring

    scorer = RougeScorer(list(NGRAMS), tokenizer=_Words())
    totals = dict.fromkeys((*NGRAMS, "rougeL"), 0.0)
    for text, truth in zip(predictions, references, strict=True):
        for name, row in scorer.score(truth, text).items():
            totals[name] += row.fmeasure
        totals["rougeL"] += rouge_l(_words(truth), _words(text))
    result = {name: 100.0 * total / len(references) for name, total in totals.items()}
    result["bleu"] = float(_bleu().corpus_score(list(predictions), [list(references)]).score)
    return result


def signature() -> str:
    """Return the libraries, versions and settings that `score` uses; for BLEU, sacrebleu's own signature."""
    bleu = _bleu()
    bleu.corpus_score(["a"], [["a"]])  # the number of references is part of the signature
    return f"rouge-score {version('rouge-score')}, stemmer, F, mean over rows; BLEU {bleu.get_signature()}"


def rouge_l(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """Return ROUGE-L F, 0 to 1, of two lists of words: precision (recall) is LCS / length of prediction (reference)."""
    common = lcs_length(reference, prediction)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by Hyyro's bit-parallel recurrence on Python integers.

    Zero bits of `row` mark where the row of the LCS table, indexed by `a`, increases; one addition computes a whole
    row. With rouge-score's table of Python numbers, ROUGE-L took two thirds of the time of scoring summaries.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        steps = row & places.get(word, 0)
        row = ((row + steps) | (row - steps)) & full
    return len(a) - row.bit_count()


class _Words:
    """Tokenizer for `RougeScorer`."""

    def tokenize(self, text: str) -> list[str]:
        return _words(text)


def _words(text: str) -> list[str]:
    """Return the lower-case stems of a text, as rouge-score computes them."""
    from rouge_score.tokenize import tokenize

    return tokenize(text, _stemmer())


@functools.cache
def _stemmer() -> object:
    """Return a Porter stemmer that caches its results, because texts repeat words."""
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer()
    stemmer.stem = functools.lru_cache(maxsize=2**16)(stemmer.stem)  # type: ignore[method-assign]
    return stemmer


def _bleu() -> BLEU:
    # Replies are often lower-cased and tokenized already, about which sacrebleu would warn on every call.
    return BLEU(force=True)

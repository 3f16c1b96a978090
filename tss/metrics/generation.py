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
    """{"rouge1", "rouge2", "rougeL", "bleu"}, 0 to 100: ROUGE F with stemming, mean over rows; BLEU of the corpus.

    ROUGE is that of rouge-score to the last bit; only the longest common subsequence is found by a faster way.
    """
    same_length(predictions, references)
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: half a second that only scoring is to pay

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
    """How the numbers were made; for BLEU this is sacrebleu's own signature."""
    bleu = _bleu()
    bleu.corpus_score(["a"], [["a"]])  # the number of references is part of the signature
    return f"rouge-score {version('rouge-score')}, stemmer, F, mean over rows; BLEU {bleu.get_signature()}"


def rouge_l(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """ROUGE-L F, 0 to 1, of two lists of words: precision and recall are LCS over the one and the other length."""
    common = lcs_length(reference, prediction)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by Hyyro's bit-parallel recurrence on Python's long integers.

    Zeros of `row` mark where the table's row, indexed by `a`, steps up; one addition handles a whole row. With
    the table of Python numbers that rouge-score fills, ROUGE-L was two thirds of the time of scoring summaries.
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
    """The tokenizer that `RougeScorer` takes."""

    def tokenize(self, text: str) -> list[str]:
        return _words(text)


def _words(text: str) -> list[str]:
    """Lower-case stems, as rouge-score makes them."""
    from rouge_score.tokenize import tokenize

    return tokenize(text, _stemmer())


@functools.cache
def _stemmer() -> object:
    """A Porter stemmer that remembers: texts repeat their words."""
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer()
    stemmer.stem = functools.lru_cache(maxsize=2**16)(stemmer.stem)  # type: ignore[method-assign]
    return stemmer


def _bleu() -> BLEU:
    # Replies are often lower-cased and tokenised already; sacrebleu would warn about that on every call.
    return BLEU(force=True)

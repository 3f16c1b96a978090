"""Task metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tss.metrics import classification, extraction, generation


def test_macro_f1_by_hand():
    truth = ["a", "a", "a", "b"]
    guess = ["a", "a", "b", "b"]
    # a: precision 1, recall 2/3 -> 4/5; b: precision 1/2, recall 1 -> 2/3
    assert classification.score(guess, truth) == {
        "macro_f1": pytest.approx(100 * (4 / 5 + 2 / 3) / 2),
        "accuracy": pytest.approx(75.0),
    }


def test_predicting_one_class_only_is_half_right_and_no_warning(recwarn):
    found = classification.score(["a", "a"], ["a", "b"])
    assert found["macro_f1"] == pytest.approx(100 * (2 / 3) / 2)
    assert not recwarn.list


def test_entity_f1_counts_whole_entities():
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["O"]]
    guess = [["B-PER", "O", "O", "B-LOC"], ["B-LOC"]]
    assert extraction.score(guess, truth) == {
        "f1": pytest.approx(100 * 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        "precision": pytest.approx(100 / 3),
        "recall": pytest.approx(50.0),
    }


def test_an_inside_tag_that_nothing_begins_starts_an_entity():
    assert extraction.score([["O", "I-PER"]], [["O", "B-PER"]])["f1"] == 100.0
    assert extraction.score([["B-LOC", "I-PER"]], [["B-LOC", "B-PER"]])["f1"] == 100.0


def test_no_entity_predicted_is_zero_and_no_warning(recwarn):
    assert extraction.score([["O", "O"]], [["B-PER", "O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert not recwarn.list


def test_rouge_by_hand_with_stemming():
    found = generation.score(["the cats sat", ""], ["the cat sat down", "nothing"])
    # first row: 3 of 3 words and 3 of 4; 2 of 2 pairs and 2 of 3
    assert found["rouge1"] == pytest.approx(100 * (2 * 1 * 0.75 / 1.75) / 2)
    assert found["rouge2"] == pytest.approx(100 * (2 * 1 * (2 / 3) / (5 / 3)) / 2)
    assert found["rougeL"] == pytest.approx(found["rouge1"])


def test_bleu_is_of_the_corpus():
    guess, truth = "one two three four five", "one two three four six"
    precisions = (4 / 5) * (3 / 4) * (2 / 3) * (1 / 2)
    assert generation.score([guess], [truth])["bleu"] == pytest.approx(100 * precisions**0.25)
    both = generation.score([guess, "one"], [truth, "one two three four five six"])["bleu"]
    brevity = math.exp(1 - 11 / 6)
    assert both == pytest.approx(100 * brevity * ((5 / 6) * (3 / 4) * (2 / 3) * (1 / 2)) ** 0.25)


def test_outputs_that_are_all_empty_score_zero():
    assert generation.score(["", ""], ["a b", "c"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0, "bleu": 0.0}


def test_signatures_name_library_and_settings():
    assert "nrefs:1" in generation.signature()
    assert "tok:13a" in generation.signature()
    assert "seqeval 1." in extraction.signature()
    assert "average=macro" in classification.signature()


@pytest.mark.parametrize("metric", [classification, extraction, generation])
def test_one_prediction_for_each_reference(metric):
    with pytest.raises(ValueError, match="nothing to score"):
        metric.score([], [])
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        metric.score([["O"]], [["O"], ["O"]])


def test_one_tag_for_each_word():
    with pytest.raises(ValueError, match="row 1 has 1 predicted tags for 2 words"):
        extraction.score([["O"], ["O"]], [["O"], ["O", "O"]])


WORDS = st.lists(st.sampled_from(["cat", "cats", "sitting", "sat", "The", "on", "a-b", "9", ","]), max_size=40)


@settings(deadline=None)
@given(guess=WORDS, truth=WORDS)
def test_rouge_is_that_of_the_library_to_the_last_bit(guess, truth):
    guess, truth = " ".join(guess), " ".join(truth)
    library = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(truth, guess)
    found = generation.score([guess], [truth])
    assert {name: found[name] for name in library} == {name: 100.0 * row.fmeasure for name, row in library.items()}

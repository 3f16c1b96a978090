"""Warnings about settings under which a task cannot learn."""

from __future__ import annotations

import re

import pytest

from tss.run.advice import after_training, before_training
from tss.run.config import TaskSettings

GOOD = {"validation": 64, "sources": [20] * 9 + [128], "targets": [list(range(12))] * 10}


def settings(**changes):
    return TaskSettings.model_validate({"source_length": 128, **changes})


def test_settings_that_fit_the_data_are_not_commented():
    for kind in ("classification", "extraction", "generation"):
        assert before_training(settings(), kind, **GOOD) == []
    assert after_training(settings(), metric="f1", best=3.0, flipped={"a": 0.05}) == []


@pytest.mark.parametrize(
    ("kind", "changes", "data", "words"),
    [
        ("classification", {}, {"validation": 49}, "49 validation examples"),
        ("generation", {}, {"sources": [128] * 6 + [20] * 4}, "source_length=128 cuts 6 of 10 training sources"),
        ("generation", {}, {"sources": [128] * 6 + [20] * 4, "longest": 512}, "raise it, up to 512"),
        (
            "generation",
            {"generation": {"min_new_tokens": 30}},
            {},
            "min_new_tokens=30, but 10 of 10 .*median 12 tokens",
        ),
        (
            "generation",
            {"generation": {"no_repeat_ngram_size": 3}},
            {"targets": [[1, 2, 3, 4, 1, 2, 3]] * 2 + [[1, 2, 3, 4, 1, 2, 5]] * 8},
            "no_repeat_ngram_size=3, but 2 of 10 training targets repeat 3 tokens",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_both_values(kind, changes, data, words):
    (text,) = before_training(settings(**changes), kind, **(GOOD | data))
    assert re.search(words, text)


@pytest.mark.parametrize(("size", "repeating"), [(0, 10), (4, 10), (3, 1)])
def test_repetition_that_answers_may_have_or_few_targets_need_is_not_commented(size, repeating):
    targets = [[1, 2, 3, 4, 1, 2, 3]] * repeating + [[1, 2, 3]] * (10 - repeating)
    chosen = settings(generation={"no_repeat_ngram_size": size})
    assert before_training(chosen, "generation", **(GOOD | {"targets": targets})) == []


def test_a_backbone_that_reads_no_more_is_not_asked_to():
    assert before_training(settings(), "generation", **(GOOD | {"sources": [128] * 10, "longest": 128})) == []


def test_a_metric_that_stayed_at_zero_is_told_and_a_loss_of_zero_is_not():
    (text,) = after_training(settings(head_lr=1e-3), metric="f1", best=0.0, flipped={})
    assert "validation f1 was 0 after every epoch" in text
    assert "head_lr (0.001)" in text
    assert after_training(settings(), metric="loss", best=0.0, flipped={}) == []


def test_gates_that_hardly_flipped_are_told():
    assert after_training(settings(), metric="f1", best=1.0, flipped={"encoder": 0.02}) == []
    (text,) = after_training(settings(), metric="f1", best=1.0, flipped={"encoder": 0.004})
    assert "only 0.40% of the gates flipped" in text

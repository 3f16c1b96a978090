"""Draws for the paper's tasks: as many of each class or label as asked for, nothing twice, the same for a seed."""

from __future__ import annotations

from collections import Counter

import pytest

from tss.data.sampling import by_class, by_label


def sentences():
    """60 sentences; every second one is in the data twice, and one in ten has an entity of a rare type."""
    made = []
    for i in range(60):
        tags = ["B-RARE" if i % 10 == 0 else "B-PER" if i % 2 else "O", "O"]
        made += [{"tokens": [f"w{i}", "."], "ner_tags": tags}] * (2 - i % 2)
    return made


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_each_label_has_as_many_sentences_as_asked_for_or_as_there_are(limit):
    drawn = by_label(sentences(), limit, seed=1, task="ner/x")
    words = [row["tokens"][0] for row in drawn]
    assert len(set(words)) == len(words)
    tags = Counter(tag for row in drawn for tag in set(row["ner_tags"]))
    assert {tag: min(count, limit) for tag, count in tags.items()} == {
        "O": limit if limit < 60 else 60,
        "B-PER": min(limit, 30),
        "B-RARE": min(limit, 6),
    }
    assert len(drawn) <= 3 * limit
    order = [row["tokens"][0] for row in sentences()]
    assert words == sorted(words, key=order.index)
    assert by_label(sentences(), limit, seed=1, task="ner/x") == drawn
    if limit < 60:
        assert by_label(sentences(), limit, seed=2, task="ner/x") != drawn
        assert by_label(sentences(), limit, seed=1, task="ner/y") != drawn


@pytest.mark.parametrize("seed", range(10))
def test_a_sentence_that_stands_twice_counts_once(seed):
    drawn = by_label(sentences(), 5, seed=seed, task="ner/x")
    assert len({row["tokens"][0] for row in drawn if "B-RARE" in row["ner_tags"]}) >= 5


def classes(count=40):
    """Rows of two classes; every text stands four times, and every fifth row cannot be used."""
    labels = ["a", "b"] * (count // 2)
    texts = [f"{label} {i // 8}" for i, label in enumerate(labels)]
    return labels, lambda i: None if i % 5 == 0 else {"text": texts[i], "label": labels[i]}


def test_classes_are_even_and_no_example_is_drawn_twice():
    labels, make = classes(80)
    drawn = by_class(labels, make, {"train": 6, "validation": 2}, seed=1, task="ccd/x")
    assert {split: Counter(row["label"] for row in rows) for split, rows in drawn.items()} == {
        "train": {"a": 6, "b": 6},
        "validation": {"a": 2, "b": 2},
    }
    texts = [row["text"] for rows in drawn.values() for row in rows]
    assert len(set(texts)) == len(texts) == 16
    assert by_class(labels, make, {"train": 6, "validation": 2}, seed=1, task="ccd/x") == drawn
    assert by_class(labels, make, {"train": 6, "validation": 2}, seed=2, task="ccd/x") != drawn


def test_a_class_that_is_too_small_is_named():
    labels, make = classes()
    with pytest.raises(ValueError, match="class 'a' has 5 different examples, 6 are needed"):
        by_class(labels, make, {"train": 5, "test": 1}, seed=1, task="ccd/x")

"""The generated tasks: reproducible, without repeats, with the traits that make them more than a bag of words."""

from __future__ import annotations

import pytest

from tss.data.generated import MAKERS, SIZES, generate


@pytest.mark.parametrize("name", MAKERS)
def test_a_task_is_a_pure_function_of_name_and_seed(name):
    assert generate(name) == generate(name)
    assert generate(name, seed=1) != generate(name, seed=2)


@pytest.mark.parametrize("name", MAKERS)
def test_splits_are_full_and_share_no_example(name):
    splits = generate(name)
    assert {split: len(examples) for split, examples in splits.items()} == SIZES
    rows = [repr(sorted(example.items())) for examples in splits.values() for example in examples]
    assert len(rows) == len(set(rows))


def test_opposite_sentiments_stand_in_many_reviews():
    from tss.data.generated.aspects import BAD, GOOD

    examples = generate("asc/cameras")["test"]
    judged = [set(str(e["text"]).lower().replace(".", "").replace(",", "").split()) for e in examples]
    both = sum(bool(words & set(GOOD)) and bool(words & set(BAD)) for words in judged)
    assert both > 0.3 * len(examples)


def test_most_topic_words_of_the_test_split_were_never_trained_on():
    splits = generate("ccd/topics")
    seen = {word.strip(".,?;") for e in splits["train"] for word in str(e["text"]).split()}
    new = [any(w.strip(".,?;") not in seen for w in str(e["text"]).split()) for e in splits["test"]]
    assert sum(new) > 0.6 * len(new)


def test_names_of_entities_do_not_give_their_type_away():
    splits = generate("ner/news")
    trained = {t for e in splits["train"] for t, tag in zip(e["tokens"], e["ner_tags"], strict=True) if tag != "O"}
    tested = [t for e in splits["test"] for t, tag in zip(e["tokens"], e["ner_tags"], strict=True) if tag != "O"]
    assert sum(name in trained for name in tested) < 0.1 * len(tested)


def test_an_unknown_task_lists_those_there_are():
    with pytest.raises(KeyError, match="asc/cameras"):
        generate("asc/toasters")

"""Labels that no loss can be computed of are refused by name, value and remedy, whichever task they came to."""

from __future__ import annotations

import pytest
import torch

import tss

from .conftest import ARCHITECTURES, NAMES, REPLIES, TOPICS, inputs_of, learn, make_bart, make_batch

KINDS = {"topics": TOPICS, "names": NAMES, "replies": REPLIES}


@pytest.fixture(params=["bart", "llama"])
def model(request):
    """A sealed task of each kind, in training mode as Trainer calls it."""
    model = tss.attach(ARCHITECTURES[request.param][0](), tss.AdapterConfig(bottleneck=4))
    for name, kind in KINDS.items():
        learn(model.tss, name, kind)
    return model.train()


WRONG = {
    "class too large": (lambda labels: labels + 1000, ValueError, r"so labels are 0 to \d+, or -100 .*; got 1\d\d\d"),
    "negative": (
        lambda labels: labels * 0 - 1,
        ValueError,
        r"labels are 0 to \d+, or -100 where there is none; got -1",
    ),
    "float": (lambda labels: labels.float(), TypeError, r"int64, got torch\.float32: .*convert with \.long\(\)"),
    "bool": (lambda labels: labels > 0, TypeError, r"int64, got torch\.bool: give the index"),
    "list": (lambda labels: labels.tolist(), TypeError, r"got a list: make them a tensor with torch\.as_tensor"),
    "too few rows": (lambda labels: labels[:2], ValueError, r"of shape \(4.*\), .*got \(2,.*\)"),
    "one more dimension": (
        lambda labels: torch.stack([labels, labels], -1),
        ValueError,
        r"of shape \(4.*got \(4, .*2\)",
    ),
}


@pytest.mark.parametrize("how", ["call", "loss"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_labels_that_do_not_fit(model, name, how, change, error, message):
    batch = make_batch(KINDS[name])
    batch["labels"] = change(batch["labels"])
    with pytest.raises(error, match=message), model.tss.using(name):
        model(**batch) if how == "call" else model.tss.loss(**batch)


@pytest.mark.parametrize("how", ["named", "active", "none named", "without a task"])
def test_class_labels_without_a_classification_task_say_what_to_name(model, how):
    batch = make_batch(TOPICS)
    owner = {"named": "task 'replies'", "active": "task 'replies'"}.get(
        how, f"{type(model.core).__name__} without a task"
    )
    model.tss.use("replies" if how == "active" else None)
    named = {"task": "replies"} if how == "named" else {"task": None} if how == "without a task" else {}
    with pytest.raises(
        ValueError, match=rf"{owner}.* needs token ids as labels, of shape \(4, length\), got \(4,\): for class"
    ):
        model(**batch, **named)


def test_class_labels_before_there_is_a_task():
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4))
    with pytest.raises(ValueError, match="without a task needs token ids as labels"):
        model(**make_batch(TOPICS))


@pytest.mark.parametrize("change", [torch.Tensor.int, lambda labels: labels[:, None], torch.Tensor.short])
def test_labels_that_say_the_same_in_another_form_are_taken(model, change):
    batch = make_batch(TOPICS)
    expected = model.eval()(**batch, task="topics").loss
    assert torch.equal(model(**{**batch, "labels": change(batch["labels"])}, task="topics").loss, expected)


def test_rows_of_labels_of_one_task_that_differ_in_shape(model):
    batch = make_batch(TOPICS)
    labels = [torch.tensor(0), torch.tensor([0, 1]), torch.tensor(0), torch.tensor(1)]
    with pytest.raises(ValueError, match=r"labels of the rows of task 'topics' have shapes \(\), \(2,\): pad them"):
        model(**inputs_of(batch), labels=labels, task=["topics"] * 4)


def test_sealing_says_it_too(model):
    model.tss.add_task("more", TOPICS)
    model.tss.train_task("more")
    with pytest.raises(ValueError, match="has 2 classes, so labels are 0 to 1"):
        model.tss.seal_task([{**make_batch(TOPICS), "labels": torch.full((4,), 2)}])
    assert model.tss.trainable == "more"

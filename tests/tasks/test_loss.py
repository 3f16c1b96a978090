"""The loss without logits that nobody asks for is the loss of the forward pass, and as exact."""

from __future__ import annotations

import pytest
import torch

from tss.tasks import Classification, Extraction, Generation, vocabulary
from tss.tasks.vocabulary import frozen_head, linear_cross_entropy
from tss_kernels.testing import assert_as_exact_as_pytorch

KINDS = [
    Classification(labels=("bad", "good"), features="encoder_mean"),
    Extraction(labels=("B-PER", "I-PER", "O")),
    Generation(),
]
EXAMPLES = {
    "classification": [{"text": "the good battery", "label": "good"}, {"text": "bad", "label": "bad"}],
    "extraction": [
        {"tokens": ["Alice", "works", "in", "Paris"], "ner_tags": ["B-PER", "O", "O", "O"]},
        {"tokens": ["Bob"], "ner_tags": ["B-PER"]},
    ],
    "generation": [
        {"source": "the cheap hotel in Paris", "target": "the hotel is cheap"},
        {"source": "taxi", "target": "we likes the taxi at Acme and he sells it"},
    ],
}


def eager(hidden, weight, bias, labels):
    logits = torch.nn.functional.linear(hidden, weight) + bias
    return torch.nn.functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


def loss_and_gradient(function, hidden, *rest):
    hidden = hidden.detach().requires_grad_()
    loss = function(hidden, *rest)
    (3 * loss).backward()  # the gradient that comes in is not 1
    return loss.detach(), hidden.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("chunk", [3, 40, 256])
def test_vocabulary_loss_and_gradient_are_as_exact_as_pytorchs(monkeypatch, dtype, rows, chunk):
    monkeypatch.setattr(vocabulary, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(vocabulary, "CHUNK_LOGITS", 0)
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 16, generator=generator).to(dtype)
    weight, bias = torch.randn(50, 16, generator=generator).to(dtype), torch.randn(50, generator=generator).to(dtype)
    labels = torch.randint(50, (rows,), generator=generator)
    exact = loss_and_gradient(eager, hidden.double(), weight.double(), bias.double(), labels)
    pytorch = loss_and_gradient(eager, hidden, weight, bias, labels)
    found = loss_and_gradient(linear_cross_entropy, hidden, weight, bias, labels)
    for own, other, reference in zip(found, pytorch, exact, strict=True):
        assert_as_exact_as_pytorch(own, other, reference)


def test_without_rows_the_vocabulary_loss_is_zero_with_a_gradient():
    hidden = torch.randn(0, 16, requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.randn(9, 16), torch.zeros(9), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, 16)


@pytest.mark.parametrize("name", ["bart", "t5"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_loss_alone_is_that_of_the_forward_pass(models, tiny_tokenizer, kind, name):
    model = models[name].double().requires_grad_(False)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    norm = model.get_encoder().get_submodule("layers.0.final_layer_norm" if name == "bart" else "final_layer_norm")
    trained = norm.weight.requires_grad_()
    head = kind.make_head(16, 0.0, torch.Generator().manual_seed(0))
    head = None if head is None else head.double()
    batch = kind.collate(
        kind.encode_all(EXAMPLES[kind.kind], tiny_tokenizer, source_length=32, target_length=16), pad_id=1
    )
    labels = batch.pop("labels")
    whole = kind.compute(model, head, batch, labels).loss
    alone = kind.loss(model, head, batch, labels)
    torch.testing.assert_close(alone, whole)
    torch.testing.assert_close(torch.autograd.grad(alone, trained), torch.autograd.grad(whole, trained))


def test_no_logits_are_made_for_padding(models):
    rows = []
    model = models["bart"].requires_grad_(False)
    linear = torch.nn.functional.linear

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is linear and args[1] is model.lm_head.weight:
                rows.append(len(args[0]))
            return function(*args, **(kwargs or {}))

    labels = torch.tensor([[5, 6, 2, -100], [7, 2, -100, -100]])
    with Counting():
        Generation().loss(model, None, {"input_ids": torch.tensor([[0, 5, 2], [0, 6, 2]])}, labels)
    assert rows == [5]


def test_a_head_that_is_trained_or_unknown_keeps_the_models_own_loss(models):
    bart = models["bart"].requires_grad_(False)
    assert frozen_head(bart) is not None
    bart.lm_head.weight.requires_grad_()
    assert frozen_head(bart) is None
    assert frozen_head(models["t5"].requires_grad_(False)) is None

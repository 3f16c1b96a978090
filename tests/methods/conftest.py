"""Tiny tasks, and a method's hooks called as the runner calls them."""

from __future__ import annotations

import pytest
import torch

from tss.adapters import AdapterConfig, attach
from tss.adapters.checkpointing import evaluation_mode
from tss.methods import METHODS
from tss.run.config import TaskSettings
from tss.tasks import Classification, Extraction, Generation

KINDS = {
    "classification": Classification(labels=("no", "yes")),
    "extraction": Extraction(labels=("O", "B-PER", "I-PER")),
    "generation": Generation(num_beams=1, max_new_tokens=4),
}
RATES = TaskSettings(score_lr=0.05, adapter_lr=0.01, head_lr=0.01)


def make_batches(seed: int, kind: str = "classification", count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(5, 40, (6, 8), generator=generator)
        ids[:, -1] = 2
        mask = torch.ones_like(ids)
        ids[0, 5:], mask[0, 5:] = 1, 0
        labels = (ids[:, 0] + seed) % 2
        if kind == "extraction":
            labels = torch.where(mask.bool(), (ids + seed) % 3, -100)
        if kind == "generation":
            labels = torch.where(mask.bool(), (ids + seed) % 40, -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def start(backbone, name: str, **options):
    """A method and the handle of a model around the backbone."""
    method = METHODS[name](METHODS[name].options_type(**options))
    config = AdapterConfig(bottleneck=4, gated=method.gated)
    return method, attach(backbone, config, method.layer_options()).tss


def train(handle, method, data, *, rates=RATES, epochs: int = 1) -> list[float]:
    """Steps over the data by the method's hooks; gives the penalty of each."""
    optimizer = method.make_optimizer(handle, rates)
    handle.model.train()
    penalties = []
    for number, batch in enumerate(data * epochs):
        method.begin_step(handle, number % len(data), len(data))
        loss = handle.loss(**batch)
        penalty = method.penalty(handle, batch)
        penalties.append(0.0 if penalty is None else penalty.item())
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    return penalties


def learn(handle, method, name: str, data, kind: str = "classification", **settings) -> list[float]:
    """A task from its beginning to its end."""
    torch.manual_seed(0)
    method.begin_task(handle, name, KINDS[kind])
    penalties = train(handle, method, data, **settings)
    method.end_task(handle, name, data)
    handle.model.eval()
    return penalties


def logits(handle, name: str, batch) -> torch.Tensor:
    inputs = dict(batch)
    if handle.tasks[name].kind.kind != "generation":
        del inputs["labels"]
    with handle.using(name), torch.no_grad(), evaluation_mode(handle.model):
        return handle.model(**inputs).logits.clone()


def weights(handle) -> dict[str, torch.Tensor]:
    """Everything in the model, copied."""
    return {name: tensor.detach().clone() for name, tensor in handle.model.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.fixture
def calm_bart(tiny_bart):
    """The tiny BART without dropout."""
    for module in tiny_bart.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    for key in ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"):
        setattr(tiny_bart.config, key, 0.0)
    return tiny_bart

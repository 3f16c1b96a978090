"""What tells the methods apart: TSS cannot change an old task's answers, naive training does."""

from __future__ import annotations

import pytest
import torch

from tss.adapters import AdapterConfig, attach
from tss.methods import METHODS
from tss.methods.base import NoOptions
from tss.run.config import TaskSettings
from tss.tasks import Classification

KIND = Classification(labels=("no", "yes"))


def batches(seed: int, count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(5, 40, (6, 8), generator=generator)
        ids[:, -1] = 2
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[:, 0] + seed) % 2})
    return made


def learn(handle, method, name: str, data) -> None:
    """One pass of plain training with the method's hooks, as the runner does it."""
    torch.manual_seed(0)
    method.begin_task(handle, name, KIND)
    optimizer = method.make_optimizer(handle, TaskSettings(score_lr=0.05, adapter_lr=0.01, head_lr=0.01))
    handle.model.train()
    for batch in data:
        loss = handle.model(**batch).loss
        assert method.penalty(handle, batch) is None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    method.end_task(handle, name, data)
    handle.model.eval()


def logits(handle, name: str, batch) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with handle.using(name), torch.no_grad():
        return handle.model(**inputs).logits.clone()


@pytest.fixture(params=list(METHODS))
def learned(request, tiny_bart):
    """A method, its handle with one task learned, and that task's logits."""
    cls = METHODS[request.param]
    method = cls(cls.options_type())
    handle = attach(tiny_bart, AdapterConfig(bottleneck=4, gated=cls.gated), method.layer_options()).tss
    learn(handle, method, "asc/first", batches(1))
    return method, handle, logits(handle, "asc/first", batches(1)[0])


def test_a_later_task_changes_old_answers_exactly_where_nothing_guards_them(learned):
    method, handle, before = learned
    for seed, name in ((2, "asc/second"), (3, "asc/third")):
        learn(handle, method, name, batches(seed))
    after = logits(handle, "asc/first", batches(1)[0])
    assert torch.equal(after, before) == method.never_forgets


def test_learning_moves_the_adapters_and_only_what_the_method_trains(learned):
    method, handle, _ = learned
    tensors = {name: value.detach().clone() for name, value in handle.model.named_parameters()}
    method.begin_task(handle, "asc/second", KIND)
    groups = handle.trainable_parameters()
    trainable = {id(parameter) for group in groups.values() for parameter in group}
    optimizer = method.make_optimizer(handle, TaskSettings(score_lr=0.05, adapter_lr=0.01, head_lr=0.01))
    assert {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} == trainable
    for batch in batches(2):
        handle.model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    now = dict(handle.model.named_parameters())
    moved = {name for name, value in tensors.items() if not torch.equal(now[name], value)}
    assert moved
    assert all(id(now[name]) in trainable for name in moved)


def test_the_configured_learning_rates_reach_the_optimizer(learned):
    method, handle, _ = learned
    method.begin_task(handle, "asc/second", KIND)
    rates = TaskSettings(score_lr=0.5, adapter_lr=0.25, head_lr=0.125, beta1=0.8, beta2=0.9, eps=1e-4)
    groups = method.make_optimizer(handle, rates).param_groups
    assert [group["lr"] for group in groups] == [0.5 if method.gated else 0.25, 0.125]
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-4 for group in groups)
    assert all(group["weight_decay"] == 0 for group in groups)


def test_methods_say_what_they_are():
    for name, cls in METHODS.items():
        assert cls.name == name
    assert METHODS["ncl"].options_type is NoOptions
    method = METHODS["ncl"](NoOptions())
    assert method.state() == {}
    method.load_state({})
    with pytest.raises(ValueError, match="keeps no state"):
        method.load_state({"fisher": torch.zeros(1)})

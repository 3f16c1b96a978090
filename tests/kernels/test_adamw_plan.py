"""The optimizer's short way on the CPU: the bits of a step that looks at everything, whatever is changed between."""

from __future__ import annotations

import copy

import pytest
import torch

import tss_kernels
from tss_kernels import SoftMaskedAdamW
from tss_kernels.gates.scores import Scores

pytest.importorskip("tss_kernels.native", reason="the native backend was not built", exc_type=ImportError)

SHAPES = ((40, 64), (3, 31), (70,), (0, 5))


class Looked(SoftMaskedAdamW):
    """Looks at everything in every step."""

    def _plan(self, group, due) -> None:
        pass


def made(cls: type[SoftMaskedAdamW], **options) -> SoftMaskedAdamW:
    generator = torch.Generator().manual_seed(0)
    params = [
        (Scores if len(shape) == 2 else torch.nn.Parameter)(torch.randn(shape, generator=generator)) for shape in SHAPES
    ]
    importance = {param: torch.rand(param.shape, generator=generator) for param in params[::2]}
    optimizer = cls(params, lr=0.1, importance=importance, **options)
    params[0].keep_gates(0.05, tss_kernels.pack_gates(params[0], 0.05))
    return optimizer


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params_of(optimizer):
        grad = torch.randn(param.shape, generator=generator)
        if param.grad is None or seed % 2:
            param.grad = grad.to(param.dtype)
        else:
            param.grad.copy_(grad)
    optimizer.step()


def everything(optimizer: SoftMaskedAdamW) -> list[torch.Tensor]:
    params = params_of(optimizer)
    return [*params, *(optimizer.state[param][name] for param in params for name in ("step", "exp_avg", "exp_avg_sq"))]


def assert_same(one: SoftMaskedAdamW, two: SoftMaskedAdamW) -> None:
    for a, b in zip(everything(one), everything(two), strict=True):
        assert torch.equal(a, b)
    first = params_of(one)[0]
    assert torch.equal(first.kept_gates(0.05), tss_kernels.pack_gates(first, 0.05))


def planned(optimizer: SoftMaskedAdamW) -> bool:
    return bool(optimizer._plans)


@pytest.mark.parametrize("site", ["update", "gradient"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_same_bits_as_by_looking_at_everything(site, weight_decay):
    ours, theirs = (made(cls, site=site, weight_decay=weight_decay) for cls in (SoftMaskedAdamW, Looked))
    for seed in range(6):
        step(ours, seed)
        step(theirs, seed)
        assert planned(ours)
        assert not planned(theirs)
        assert_same(ours, theirs)


def change_state(optimizer: SoftMaskedAdamW) -> None:
    own = optimizer.state[params_of(optimizer)[0]]
    own["exp_avg"] = own["exp_avg"] * 2


def change_number(optimizer: SoftMaskedAdamW) -> None:
    optimizer.state[params_of(optimizer)[1]]["step"].add_(5)


def load(optimizer: SoftMaskedAdamW) -> None:
    state = copy.deepcopy(optimizer.state_dict())
    for own in state["state"].values():
        own["exp_avg"].mul_(3)
    optimizer.load_state_dict(state)


def another_importance(optimizer: SoftMaskedAdamW) -> None:
    first, second = params_of(optimizer)[:2]
    optimizer.set_importance(first, None)
    optimizer.set_importance(second, torch.full(second.shape, 0.5))


def unmasked(optimizer: SoftMaskedAdamW) -> None:
    for mask in optimizer.importance.values():
        mask.zero_()


def other_memory(optimizer: SoftMaskedAdamW) -> None:
    for param in params_of(optimizer):
        param.data = param.detach().clone() * 2


def fewer(optimizer: SoftMaskedAdamW) -> None:
    optimizer.param_groups[0]["params"].pop()


def another_group(optimizer: SoftMaskedAdamW) -> None:
    torch.manual_seed(3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.randn(4, 4))], "lr": 0.5, "site": "gradient"})


def options(optimizer: SoftMaskedAdamW) -> None:
    optimizer.param_groups[0].update(lr=0.5, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.3, site="gradient")


def reset(optimizer: SoftMaskedAdamW) -> None:
    optimizer.state.clear()


def reset_one(optimizer: SoftMaskedAdamW) -> None:
    optimizer.state[params_of(optimizer)[1]] = {}


CHANGES = {
    "state": change_state,
    "one step number": change_number,
    "a loaded state": load,
    "importance": another_importance,
    "importance in place": unmasked,
    "memory of the parameters": other_memory,
    "fewer parameters": fewer,
    "another group": another_group,
    "options": options,
    "maximize": lambda optimizer: optimizer.param_groups[0].update(maximize=True),
    "no state": reset,
    "no state of one": reset_one,
    "the scores": lambda optimizer: params_of(optimizer)[0].data.neg_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_that_changes_is_missed(change):
    ours, theirs = (made(cls, weight_decay=0.1) for cls in (SoftMaskedAdamW, Looked))
    for seed in range(6):
        if seed == 3:
            assert planned(ours)
            change(ours)
            change(theirs)
        step(ours, seed)
        step(theirs, seed)
        if params_of(ours)[0].kept_gates(0.05) is None:  # forgotten by new memory, in both alike
            for one in (ours, theirs):
                params_of(one)[0].keep_gates(0.05, tss_kernels.pack_gates(params_of(one)[0], 0.05))
        assert_same(ours, theirs)


ODD = {
    "none": lambda param: None,
    "strided": lambda param: torch.ones(param.shape[::-1]).T,
    "negated on reading": lambda param: torch._neg_view(torch.ones(param.shape)),
    "of stride 0": lambda param: torch.ones(1, param.shape[1]).expand(param.shape),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_gradients_of_another_kind(odd):
    ours, theirs = (made(cls) for cls in (SoftMaskedAdamW, Looked))
    for seed in range(4):
        for one in (ours, theirs):
            step(one, 2 * seed + 1)  # a new gradient
            param = params_of(one)[0]
            param.grad = odd(param)
            one.step()
        assert_same(ours, theirs)


def test_a_sparse_gradient_is_refused_and_changes_nothing():
    optimizer = made(SoftMaskedAdamW)
    step(optimizer, 1)
    before = [tensor.clone() for tensor in everything(optimizer)]
    param = params_of(optimizer)[0]
    param.grad = torch.ones(param.shape).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(everything(optimizer), before, strict=True))


def test_a_forced_backend_runs():
    optimizer = made(SoftMaskedAdamW)
    step(optimizer, 1)
    assert planned(optimizer)
    with tss_kernels.use_backend("reference"):
        optimizer.step()
        assert not planned(optimizer)


def test_writes_are_counted():
    optimizer = made(SoftMaskedAdamW)
    for seed in range(3):
        before = [tensor._version for tensor in everything(optimizer)] if seed else None
        step(optimizer, seed)
        if before:
            assert all(tensor._version > old for tensor, old in zip(everything(optimizer), before, strict=True))


def test_copies_have_no_plan_and_go_on_alike():
    optimizer = made(SoftMaskedAdamW)
    step(optimizer, 1)
    twin = copy.deepcopy(optimizer)
    assert not planned(twin)
    step(optimizer, 2)
    step(twin, 2)
    for a, b in zip(everything(optimizer), everything(twin), strict=True):
        assert torch.equal(a, b)

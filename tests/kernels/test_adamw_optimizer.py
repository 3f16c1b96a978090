"""SoftMaskedAdamW step after step: nothing that changes between two steps is missed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import tss_kernels
from tss_kernels import SoftMaskedAdamW

SHAPES = ((40, 64), (3, 31), (70,), (0, 5))


def made(**options) -> SoftMaskedAdamW:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    importance = {param: torch.rand(param.shape, generator=generator) for param in params[::2]}
    return SoftMaskedAdamW(params, lr=0.1, importance=importance, **options)


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def step(optimizer: torch.optim.Optimizer, seed: int, backend: str | None = None) -> None:
    """Gradients in new memory at odd steps, in that of before at even ones."""
    generator = torch.Generator().manual_seed(seed)
    for param in params_of(optimizer):
        grad = torch.randn(param.shape, generator=generator)
        if param.grad is None or seed % 2:
            param.grad = grad.to(param.dtype)
        else:
            param.grad.copy_(grad)
    with tss_kernels.use_backend(backend):
        optimizer.step()


def everything(optimizer: SoftMaskedAdamW) -> list[torch.Tensor]:
    params = params_of(optimizer)
    return [*params, *(optimizer.state[param][name] for param in params for name in ("step", "exp_avg", "exp_avg_sq"))]


def assert_same(one: SoftMaskedAdamW, two: SoftMaskedAdamW) -> None:
    for a, b in zip(everything(one), everything(two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def change_state(optimizer: SoftMaskedAdamW) -> None:
    own = optimizer.state[params_of(optimizer)[0]]
    own["exp_avg"] = own["exp_avg"] * 2


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


def another_group(optimizer: SoftMaskedAdamW) -> None:
    torch.manual_seed(3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.randn(4, 4))], "lr": 0.5, "site": "gradient"})


def options(optimizer: SoftMaskedAdamW) -> None:
    optimizer.param_groups[0].update(lr=0.5, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.3, site="gradient")


def strided_state(optimizer: SoftMaskedAdamW) -> None:
    own = optimizer.state[params_of(optimizer)[0]]
    own["exp_avg"] = own["exp_avg"].t().contiguous().t()


CHANGES = {
    "state": change_state,
    "one step number": lambda optimizer: optimizer.state[params_of(optimizer)[1]]["step"].add_(5),
    "a loaded state": load,
    "importance": another_importance,
    "importance in place": unmasked,
    "memory of the parameters": other_memory,
    "strides of the state": strided_state,
    "fewer parameters": lambda optimizer: optimizer.param_groups[0]["params"].pop(),
    "another group": another_group,
    "options": options,
    "a rate in a tensor": lambda optimizer: optimizer.param_groups[0].update(lr=torch.tensor(0.03)),
    "maximize": lambda optimizer: optimizer.param_groups[0].update(maximize=True),
    "no state": lambda optimizer: optimizer.state.clear(),
    "no state of one": lambda optimizer: optimizer.state.update({params_of(optimizer)[1]: {}}),
    "the parameters": lambda optimizer: params_of(optimizer)[0].data.neg_(),
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("site", ["update", "gradient"])
def test_nothing_that_changes_is_missed(change, site):
    """As the reference steps, which looks at every tensor."""
    pair = [made(weight_decay=0.1, site=site) for _ in range(2)]
    for seed in range(6):
        if seed == 3:
            results = [CHANGES[change](optimizer) for optimizer in pair]
            pair = [new if isinstance(new, SoftMaskedAdamW) else old for new, old in zip(results, pair, strict=True)]
        step(pair[0], seed)
        step(pair[1], seed, "reference")
        assert_same(*pair)
    assert set(params_of(pair[0])) >= set(pair[0].importance)


def test_parameters_that_replace_some_with_importance_are_not_stepped_unmasked():
    param, other = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    optimizer = SoftMaskedAdamW([param], lr=0.1, importance={param: torch.ones(4)})
    optimizer.param_groups[0]["params"] = [other]  # as wrappers do that shard parameters
    other.grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"1 of 1 parameters with importance are no longer in a group"):
        optimizer.step()
    assert not other.any()
    optimizer.set_importance(other, torch.ones(4))
    del optimizer.importance[param]
    optimizer.step()
    assert not other.any()


def test_a_state_with_amsgrad_is_refused_and_changes_nothing():
    param = torch.nn.Parameter(torch.zeros(4))
    theirs, ours = torch.optim.AdamW([param], lr=0.5, amsgrad=True), SoftMaskedAdamW([param], lr=0.1)
    with pytest.raises(ValueError, match="has no amsgrad"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.1


def test_sharded_parameters_are_refused(tmp_path):
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        sharded = torch.nn.Parameter(distribute_tensor(torch.zeros(4, 2), init_device_mesh("cpu", (1,))))
        optimizer = SoftMaskedAdamW([torch.nn.Parameter(torch.zeros(2))])
        with pytest.raises(TypeError, match="does not step sharded parameters"):
            optimizer.add_param_group({"params": [sharded]})
        assert len(optimizer.param_groups) == 1
    finally:
        destroy_process_group()


GRADIENTS = {
    "none": lambda param: None,
    "strided": lambda param: torch.ones(param.shape[::-1]).T,
    "negated on reading": lambda param: torch._neg_view(torch.ones(param.shape)),
    "of stride 0": lambda param: torch.ones(1, param.shape[1]).expand(param.shape),
}


@pytest.mark.parametrize("odd", GRADIENTS)
def test_gradients_of_another_kind(odd):
    pair = made(), made()
    for seed in range(4):
        for optimizer, backend in zip(pair, (None, "reference"), strict=True):
            step(optimizer, 2 * seed + 1, backend)
            param = params_of(optimizer)[0]
            param.grad = GRADIENTS[odd](param)
            with tss_kernels.use_backend(backend):
                optimizer.step()
        assert_same(*pair)


def test_writes_are_counted():
    optimizer = made()
    for seed in range(3):
        before = [tensor._version for tensor in everything(optimizer)] if seed else None
        step(optimizer, seed)
        if before:
            assert all(tensor._version > old for tensor, old in zip(everything(optimizer), before, strict=True))


def test_the_state_is_torchs():
    ours, theirs = made(), torch.optim.AdamW(params_of(made()))
    for optimizer in (ours, theirs):
        step(optimizer, 1)
    one, other = (optimizer.state_dict() for optimizer in (ours, theirs))
    assert {key: set(own) for key, own in one["state"].items()} == {
        key: set(own) for key, own in other["state"].items()
    }
    assert all(own["step"].dtype == torch.float32 and own["step"].is_cpu for own in one["state"].values())


def test_without_any_gradient_nothing_happens():
    optimizer = made()
    before = [param.detach().clone() for param in params_of(optimizer)]
    optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params_of(optimizer), before, strict=True))
    assert optimizer.state_dict()["state"] == {}

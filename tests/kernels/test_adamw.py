"""Soft-masked AdamW: the operation by hand on every backend, and the optimizer beside torch.optim.AdamW."""

from __future__ import annotations

import copy

import pytest
import torch

import tss_kernels
from tss_kernels import SoftMaskedAdamW
from tss_kernels.testing import in_layout

HYPER = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
SHAPES = [(1,), (33, 5), (0,), (1025,), (7, 3)]


def lists(device, dtype=torch.float32) -> dict[str, list]:
    generator = torch.Generator().manual_seed(0)

    def each(function):
        return [function(shape, generator=generator).to(device, dtype) for shape in SHAPES]

    drawn = {name: each(torch.randn) for name in ("params", "grads", "exp_avgs")}
    drawn |= {name: each(torch.rand) for name in ("exp_avg_sqs", "importances")}
    drawn["importances"][1] = None
    return drawn


def by_hand(values: dict[str, list], step: int, site: str, decay: float) -> dict[str, list[torch.Tensor]]:
    """The README's formulas in float64."""
    lr, beta1, beta2, eps = HYPER.values()
    new: dict[str, list[torch.Tensor]] = {"params": [], "exp_avgs": [], "exp_avg_sqs": []}
    for p, g, m, v, importance in zip(*values.values(), strict=True):
        p, g, m, v = (tensor.double() for tensor in (p, g, m, v))
        keep = 1.0 if importance is None else 1 - importance.double()
        g = g * keep if site == "gradient" else g
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        change = lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps) + lr * decay * p
        new["params"].append(p - (change * keep if site == "update" else change))
        new["exp_avgs"].append(m)
        new["exp_avg_sqs"].append(v)
    return new


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("site", ["update", "gradient"])
@pytest.mark.parametrize(("step", "decay"), [(1, 0.0), (7, 0.1)])
def test_both_sites_by_hand(backend, dtype, site, step, decay, device):
    backend.runs("soft_masked_adamw_", dtype)
    values = lists(device, dtype)
    expected = by_hand(values, step, site, decay)
    with tss_kernels.use_backend(backend):
        tss_kernels.soft_masked_adamw_(*values.values(), step=step, **HYPER, weight_decay=decay, site=site)
    # Six roundings on the way in float32 or wider, one to store a narrower dtype, of the largest term of each result.
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    narrow = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0
    for name, tensors in expected.items():
        for actual, exact in zip(values[name], tensors, strict=True):
            assert ((actual.double() - exact).abs() <= (6 * eps + narrow) * exact.abs().clamp(min=1)).all(), name


def layers(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()


def assert_same(one: torch.nn.Module, two: torch.nn.Module, bits: bool) -> None:
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b) if bits else torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "lr": 0.01}, {"maximize": True, "betas": (0.5, 0.9)}])
@pytest.mark.parametrize("site", ["update", "gradient"])
def test_without_importance_it_is_adamw(options, site):
    ours, torchs = layers(), layers()
    train(ours, SoftMaskedAdamW(ours.parameters(), **options, site=site), 20)
    train(torchs, torch.optim.AdamW(torchs.parameters(), **options), 20)
    assert_same(ours, torchs, bits=False)


@pytest.mark.parametrize("site", ["update", "gradient"])
def test_importance_of_one_holds_a_parameter_still(site):
    model = layers()
    before = copy.deepcopy(model)
    masks = {model[0].weight: torch.ones(5, 6)}
    train(model, SoftMaskedAdamW(model.parameters(), weight_decay=0.0, site=site, importance=masks), 5)
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[1].weight, before[1].weight)


def test_sites_differ_as_the_method_says():
    """Adam cancels a constant factor on the gradient; on the update it stays."""
    moved = {}
    for site in ("update", "gradient"):
        parameter = torch.zeros(1, requires_grad=True)
        optimizer = SoftMaskedAdamW(
            [parameter], lr=1.0, weight_decay=0.0, site=site, importance={parameter: torch.tensor([0.99])}
        )
        parameter.grad = torch.ones(1)
        optimizer.step()
        moved[site] = -parameter.item()
    assert moved["gradient"] == pytest.approx(1.0, rel=1e-3)
    assert moved["update"] == pytest.approx(0.01, rel=1e-3)


def test_state_goes_round_with_importance_set_again():
    straight, stopped = layers(), layers()
    mask = torch.rand(5, 6)
    optimizer = SoftMaskedAdamW(straight.parameters(), importance={straight[0].weight: mask})
    train(straight, optimizer, 3)
    train(straight, optimizer, 3, seed=2)
    first = SoftMaskedAdamW(stopped.parameters(), importance={stopped[0].weight: mask})
    train(stopped, first, 3)
    second = SoftMaskedAdamW(stopped.parameters())
    second.set_importance(stopped[0].weight, mask)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(stopped, second, 3, seed=2)
    assert_same(straight, stopped, bits=True)


def test_takes_the_state_of_torchs_adamw():
    model, torchs = layers(), layers()
    theirs = torch.optim.AdamW(torchs.parameters())
    train(torchs, theirs, 3)
    model.load_state_dict(torchs.state_dict())
    ours = SoftMaskedAdamW(model.parameters(), site="gradient")
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(model, ours, 3, seed=2)
    train(torchs, theirs, 3, seed=2)
    assert_same(model, torchs, bits=False)


def test_deepcopy_keeps_importance():
    model = layers()
    optimizer = SoftMaskedAdamW(model.parameters(), weight_decay=0.0, importance={model[0].weight: torch.ones(5, 6)})
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    train(model_copy, optimizer_copy, 2)
    assert torch.equal(model_copy[0].weight, model[0].weight)
    assert not torch.equal(model_copy[1].weight, model[1].weight)


def test_groups_and_late_gradients():
    """Groups have their own options; a parameter without gradients at first is corrected by its own step number."""
    ours, torchs = layers(), layers()
    groups = [[{"params": m[0].parameters(), "lr": 0.1}, {"params": m[1].parameters()}] for m in (ours, torchs)]
    pairs = [(ours, SoftMaskedAdamW(groups[0])), (torchs, torch.optim.AdamW(groups[1]))]
    for model, optimizer in pairs:
        model[0].weight.requires_grad_(False)
        train(model, optimizer, 2)
        model[0].weight.requires_grad_(True)
        train(model, optimizer, 2)
    assert_same(ours, torchs, bits=False)


def test_lr_scheduler_and_closure():
    model = layers()
    optimizer = SoftMaskedAdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 6)).square().sum()
        loss.backward()
        return loss.item()

    losses = []
    for _ in range(3):
        losses.append(optimizer.step(closure))
        schedule.step()
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("site", ["update", "gradient"])
def test_an_importance_that_is_negated_only_on_reading(backend, site, device):
    """Its memory holds the opposite of its values, which a kernel that takes addresses must not read."""
    backend.runs("soft_masked_adamw_", torch.float32)
    stepped = []
    for lazy in (True, False):
        values = lists(device)
        soft = torch.rand(33, 5, generator=torch.Generator().manual_seed(1)).to(device)
        values["importances"][1] = torch._neg_view(-soft) if lazy else soft
        with tss_kernels.use_backend(backend):
            tss_kernels.soft_masked_adamw_(*values.values(), step=2, **HYPER, site=site)
        stepped.append(values["params"][1])
    assert torch.equal(*stepped)


@pytest.mark.parametrize("layout", ["permuted", "sliced"])
def test_any_layout(backend, device, layout):
    backend.runs("soft_masked_adamw_", torch.float32)
    straight, strided = lists(device), lists(device)
    for tensors in strided.values():
        tensors[:] = [one if one is None or one.dim() < 2 else in_layout(one, layout) for one in tensors]
    with tss_kernels.use_backend(backend):
        for values in (straight, strided):
            tss_kernels.soft_masked_adamw_(*values.values(), step=2, **HYPER, weight_decay=0.1)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert all(torch.equal(one, two) for one, two in zip(straight[name], strided[name], strict=True)), name


def test_interlocking_columns_of_one_matrix(backend, device):
    """They share no element, although each starts within the other's reach."""
    backend.runs("soft_masked_adamw_", torch.float32)
    drawn = [torch.rand(9, 4, device=device) for _ in range(4)]
    columns = [[matrix.clone()[:, i] for i in range(4)] for matrix in drawn]
    together = [list(matrix.unbind(1)) for matrix in drawn]
    with tss_kernels.use_backend(backend):
        for values in (columns, together):
            tss_kernels.soft_masked_adamw_(*values, [None] * 4, step=2, **HYPER)
    assert torch.equal(torch.stack(columns[0], 1), drawn[0])


def test_dtypes_of_parameters_and_their_tensors_may_differ(backend, device):
    backend.runs("soft_masked_adamw_", torch.float32)
    kinds = (torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float32)
    mixed = lists(device)
    for name in ("grads", "importances"):
        mixed[name] = [one if one is None else one.to(kind) for one, kind in zip(mixed[name], kinds, strict=True)]
    mixed["params"][3] = mixed["params"][3].bfloat16()
    expected = by_hand(mixed, 2, "update", 0.0)
    with tss_kernels.use_backend(backend):
        tss_kernels.soft_masked_adamw_(*mixed.values(), step=2, **HYPER)
    for i, (actual, exact) in enumerate(zip(mixed["params"], expected["params"], strict=True)):
        rounding = 6 * torch.finfo(torch.float32).eps + (torch.finfo(torch.bfloat16).eps / 2 if i == 3 else 0)
        assert ((actual.double() - exact).abs() <= rounding * exact.abs().clamp(min=1)).all(), i


def test_autograd_notices_every_write(backend, device):
    backend.runs("soft_masked_adamw_", torch.float32)
    values = lists(device)
    changed = [*values["params"], *values["exp_avgs"], *values["exp_avg_sqs"]]
    untouched = [*values["grads"], values["importances"][0]]
    versions = [[tensor._version for tensor in tensors] for tensors in (changed, untouched)]
    with tss_kernels.use_backend(backend):
        tss_kernels.soft_masked_adamw_(*values.values(), step=1, **HYPER)
    assert all(tensor._version > before for tensor, before in zip(changed, versions[0], strict=True))
    assert [tensor._version for tensor in untouched] == versions[1]
    parameter = torch.nn.Parameter(torch.randn(3, 3, device=device))
    loss = (parameter * parameter).sum()
    parameter.grad = torch.ones_like(parameter)
    with tss_kernels.use_backend(backend):
        SoftMaskedAdamW([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()

    def step(param, grad, exp_avg, exp_avg_sq):
        tss_kernels.soft_masked_adamw_([param], [grad], [exp_avg], [exp_avg_sq], [None], step=1, **HYPER)

    def arguments():
        torch.manual_seed(0)
        return [torch.rand(4, 9) for _ in range(4)]

    eager, compiled = arguments(), arguments()
    versions = [tensor._version for tensor in compiled]
    step(*eager)
    torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    assert all(torch.equal(one, two) for one, two in zip(eager, compiled, strict=True))
    counts = [tensor._version - before for tensor, before in zip(compiled, versions, strict=True)]
    assert all(count > 0 for i, count in enumerate(counts) if i != 1)


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_what_looks_on_sees_the_step(device):
    with Seen() as seen:
        tss_kernels.soft_masked_adamw_(*lists(device).values(), step=1, **HYPER)
    assert seen.names.count("tss_kernels.soft_masked_adamw_.default") == 1

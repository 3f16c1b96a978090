"""Soft-masked AdamW in Triton against torch.optim.AdamW and against the formulas of both sites in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tss_kernels.adamw import triton as adamw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# one element, both sides of a block's edge, several blocks, nothing at all, two dimensions
SHAPES = [(1,), (1023,), (1024,), (1025,), (2500,), (0,), (33, 5), (7,), (3,)]
HYPER = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}


def lists(shapes=SHAPES, dtype=torch.float32, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def each(make) -> list[torch.Tensor]:
        return [make(shape).to(dtype).to(DEVICE) for shape in shapes]

    return {
        "params": each(lambda shape: torch.randn(shape, generator=generator)),
        "grads": each(lambda shape: torch.randn(shape, generator=generator)),
        "exp_avgs": each(lambda shape: torch.randn(shape, generator=generator)),
        "exp_avg_sqs": each(lambda shape: torch.rand(shape, generator=generator)),
        "importances": each(lambda shape: torch.rand(shape, generator=generator)),
    }


def by_hand(values: dict[str, list], step: float, site: str, weight_decay: float) -> dict[str, list[torch.Tensor]]:
    """The formulas of both sites in float64."""
    lr, beta1, beta2, eps = (HYPER[name] for name in ("lr", "beta1", "beta2", "eps"))
    new = {"params": [], "exp_avgs": [], "exp_avg_sqs": []}
    for param, grad, exp_avg, exp_avg_sq, importance in zip(*values.values(), strict=True):
        param, grad, exp_avg, exp_avg_sq = (tensor.double() for tensor in (param, grad, exp_avg, exp_avg_sq))
        keep = 1 - (torch.zeros_like(param) if importance is None else importance.double())
        if site == "gradient":
            grad = grad * keep
        exp_avg = beta1 * exp_avg + (1 - beta1) * grad
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
        corrected = exp_avg / (1 - beta1**step), (exp_avg_sq / (1 - beta2**step)).sqrt()
        change = -lr * weight_decay * param - lr * corrected[0] / (corrected[1] + eps)
        new["params"].append(param + (keep * change if site == "update" else change))
        new["exp_avgs"].append(exp_avg)
        new["exp_avg_sqs"].append(exp_avg_sq)
    return new


def assert_matches_hand(values: dict[str, list], step: float, site: str, weight_decay: float = 0.1) -> None:
    """Within a few roundings of the largest term of each result: 4 in float32, one more to store a narrower dtype."""
    expected = by_hand(values, step, site, weight_decay)
    adamw.soft_masked_adamw_(*values.values(), step=step, **HYPER, weight_decay=weight_decay, site=site)
    for name, tensors in expected.items():
        for actual, exact in zip(values[name], tensors, strict=True):
            narrow = 0 if actual.dtype == torch.float32 else torch.finfo(actual.dtype).eps / 2
            bound = (4 * torch.finfo(torch.float32).eps + narrow) * exact.abs().clamp(min=1)
            assert ((actual.double() - exact).abs() <= bound).all(), name


@pytest.mark.parametrize("site", ["gradient", "update"])
@pytest.mark.parametrize("step", [1, 7, 1000.0])
def test_both_sites_by_hand(site, step):
    assert_matches_hand(lists(), step, site)


@pytest.mark.parametrize("site", ["gradient", "update"])
def test_some_tensors_without_importance(site):
    values = lists()
    values["importances"][1] = values["importances"][4] = None
    assert_matches_hand(values, 3, site)


@pytest.mark.parametrize("site", ["gradient", "update"])
def test_without_importance_it_is_adamw(site):
    values = lists()
    decay, betas = 0.05, (HYPER["beta1"], HYPER["beta2"])
    results = []
    for dtype in (torch.float32, torch.float64):
        params = [torch.nn.Parameter(tensor.to(dtype)) for tensor in values["params"]]
        optimizer = torch.optim.AdamW(params, HYPER["lr"], betas, HYPER["eps"], decay, foreach=False)
        for step in range(1, 6):
            for param, grad in zip(params, values["grads"], strict=True):
                param.grad = (grad * step).to(dtype)
            optimizer.step()
        results.append([param.detach() for param in params])
    nothing = [None] * len(SHAPES)
    moments = [[torch.zeros_like(tensor) for tensor in values["params"]] for _ in range(2)]
    for step in range(1, 6):
        grads = [grad * step for grad in values["grads"]]
        adamw.soft_masked_adamw_(
            values["params"], grads, *moments, nothing, step=step, **HYPER, weight_decay=decay, site=site
        )
    own = max((a.double() - b).abs().max().item() for a, b in zip(*results, strict=True) if a.numel())
    ours = max(
        (a.double() - b).abs().max().item() for a, b in zip(values["params"], results[1], strict=True) if a.numel()
    )
    assert ours <= 2 * own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", ["gradient", "update"])
def test_sixteen_bit_parameters(dtype, site):
    assert_matches_hand(lists(dtype=dtype), 2, site)


def test_dtypes_may_be_mixed():
    values = lists()
    for number in (0, 4):
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
            values[name][number] = values[name][number].bfloat16()
    values["grads"][6] = values["grads"][6].half()
    values["importances"][3] = values["importances"][3].bfloat16()
    values["exp_avgs"][7] = values["exp_avgs"][7].half()
    assert_matches_hand(values, 2, "update")


def test_full_importance_stops_every_score():
    values = lists()
    before = [tensor.clone() for tensor in values["params"]]
    values["importances"] = [torch.ones_like(tensor) for tensor in values["params"]]
    adamw.soft_masked_adamw_(*values.values(), step=1, **HYPER, weight_decay=0.1, site="update")
    assert all(torch.equal(a, b) for a, b in zip(values["params"], before, strict=True))
    for name in ("exp_avgs", "exp_avg_sqs"):
        values[name] = [torch.zeros_like(tensor) for tensor in values["params"]]
    adamw.soft_masked_adamw_(*values.values(), step=1, **HYPER, weight_decay=0.0, site="gradient")
    assert all(torch.equal(a, b) for a, b in zip(values["params"], before, strict=True))


@pytest.mark.parametrize(
    "layout",
    [
        lambda tensor: tensor.t().contiguous().t(),
        lambda tensor: torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor),
        lambda tensor: tensor.repeat_interleave(2, dim=1)[:, ::2],
    ],
    ids=["transposed", "off a 16-byte boundary", "every second column"],
)
def test_layouts(layout):
    shapes = [(40, 30), (64, 32)]
    values = {name: [layout(tensor) for tensor in tensors] for name, tensors in lists(shapes).items()}
    assert_matches_hand(values, 2, "update")
    values = lists(shapes)
    values["grads"] = [tensor[:1, :1].expand_as(tensor) for tensor in values["grads"]]
    assert_matches_hand(values, 2, "gradient")


def test_one_launch_for_all_tensors(monkeypatch):
    launches = []
    kernel = adamw.adamw_kernel

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(adamw, "adamw_kernel", Counted())
    values = lists([(70,)] * 50)
    values["importances"][::2] = [None] * 25
    assert_matches_hand(values, 2, "update")
    assert launches == [(50,)]
    adamw.soft_masked_adamw_([], [], [], [], [], step=1, **HYPER, weight_decay=0.0, site="update")
    assert len(launches) == 1


def test_addresses_are_read_anew_when_they_change():
    first, second = lists(seed=1), lists(seed=2)
    for step, values in enumerate((first, second, first), start=1):
        assert_matches_hand(values, step, "update")


def test_equal_bits_in_twenty_runs():
    results = []
    for _ in range(20):
        values = lists([(1,), (1025,), (33, 35), (7, 64)])
        adamw.soft_masked_adamw_(*values.values(), step=3, **HYPER, weight_decay=0.1, site="update")
        changed = [*values["params"], *values["exp_avgs"], *values["exp_avg_sqs"]]
        results.append(torch.cat([tensor.flatten().double() for tensor in changed]))
    assert all(torch.equal(result, results[0]) for result in results)

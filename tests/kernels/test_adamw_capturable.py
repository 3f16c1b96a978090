"""AdamW with its step number and learning rate on the device: the same steps, nothing read by the host."""

from __future__ import annotations

import copy

import pytest
import torch

import tss_kernels
from tss_kernels import BackendUnavailable, SoftMaskedAdamW

HYPER = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
SHAPES = [(33, 5), (0,), (1025,), (1,)]


def lists(device, dtype) -> list[list]:
    generator = torch.Generator().manual_seed(0)

    def each(function):
        return [function(shape, generator=generator).to(device, dtype) for shape in SHAPES]

    params, grads, exp_avgs = each(torch.randn), each(torch.randn), each(torch.randn)
    return [params, grads, exp_avgs, each(torch.rand), [*each(torch.rand)[:-1], None]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", ["update", "gradient"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("step_dtype", "lr_dtype"), [(torch.float32, torch.float32), (torch.int64, torch.float64)])
def test_same_as_with_numbers(backend, device, dtype, site, decay, shared, step_dtype, lr_dtype):
    backend.runs("soft_masked_adamw_", dtype)
    if backend not in ("reference", "cuda"):
        pytest.skip(f"{backend} reads no numbers on the device")
    numbers, tensors = lists(device, dtype), lists(device, dtype)
    options = {**HYPER, "weight_decay": decay, "site": site}
    rate = torch.tensor(3e-3, dtype=lr_dtype, device=device)
    step = torch.tensor(0, dtype=step_dtype, device=device)
    steps = step if shared else [torch.zeros_like(step) for _ in SHAPES]
    with tss_kernels.use_backend(backend):
        for number, lr in enumerate((3e-3, 1e-3, 7e-2), start=1):
            rate.fill_(lr)
            for one in [step] if shared else steps:
                one += 1
            # The rate may be a float32 on the device, and the host must start from the same.
            tss_kernels.soft_masked_adamw_(*numbers, step=number, lr=rate.item(), **options)
            tss_kernels.soft_masked_adamw_(*tensors, step=steps, lr=rate, **options)
    for one, other in zip(numbers[:4], tensors[:4], strict=True):
        for a, b in zip(one, other, strict=True):
            # Powers of beta may differ in the last bit of float64 between host and device.
            torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=1e-8)


def trained(optimizer_of, steps: int = 4) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    optimizer = optimizer_of(model)
    for number in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(number))).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_the_optimizer_is_torchs_capturable_one():
    importance = torch.rand(5, 6)

    def ours(model, capturable=True):
        soft = {model[0].weight: importance}
        return SoftMaskedAdamW(model.parameters(), lr=torch.tensor(0.01), capturable=capturable, importance=soft)

    (capturable, optimizer), (plain, _) = trained(ours), trained(lambda model: ours(model, False))
    for one, other in zip(capturable.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    theirs, _ = trained(lambda model: torch.optim.AdamW(model.parameters(), lr=0.01))
    free, _ = trained(lambda model: SoftMaskedAdamW(model.parameters(), lr=0.01, capturable=True))
    for one, other in zip(free.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    state = optimizer.state_dict()
    assert [entry["step"].item() for entry in state["state"].values()] == [4.0] * 4
    again = ours(copy.deepcopy(capturable))
    again.load_state_dict(state)
    assert again.param_groups[0]["capturable"]


@pytest.mark.parametrize("number", [3, 3.0, torch.tensor([3.0]), torch.tensor(3, dtype=torch.int32)])
@pytest.mark.parametrize("rate", [0.01, torch.tensor([0.01], dtype=torch.float64), torch.tensor(0.01).bfloat16()])
def test_numbers_in_any_form(backend, device, number, rate):
    backend.runs("soft_masked_adamw_", torch.float32)
    if backend not in ("reference", "cuda"):
        pytest.skip(f"{backend} reads no numbers on the device")
    one, other = lists(device, torch.float32), lists(device, torch.float32)
    lr = rate.item() if isinstance(rate, torch.Tensor) else rate
    on_device = [value.to(device) if isinstance(value, torch.Tensor) else value for value in (number, rate)]
    step = on_device[0] if isinstance(number, torch.Tensor) else [torch.tensor(number, device=device)] * len(SHAPES)
    with tss_kernels.use_backend(backend):
        tss_kernels.soft_masked_adamw_(*one, step=3, lr=lr, **HYPER)
        tss_kernels.soft_masked_adamw_(*other, step=step, lr=on_device[1], **HYPER)
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(a, b, rtol=3e-7, atol=1e-8)


def test_what_cannot_be_is_said(device):
    values = lists(device, torch.float32)
    step = torch.tensor(1.0, device=device)
    with pytest.raises(ValueError, match=r"one per parameter, 4, but there are 2"):
        tss_kernels.soft_masked_adamw_(*values, step=[step, step], lr=0.1, **HYPER)
    with pytest.raises(TypeError, match=r"step\[0\] must be a tensor of one number"):
        tss_kernels.soft_masked_adamw_(*values, step=torch.ones(2, device=device), lr=0.1, **HYPER)
    with (
        tss_kernels.use_backend("native" if device.type == "cpu" else "triton"),
        pytest.raises(BackendUnavailable, match=r"step is a tensor|not built|not installed"),
    ):
        tss_kernels.soft_masked_adamw_(*values, step=step, lr=0.1, **HYPER)

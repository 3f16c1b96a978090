"""The registered operators with torch.library's own checks, and torch.compile without a graph break."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import tss_kernels
from tss_kernels.backends.registry import EMULATED, why_not
from tss_kernels.testing import in_layout


def samples(backend: str, layout: str) -> dict[str, tuple]:
    """One argument tuple per operator."""
    torch.manual_seed(0)
    rows, dy, weight, scores = (in_layout(torch.randn(shape), layout) for shape in ((15, 9), (15, 6), (6, 9), (6, 9)))
    x, dy3 = rows.view(5, 3, 9) if layout == "contiguous" else rows, dy.view(5, 3, 6) if layout == "contiguous" else dy
    bias, importance, packed = torch.randn(6), torch.rand(6, 9), tss_kernels.pack_gates(scores)
    adapter = (weight, packed, weight.t(), tss_kernels.pack_gates(scores.t()))
    step = (1.0, 0.1, 0.9, 0.99, 1e-8, 0.01, "update", backend)
    both = [weight.clone(), bias.clone()]
    moments = [[torch.zeros(6, 9), torch.zeros(6)] for _ in range(2)]
    return {
        "gated_linear": (x, weight, scores, bias, 0.0, backend),
        "gated_linear_input_grad": (dy3, weight, packed, backend),
        "gated_linear_scores_grad": (dy3, x, weight, importance, backend),
        "gated_linear_weight_grad": (dy3, x, packed, backend),
        "gated_adapter": (x, *adapter, bias, None, "gelu", backend),
        "gated_adapter_input_grad": (x, dy, *adapter, "gelu", True, backend),
        "packed_linear": (x, weight, packed, bias, backend),
        "pack_gates": (scores, 0.0, backend),
        "pack_gates_pair": (scores, importance, 0.5, backend),
        "unpack_gates": (packed, 9, backend),
        "normalize_importance": (importance, "row", backend),
        "accumulate_importance_": (importance.clone(), 2 * importance, backend),
        "update_importance_": (importance.clone(), weight, "tensor", backend),
        "soft_masked_adamw_": (
            *(both, [weight, bias], *moments, [importance, None]),
            *([torch.zeros_like(packed)], [0], [0.5, 0.0], torch.zeros(2, dtype=torch.int64)),
            *step,
        ),
    }


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
@pytest.mark.parametrize("name", samples("reference", "contiguous"))
def test_opcheck(name, layout):
    torch.library.opcheck(getattr(torch.ops.tss_kernels, name).default, samples("reference", layout)[name])


def test_opcheck_of_the_adapter_without_input_gradient():
    *arguments, _, backend = samples("reference", "contiguous")["gated_adapter_input_grad"]
    torch.library.opcheck(torch.ops.tss_kernels.gated_adapter_input_grad.default, (*arguments, False, backend))


@pytest.mark.parametrize(
    "name",
    [
        *("gated_linear", "gated_linear_scores_grad", "gated_adapter", "gated_adapter_input_grad"),
        *("pack_gates", "pack_gates_pair", "unpack_gates", "soft_masked_adamw_"),
        *("normalize_importance", "accumulate_importance_", "update_importance_"),
    ],
)
def test_opcheck_of_triton(name, device):
    if why_not("triton", "gated_linear", device, torch.float32) is not None:
        pytest.skip("triton cannot run here")
    values = samples("triton", "contiguous")[name]
    torch.library.opcheck(
        getattr(torch.ops.tss_kernels, name).default,
        torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), values),
    )


def adapter() -> tss_kernels.GatedAdapter:
    torch.manual_seed(0)
    module = tss_kernels.GatedAdapter(16, 8, "gelu")
    module.up.importance = torch.rand(16, 8)
    return module


def step(module, call, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("packed", [False, True])
def test_one_graph_for_changing_rows(packed):
    torch._dynamo.reset()
    module, counter = adapter(), CompileCounterWithBackend("aot_eager")
    for part in (module.down, module.up):
        part.set_packed(part.pack() if packed else None)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for rows in (3, 5, 7, 1, 0, 64):
        x = torch.randn(rows, 16)
        results = zip(step(module, compiled, x), step(module, module, x), strict=True)
        assert all(torch.equal(one, two) for one, two in results)
    # the first size, then one graph for any size; 0 and 1 are special to PyTorch
    assert counter.frame_count <= 4


def test_inductor():
    torch._dynamo.reset()
    module = adapter()
    compiled, x = torch.compile(module, fullgraph=True), torch.randn(4, 16)
    for one, two in zip(step(module, compiled, x), step(module, module, x), strict=True):
        torch.testing.assert_close(one, two)


def test_compiled_under_autocast():
    torch._dynamo.reset()
    module = adapter()
    compiled, x = torch.compile(module, fullgraph=True, backend="aot_eager"), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), module(x))


def test_compiled_code_follows_use_backend(monkeypatch):
    monkeypatch.delenv(EMULATED, raising=False)
    torch._dynamo.reset()
    module, x = adapter().down, torch.randn(4, 16)
    compiled = torch.compile(module, backend="eager")
    expected = compiled(x)
    with tss_kernels.use_backend("cuda"), pytest.raises(tss_kernels.BackendUnavailable, match="cuda"):
        compiled(x)
    assert torch.equal(compiled(x), expected)

    def inside(x: torch.Tensor) -> torch.Tensor:
        with tss_kernels.use_backend("reference"):
            return module(x)

    assert torch.equal(torch.compile(inside, fullgraph=True, backend="eager")(x), expected)

"""gated_adapter from packed gates, under autocast, against its two products bit for bit, and with bad arguments."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import tss_kernels
from tests.kernels.gated_adapter_cases import ACTIVATIONS, NAMES, by_hand, draw, run
from tss_kernels import GatedAdapter
from tss_kernels.gated_adapter.api import adapter_product
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout, poisoned_outputs


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_outputs():
        yield


def gated_map(tensors, side: str, packed: torch.Tensor | None = None):
    """One map's weight, gates, bias, threshold, importance and whether its gates are packed."""
    parts = [tensors.get(f"{side}_{part}") for part in ("weight", "scores", "bias", "importance")]
    if packed is None:
        return parts[0], parts[1], parts[2], 0.1, parts[3], False
    return parts[0], packed, parts[2], 0.1, None, True


@pytest.mark.parametrize("sealed", [("down",), ("up",), ("down", "up")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bottleneck", [13, 130])
def test_packed_gates_give_the_same_bits(backend, bottleneck, activation, sealed, device):
    """Maps by packed gates beside maps by scores: the same value, and the same gradients of all that is not sealed."""
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(9, 40, bottleneck, torch.float32, device)
    expected = run(tensors, backend, activation)
    leaves = {name: tensors[name].detach().clone().requires_grad_() for name in NAMES}
    importance = {name: tensors[name] for name in ("down_importance", "up_importance")}
    maps = [
        gated_map(leaves | importance, side, tss_kernels.pack_gates(tensors[f"{side}_scores"], 0.1))
        if side in sealed
        else gated_map(leaves | importance, side)
        for side in ("down", "up")
    ]
    with tss_kernels.use_backend(backend):
        y = adapter_product(leaves["x"], *maps, activation)
    y.backward(tensors["dy"])
    assert torch.equal(y, expected["y"])
    for name, leaf in leaves.items():
        if name in [f"{side}_scores" for side in sealed]:
            assert leaf.grad is None
        else:
            assert torch.equal(leaf.grad, expected[name]), name


@pytest.mark.parametrize("thresholds", [(0.0, 0.2), (0.2, 0.0)])
def test_a_threshold_for_each_map(backend, thresholds, device):
    backend.runs("gated_adapter", torch.float32)
    module = GatedAdapter(40, 13).to(device)
    module.down.threshold, module.up.threshold = thresholds
    x = torch.randn(9, 40, device=device)
    with tss_kernels.use_backend(backend):
        y = module(x)
        expected = x + module.up(torch.relu(module.down(x)))
    torch.testing.assert_close(y, expected)


def test_gates_of_a_sliced_bank(backend, device):
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(5, 40, 64, torch.float32, device)
    packed = [tss_kernels.pack_gates(tensors[f"{layer}_scores"]) for layer in ("down", "up")]
    bank = torch.cat([torch.full((1,), 255, dtype=torch.uint8, device=device), *(gate.flatten() for gate in packed)])
    sliced = [part.view_as(gate) for part, gate in zip(bank[1:].split([320, 320]), packed, strict=True)]
    with tss_kernels.use_backend(backend):
        expected, actual = (
            adapter_product(tensors["x"], gated_map(tensors, "down", down), gated_map(tensors, "up", up), "relu")
            for down, up in (packed, sliced)
        )
    assert torch.equal(actual, expected)


def test_no_second_derivative():
    tensors = draw(3, 4, 2, torch.float32, "cpu")
    leaves = {name: tensors[name].requires_grad_() for name in NAMES}
    y = tss_kernels.gated_adapter(**leaves)
    (gradient,) = torch.autograd.grad(y, leaves["x"], torch.ones_like(y).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def by_two_products(x, down_weight, down_scores, up_weight, up_scores, down_bias, up_bias, activation, threshold, t):
    """The same from two gated_linear around the activation."""
    down, up = (
        partial(tss_kernels.gated_linear, weight=weight, scores=scores, bias=bias, threshold=threshold, importance=i)
        for weight, scores, bias, i in (
            (down_weight, down_scores, down_bias, t["down_importance"]),
            (up_weight, up_scores, up_bias, t["up_importance"]),
        )
    )
    return x + up(getattr(torch.nn.functional, activation)(down(x)))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_the_reference_has_the_bits_of_two_products(layout, activation, dtype, autocast):
    tensors = draw(33, 40, 24, dtype, "cpu")
    tensors["x"], tensors["dy"] = in_layout(tensors["x"], layout), in_layout(tensors["dy"], layout)
    importance = {name: tensors[name] for name in ("down_importance", "up_importance")}
    results = []
    for fused in (True, False):
        leaves = {name: tensors[name].detach().requires_grad_() for name in NAMES}
        with torch.autocast("cpu", autocast, enabled=autocast is not None), tss_kernels.use_backend("reference"):
            if fused:
                y = tss_kernels.gated_adapter(**leaves, activation=activation, threshold=0.1, **importance)
            else:
                y = by_two_products(**leaves, activation=activation, threshold=0.1, t=tensors)
        y.backward(tensors["dy"])
        results.append({"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()})
    for name, value in results[1].items():
        assert results[0][name].dtype == value.dtype
        assert torch.equal(results[0][name], value), name


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bottleneck", [24, 130])
def test_autocast_keeps_the_residual(backend, bottleneck, activation, device):
    """Products in bfloat16, the residual in x's own float32: at most twice the error of the same by PyTorch."""
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(33, 48, bottleneck, torch.float32, device)
    leaves = {name: tensors[name].detach().requires_grad_() for name in NAMES}
    importance = {name: tensors[name] for name in ("down_importance", "up_importance")}
    with torch.autocast(device.type, torch.bfloat16), tss_kernels.use_backend(backend):
        y = tss_kernels.gated_adapter(**leaves, activation=activation, threshold=0.1, **importance)
    y.backward(tensors["dy"])
    with torch.autocast(device.type, torch.bfloat16):
        pytorch = by_hand(tensors, activation, 0.1, torch.float32)
    exact = by_hand(tensors, activation, 0.1, torch.float64)
    assert y.dtype == torch.float32
    assert_as_exact_as_pytorch(y.detach(), pytorch["y"], exact["y"])
    for name in ("x", "down_weight", "up_weight", "down_bias", "up_bias"):
        assert_as_exact_as_pytorch(leaves[name].grad, pytorch[name], exact[name])


X, D, U = torch.randn(3, 4), torch.randn(2, 4), torch.randn(4, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"x": torch.randn(3, 5)}, ValueError, r"in = 4, but x has shape \(3, 5\)"),
        ({"x": torch.tensor(1.0)}, ValueError, "in = 4"),
        ({"x": X.half()}, TypeError, "x has torch.float16 and weight torch.float32"),
        ({"up_weight": D}, ValueError, r"\(2, 4\) reversed but has \(2, 4\)"),
        ({"up_weight": U.half()}, TypeError, "torch.float32 and weight torch.float16"),
        ({"down_scores": U}, ValueError, r"\(2, 4\) but have \(4, 2\)"),
        ({"up_scores": U.half()}, TypeError, "float32 but are torch.float16"),
        ({"up_bias": torch.zeros(2)}, ValueError, r"\(4,\) but has \(2,\)"),
        ({"up_importance": D}, ValueError, r"\(4, 2\) but has \(2, 4\)"),
        ({"activation": "softmax"}, ValueError, "'tanh' but is 'softmax'"),
    ],
)
def test_errors_name_condition_and_values(arguments, error, says):
    given = {"x": X, "down_weight": D, "down_scores": D, "up_weight": U, "up_scores": U}
    with pytest.raises(error, match=says):
        tss_kernels.gated_adapter(**(given | arguments))


def test_packed_gates_must_fit():
    module = GatedAdapter(4, 2)
    with pytest.raises(ValueError, match=r"must have shape \(4, 1\) but have \(2, 1\)"):
        module.up.set_packed(tss_kernels.pack_gates(D))
    module.up.packed = tss_kernels.pack_gates(D)  # past the check
    with pytest.raises(ValueError, match=r"the up map: .*must have shape \(4, 1\) but have \(2, 1\)"):
        module(X)
    module.up.packed = U
    with pytest.raises(TypeError, match=r"the up map: .*uint8 but are torch.float32"):
        module(X)

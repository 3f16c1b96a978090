"""gated_adapter on every backend that runs here: value and gradients against float64, bits against its two products."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import gelu, linear, relu, silu

import tss_kernels
from tss_kernels.gated_adapter.api import gated_adapter_from_packed
from tss_kernels.gated_adapter.reference import compose
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

ACTIVATIONS = {"relu": relu, "gelu": gelu, "silu": silu, "tanh": torch.tanh}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# rows, d, bottleneck: no rows, single elements, both sides of a tile's edge, bytes and words of gates, empty dimensions
SHAPES = [
    (0, 9, 5), (1, 1, 1), (31, 33, 24), (63, 96, 64), (33, 70, 65), (5, 40, 130), (5, 0, 3), (5, 3, 0),
]  # fmt: skip
EDGE = [0.25, float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 0.24999999, 0.2500001]
NAMES = ("x", "down_weight", "down_scores", "up_weight", "up_scores", "down_bias", "up_bias")


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_outputs():
        yield


def draw(rows: int, d: int, bottleneck: int, dtype: torch.dtype, device) -> dict[str, torch.Tensor]:
    """Inputs of hidden units of about unit size, so that every activation bends."""
    generator = torch.Generator().manual_seed(rows + 7 * d + 77 * bottleneck)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    drawn = {
        "x": normal(rows, d).to(dtype),
        "down_weight": (normal(bottleneck, d) / max(d, 1) ** 0.5).to(dtype),
        "down_scores": normal(bottleneck, d).float(),
        "up_weight": normal(d, bottleneck).to(dtype),
        "up_scores": normal(d, bottleneck).float(),
        "down_bias": normal(bottleneck).to(dtype),
        "up_bias": normal(d).to(dtype),
        "dy": normal(rows, d).to(dtype),
        "down_importance": torch.rand(bottleneck, d, generator=generator),
        "up_importance": torch.rand(d, bottleneck, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in drawn.items()}


def by_hand(t: dict[str, torch.Tensor], activation: str, threshold: float, dtype: torch.dtype):
    """Value and gradients as PyTorch itself computes them in one dtype; a gate's gradient is its score's.

    Gates are leaves of ones and zeros in float32 or wider, and the products with them selections.
    """
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {name: t[name].detach().to(dtype).requires_grad_() for name in NAMES if "scores" not in name}
    down_on, up_on = (t[f"{layer}_scores"] >= threshold for layer in ("down", "up"))
    before = linear(leaves["x"], torch.where(down_on, leaves["down_weight"], 0), leaves["down_bias"])
    active = ACTIVATIONS[activation](before)
    branch = linear(active, torch.where(up_on, leaves["up_weight"], 0), leaves["up_bias"])
    y = leaves["x"] + branch
    before.retain_grad()
    dy = t["dy"].to(dtype)
    y.backward(dy)
    values = {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}
    pairs = {"down": (before.grad, leaves["x"]), "up": (dy, active)}
    for layer, (d_out, given) in pairs.items():
        product = d_out.to(wide).T @ given.detach().to(wide)
        keep = 1 - t[f"{layer}_importance"].to(wide)
        values[f"{layer}_scores"] = product * t[f"{layer}_weight"].to(wide) * keep
    return values


def check(actual: dict[str, torch.Tensor], t: dict[str, torch.Tensor], activation: str, threshold: float) -> None:
    pytorch = by_hand(t, activation, threshold, t["x"].dtype)
    exact = by_hand(t, activation, threshold, torch.float64)
    for name, value in actual.items():
        assert value.dtype == (torch.float32 if "scores" in name else t["x"].dtype)
        assert_as_exact_as_pytorch(value, pytorch[name].to(value.dtype), exact[name])


def run(
    t: dict[str, torch.Tensor], backend: str, activation: str, threshold: float = 0.1, trained: tuple[str, ...] = NAMES
) -> dict[str, torch.Tensor]:
    """y and the gradients of what is trained, from scores."""
    leaves = {name: t[name].detach().requires_grad_(name in trained) for name in NAMES}
    importance = {name: t[name] for name in ("down_importance", "up_importance")}
    with tss_kernels.use_backend(backend):
        y = tss_kernels.gated_adapter(**leaves, activation=activation, threshold=threshold, **importance)
    y.backward(t["dy"])
    return {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(backend, shape, activation, dtype, device):
    backend.runs("gated_adapter", dtype)
    tensors = draw(*shape, dtype, device)
    check(run(tensors, backend, activation), tensors, activation, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows(backend, dtype, device):
    backend.runs("gated_adapter", dtype)
    tensors = draw(1000, 16, 8, dtype, device)
    check(run(tensors, backend, "gelu"), tensors, "gelu", 0.1)


@pytest.mark.parametrize("layout", ["permuted", "sliced", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(backend, dtype, layout, device):
    backend.runs("gated_adapter", dtype)
    tensors = draw(33, 48, 32, dtype, device)
    for name, tensor in tensors.items():
        if name in ("x", "dy"):
            tensors[name] = in_layout(tensor, layout)
        elif tensor.dim() == 2:
            tensors[name] = in_layout(tensor, "permuted")
    check(run(tensors, backend, "silu"), tensors, "silu", 0.1)


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (2, 0, 3)])
def test_any_leading_dimensions(backend, leading, device):
    backend.runs("gated_adapter", torch.float32)
    rows = torch.Size(leading).numel()
    tensors = draw(rows, 9, 5, torch.float32, device)
    flat = run(tensors, backend, "gelu")
    shaped = run(tensors | {name: tensors[name].view(*leading, 9) for name in ("x", "dy")}, backend, "gelu")
    assert shaped["y"].shape == shaped["x"].shape == (*leading, 9)
    for name, value in flat.items():
        assert torch.equal(shaped[name].reshape(value.shape), value)


@pytest.mark.parametrize("bottleneck", [8, 130])
def test_edge_scores_and_weights_that_are_not_finite(backend, bottleneck, device):
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(6, 8, bottleneck, torch.float32, device)
    edge = torch.tensor(EDGE, device=device)
    on = torch.tensor([True, False, True, False, False, False, False, True], device=device)
    bad = torch.tensor([float("inf"), float("nan"), -float("inf"), float("nan"), float("inf")], device=device)
    clean = {"down_scores": edge.expand(bottleneck, 8), "up_scores": edge[:, None].expand(8, bottleneck)}
    clean = tensors | {name: scores.contiguous() for name, scores in clean.items()}
    broken = clean | {name: clean[name].clone() for name in ("down_weight", "up_weight")}
    broken["down_weight"][:, ~on], broken["up_weight"][~on] = bad, bad[:, None]
    trained = ("x", "down_bias", "up_bias")
    expected, actual = (run(t, backend, "gelu", 0.25, trained) for t in (clean, broken))
    for name in ("y", *trained):
        assert actual[name].isfinite().all()
        assert torch.equal(actual[name], expected[name])
    check(expected, clean, "gelu", 0.25)


def test_only_what_asks_gets_a_gradient(backend, device):
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(6, 9, 5, torch.float32, device)
    everything = run(tensors, backend, "tanh")
    for trained in NAMES:
        alone = run(tensors, backend, "tanh", trained=(trained,))
        assert set(alone) == {"y", trained}
        assert torch.equal(alone[trained], everything[trained])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_step_on_scores_before_backward_and_backward_twice(backend, activation, device):
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(6, 9, 5, torch.float32, device)
    expected = run(tensors, backend, activation)
    leaves = {name: tensors[name].clone().requires_grad_() for name in NAMES}
    importance = {name: tensors[name] for name in ("down_importance", "up_importance")}
    with tss_kernels.use_backend(backend):
        y = tss_kernels.gated_adapter(**leaves, activation=activation, threshold=0.1, **importance)
    with torch.no_grad():
        leaves["down_scores"].neg_()
        leaves["up_scores"].neg_()
    for _ in range(2):
        y.backward(tensors["dy"], retain_graph=True)
        for name, leaf in leaves.items():
            assert torch.equal(leaf.grad, expected[name])
            leaf.grad = None


def test_twice_in_one_graph(backend, device):
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(6, 9, 5, torch.float32, device)
    weights = {name: tensors[name] for name in NAMES if name != "x"}
    weights["up_scores"] = weights["up_scores"].requires_grad_()
    with tss_kernels.use_backend(backend):
        between = tss_kernels.gated_adapter(tensors["x"], **weights)
        between.retain_grad()
        tss_kernels.gated_adapter(between, **weights).backward(tensors["dy"])
        together, alone = weights["up_scores"].grad, []
        for x, dy in ((tensors["x"], between.grad), (between.detach(), tensors["dy"])):
            weights["up_scores"].grad = None
            tss_kernels.gated_adapter(x, **weights).backward(dy)
            alone.append(weights["up_scores"].grad)
    torch.testing.assert_close(together, alone[0] + alone[1])


def test_equal_inputs_give_equal_bits(backend, device):
    backend.runs("gated_adapter", torch.bfloat16)
    tensors = draw(520, 16, 8, torch.bfloat16, device)
    results = [run(tensors, backend, "gelu") for _ in range(3)]
    for name, value in results[0].items():
        assert all(torch.equal(result[name], value) for result in results[1:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bottleneck", [13, 130])
def test_packed_gates_give_the_same_bits(backend, bottleneck, activation, device):
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(9, 40, bottleneck, torch.float32, device)
    expected = run(tensors, backend, activation)
    packed = {f"{layer}_packed": tss_kernels.pack_gates(tensors[f"{layer}_scores"], 0.1) for layer in ("down", "up")}
    # The values of the scores are not looked at.
    leaves = {name: tensors[name].detach().clone().requires_grad_() for name in NAMES}
    for name in ("down_scores", "up_scores"):
        leaves[name].data.fill_(float("nan"))
    importance = {name: tensors[name] for name in ("down_importance", "up_importance")}
    with tss_kernels.use_backend(backend):
        y = gated_adapter_from_packed(**leaves, **packed, activation=activation, **importance)
    y.backward(tensors["dy"])
    assert torch.equal(y, expected["y"])
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[name])
    sealed = {name: tensors[name] for name in NAMES if "scores" not in name}
    with tss_kernels.use_backend(backend):
        assert torch.equal(gated_adapter_from_packed(**sealed, **packed, activation=activation), y)
        x = sealed.pop("x").clone().requires_grad_()
        gated_adapter_from_packed(x, **sealed, **packed, activation=activation).backward(tensors["dy"])
    assert torch.equal(x.grad, expected["x"])


def test_gates_of_a_sliced_bank(backend, device):
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(5, 40, 64, torch.float32, device)
    weights = {name: tensors[name] for name in ("x", "down_weight", "up_weight")}
    packed = [tss_kernels.pack_gates(tensors[f"{layer}_scores"]) for layer in ("down", "up")]
    bank = torch.cat([torch.full((1,), 255, dtype=torch.uint8, device=device), *(gate.flatten() for gate in packed)])
    sliced = [part.view_as(gate) for part, gate in zip(bank[1:].split([320, 320]), packed, strict=True)]
    with tss_kernels.use_backend(backend):
        expected, actual = (
            gated_adapter_from_packed(**weights, down_packed=down, up_packed=up) for down, up in (packed, sliced)
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
    return compose(x, down, up, activation)


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
    packed = tss_kernels.pack_gates(D), tss_kernels.pack_gates(U)
    with pytest.raises(ValueError, match=r"must have shape \(4, 1\) but have \(2, 1\)"):
        gated_adapter_from_packed(X, D, packed[0], U, packed[0])
    with pytest.raises(TypeError, match=r"uint8 but are torch.float32"):
        gated_adapter_from_packed(X, D, D, U, packed[1])

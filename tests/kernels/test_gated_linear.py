"""gated_linear on every backend that runs here, against float64 and against the hand formula of its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

import tss_kernels
from tss_kernels.testing import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# rows, in, out: none, single elements, ragged sizes around the tiles
SHAPES = [(0, 9, 5), (1, 1, 1), (31, 33, 17), (33, 64, 65), (63, 70, 3), (1000, 17, 9), (5, 0, 3), (5, 3, 0)]
EDGE = [0.25, float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 0.24999999, 0.2500001]


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_outputs():
        yield


def draw(rows: int, in_features: int, out_features: int, dtype: torch.dtype, device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + 7 * in_features + 77 * out_features)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    drawn = {
        "x": normal(rows, in_features).to(dtype),
        "weight": normal(out_features, in_features).to(dtype),
        "scores": normal(out_features, in_features).float(),
        "bias": normal(out_features).to(dtype),
        "dy": normal(rows, out_features).to(dtype),
        "importance": torch.rand(out_features, in_features, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in drawn.items()}


def by_hand(t: dict[str, torch.Tensor], threshold: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The formulas of the operation, written out in one dtype; products that end in float32 start from it."""
    wide = torch.promote_types(dtype, torch.float32)
    x, weight, bias, dy = (t[name].to(dtype) for name in ("x", "weight", "bias", "dy"))
    masked = torch.where(t["scores"] >= threshold, weight, 0)
    product = dy.to(wide).T @ x.to(wide)
    return {
        "y": linear(x, masked, bias),
        "x": dy @ masked,
        "scores": (product * weight.to(wide) * (1 - t["importance"].to(wide))).to(torch.float32),
        "weight": torch.where(t["scores"] >= threshold, product, 0).to(dtype),
        "bias": dy.sum(0),
    }


def exactly(t: dict[str, torch.Tensor], threshold: float) -> dict[str, torch.Tensor]:
    """The same in float64, nothing rounded at the end."""
    values = by_hand(
        {name: tensor.double() for name, tensor in t.items()} | {"scores": t["scores"]}, threshold, torch.float64
    )
    product = t["dy"].double().T @ t["x"].double()
    return values | {"scores": product * t["weight"].double() * (1 - t["importance"].double())}


def run(t: dict[str, torch.Tensor], backend: str, threshold: float, trained: str) -> dict[str, torch.Tensor]:
    leaves = {
        name: t[name].detach().requires_grad_(name in trained.split()) for name in ("x", "weight", "scores", "bias")
    }
    with tss_kernels.use_backend(backend):
        y = tss_kernels.gated_linear(**leaves, threshold=threshold, importance=t["importance"])
    y.backward(t["dy"])
    return {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients(backend, dtype, shape, device):
    backend.runs("gated_linear", dtype)
    tensors = draw(*shape, dtype, device)
    actual = run(tensors, backend, 0.1, "x weight scores bias")
    pytorch, exact = by_hand(tensors, 0.1, dtype), exactly(tensors, 0.1)
    for name in exact:
        assert_as_exact_as_pytorch(actual[name], pytorch[name], exact[name])


@pytest.mark.parametrize("gradient_layout", ["contiguous", "permuted", "sliced", "expanded"])
@pytest.mark.parametrize("input_layout", ["contiguous", "permuted", "sliced", "expanded"])
def test_layouts(backend, gradient_layout, input_layout, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(33, 19, 21, torch.float32, device)
    tensors["dy"] = in_layout(tensors["dy"], gradient_layout)
    tensors["x"] = in_layout(tensors["x"], input_layout)
    for name in ("weight", "scores", "importance"):
        tensors[name] = in_layout(tensors[name], "permuted")
    actual = run(tensors, backend, 0.1, "x weight scores bias")
    pytorch, exact = by_hand(tensors, 0.1, torch.float32), exactly(tensors, 0.1)
    for name in exact:
        assert_as_exact_as_pytorch(actual[name], pytorch[name], exact[name])


def test_edge_scores_and_weights_that_are_not_finite(backend, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(5, len(EDGE), 2, torch.float32, device)
    tensors["scores"] = torch.tensor([EDGE, EDGE], device=device)
    on = torch.tensor([True, False, True, False, False, False, False, True], device=device)
    tensors["weight"][:, ~on] = torch.tensor([float("inf"), float("nan"), -float("inf"), 1.0, 2.0], device=device)
    with tss_kernels.use_backend(backend):
        x = tensors["x"].clone().requires_grad_()
        y = tss_kernels.gated_linear(x, tensors["weight"], tensors["scores"], threshold=0.25)
        y.backward(tensors["dy"])
    torch.testing.assert_close(y, tensors["x"][:, on] @ tensors["weight"][:, on].T)
    assert (x.grad[:, ~on] == 0).all()
    torch.testing.assert_close(x.grad[:, on], tensors["dy"] @ tensors["weight"][:, on])


@pytest.mark.parametrize("gates_on", [True, False])
def test_all_gates_alike(backend, gates_on, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(7, 9, 5, torch.float32, device)
    with tss_kernels.use_backend(backend):
        y = tss_kernels.gated_linear(
            tensors["x"], tensors["weight"], tensors["scores"], threshold=-99.0 if gates_on else 99.0
        )
    torch.testing.assert_close(y, linear(tensors["x"], tensors["weight"]) if gates_on else torch.zeros_like(y))


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (2, 1, 3), (2, 0, 3)])
def test_any_leading_dimensions(backend, leading, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(6, 9, 5, torch.float32, device)
    x = torch.randn(*leading, 9, device=device, requires_grad=True)
    scores = tensors["scores"].requires_grad_()
    with tss_kernels.use_backend(backend):
        y = tss_kernels.gated_linear(x, tensors["weight"], scores, tensors["bias"])
    dy = torch.randn_like(y)
    y.backward(dy)
    masked = torch.where(scores >= 0, tensors["weight"], 0)
    torch.testing.assert_close(y, linear(x, masked, tensors["bias"]))
    torch.testing.assert_close(x.grad, dy @ masked)
    flat = dy.reshape(x[..., 0].numel(), 5).T @ x.detach().reshape(x[..., 0].numel(), 9)
    torch.testing.assert_close(scores.grad, flat * tensors["weight"])


def test_only_what_asks_gets_a_gradient(backend, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(6, 9, 5, torch.float32, device)
    for trained in ("x", "weight", "scores", "bias"):
        gradients = run(tensors, backend, 0.0, trained)
        assert [name for name in ("x", "weight", "scores", "bias") if gradients[name] is not None] == [trained]


def test_step_on_scores_before_backward_changes_nothing(backend, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(6, 9, 5, torch.float32, device)
    x, scores = tensors["x"].requires_grad_(), tensors["scores"].requires_grad_()
    with tss_kernels.use_backend(backend):
        y = tss_kernels.gated_linear(x, tensors["weight"], scores)
    masked = torch.where(scores >= 0, tensors["weight"], 0)
    with torch.no_grad():
        scores.neg_()
    y.backward(tensors["dy"])
    torch.testing.assert_close(x.grad, tensors["dy"] @ masked)


def test_twice_in_one_graph_and_backward_twice(backend, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(6, 8, 8, torch.float32, device)
    x, scores, weight = tensors["x"], tensors["scores"].requires_grad_(), tensors["weight"]
    with tss_kernels.use_backend(backend):
        hidden = tss_kernels.gated_linear(x, weight, scores)
        hidden.retain_grad()
        y = tss_kernels.gated_linear(hidden, weight, scores)
    y.backward(tensors["dy"], retain_graph=True)
    expected = (tensors["dy"].T @ hidden.detach() + hidden.grad.T @ x) * weight
    torch.testing.assert_close(scores.grad, expected)
    first, scores.grad = scores.grad, None
    y.backward(tensors["dy"])
    assert torch.equal(scores.grad, first)


def test_equal_inputs_give_equal_bits(backend, device):
    backend.runs("gated_linear", torch.float32)
    tensors = draw(600, 33, 17, torch.float32, device)
    results = [run(tensors, backend, 0.0, "x scores") for _ in range(5)]
    for name in ("y", "x", "scores"):
        assert all(torch.equal(result[name], results[0][name]) for result in results[1:])


def test_importance_of_one_stops_the_scores(device):
    tensors = draw(6, 9, 5, torch.float32, device) | {"importance": torch.ones(5, 9, device=device)}
    assert (run(tensors, "reference", 0.0, "scores")["scores"] == 0).all()


def test_no_second_derivative():
    x = torch.randn(3, 4, requires_grad=True)
    with tss_kernels.use_backend("reference"):
        y = tss_kernels.gated_linear(x, torch.randn(2, 4), torch.randn(2, 4))
    (gradient,) = torch.autograd.grad(y, x, torch.ones(3, 2, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


X, W, S = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"x": torch.randn(3, 5)}, ValueError, r"in = 4, but x has shape \(3, 5\)"),
        ({"x": torch.tensor(1.0)}, ValueError, "in = 4"),
        ({"x": X.long()}, TypeError, "floating dtype, .* but has torch.int64"),
        ({"x": X.half()}, TypeError, r"x has torch.float16 and weight torch.float32: convert .* torch.autocast"),
        ({"weight": W[0]}, ValueError, "two dimensions"),
        ({"scores": S[:1]}, ValueError, r"\(2, 4\) but have \(1, 4\)"),
        ({"scores": S.half()}, TypeError, "float32 but are torch.float16"),
        ({"bias": torch.zeros(3)}, ValueError, r"\(2,\) but has \(3,\)"),
        ({"bias": torch.zeros(2).half()}, TypeError, "torch.float32 but has torch.float16"),
        ({"importance": S[:1]}, ValueError, r"\(2, 4\) but has \(1, 4\)"),
        ({"importance": S.long()}, TypeError, "floating dtype"),
        ({"scores": S.to("meta")}, ValueError, "device cpu but is on meta"),
    ],
)
def test_errors_name_condition_and_values(arguments, error, says):
    with pytest.raises(error, match=says):
        tss_kernels.gated_linear(**({"x": X, "weight": W, "scores": S} | arguments))

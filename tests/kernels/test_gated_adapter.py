"""gated_adapter on every backend that runs here: value and gradients against float64 and PyTorch's own error."""

from __future__ import annotations

import pytest
import torch

import tss_kernels
from tests.kernels.gated_adapter_cases import ACTIVATIONS, NAMES, by_hand, check, draw, run
from tss_kernels.testing import in_layout, poisoned_outputs

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# rows, d, bottleneck: no rows, single elements, both sides of a tile's edge, bytes and words of gates, empty dimensions
SHAPES = [
    (0, 9, 5), (1, 1, 1), (31, 33, 24), (63, 96, 64), (33, 70, 65), (5, 40, 130), (5, 0, 3), (5, 3, 0),
]  # fmt: skip
OTHERS = [((33, 70, 65), activation) for activation in ACTIVATIONS if activation != "gelu"]
EDGE = [0.25, float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 0.24999999, 0.2500001]


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_outputs():
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "activation"), [*((shape, "gelu") for shape in SHAPES), *OTHERS], ids=str)
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


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_infinite_inputs_reach_what_they_reach_in_pytorch(backend, activation, device):
    """Units that only fill a tile multiply infinity by 0: they must not spread the NaN that this makes."""
    backend.runs("gated_adapter", torch.float32)
    tensors = draw(6, 9, 5, torch.float32, device)
    tensors |= {name: tensors[name].abs() for name in ("x", "dy", "down_weight", "up_weight")}
    tensors["x"][0, 0] = tensors["dy"][1, 1] = float("inf")
    actual = run(tensors, backend, activation, threshold=-99.0, trained=("x",))
    pytorch = by_hand(tensors, activation, -99.0, torch.float32)
    for name in ("y", "x"):
        # With AVX-512 PyTorch's own gelu gives NaN for infinity. There a backend may give that, or infinity.
        unsure = pytorch[name].isnan() & torch.tensor(activation == "gelu")
        assert (actual[name][unsure].isnan() | actual[name][unsure].isposinf()).all()
        torch.testing.assert_close(actual[name][~unsure], pytorch[name][~unsure])
    assert actual["y"][1:].isfinite().all()
    assert actual["x"][2:].isfinite().all()


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

"""Products of many tasks as PyTorch's users call them: compiled, under autocast, checkpointed, with wrong arguments."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import tss_kernels
from tests.kernels.multi_task_cases import OPERATIONS, by_hand, draw, on, run
from tss_kernels.testing import check_op, in_layout

TASKS = 4


def _inputs(rows, dtype, generator):
    ids = torch.randint(0, 2, (rows,), generator=generator)
    return draw(ids.tolist(), 3, (20, 17), dtype, 2, seed=rows)


@pytest.mark.parametrize("op", OPERATIONS)
def test_what_users_do(backend, op, device):
    backend.runs(f"multi_task_{op}", torch.float32)

    def function(**inputs):
        with tss_kernels.use_backend(backend):
            return run(op, inputs)

    most = 5 if backend == "triton" and device.type == "cpu" else 33  # the interpreter takes seconds a tile
    check_op(function, lambda **inputs: by_hand(op, inputs), _inputs, device=device, rows=(0, 1, most))


def _samples(layout: str) -> dict[str, tuple]:
    t = draw([3, 0, 3], 2, (20, 17), torch.float32, TASKS)
    t = {name: in_layout(tensor, layout) for name, tensor in t.items()}
    down, up = (t["down_weight"], t["down_bank"]), (t["up_weight"], t["up_bank"])
    dy = in_layout(torch.randn(3, 2, 17), layout)
    return {
        "multi_task_linear": (t["x"], *down, t["task_ids"], t["down_bias"]),
        "multi_task_linear_input_grad": (dy, *down, t["task_ids"]),
        "multi_task_adapter": (t["x"], *down, *up, t["task_ids"], t["down_bias"], None, "gelu"),
        "multi_task_adapter_input_grad": (t["x"], dy, *down, *up, t["task_ids"], "gelu"),
    }


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
@pytest.mark.parametrize("name", _samples("contiguous"))
def test_opcheck(backend, name, layout):
    backend.runs("multi_task_linear", torch.float32)
    torch.library.opcheck(getattr(torch.ops.tss_kernels, name).default, (*_samples(layout)[name], str(backend)))


@pytest.mark.parametrize("op", OPERATIONS)
def test_one_graph_for_all_tasks(op):
    """Other tasks in the batch, and others in the bank, are values: nothing is compiled again for them."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda inputs: run(op, inputs), fullgraph=True, backend=counter)
    for seed, ids in enumerate(([0, 0, 0], [1, 3, 2], [3, 3, 0])):
        tensors = draw(ids, 2, (20, 17), torch.float32, TASKS, seed)
        assert torch.equal(compiled(tensors), run(op, tensors))
    assert counter.frame_count == 1
    with pytest.raises(ValueError, match=r"task_ids\[1\] is 4, but the bank has 4 tasks"):
        compiled(tensors | {"task_ids": torch.tensor([0, 4, 0])})


def test_inductor():
    torch._dynamo.reset()
    tensors = draw([1, 3, 2], 2, (20, 17), torch.float32, TASKS)
    compiled = torch.compile(lambda inputs: run("adapter", inputs), fullgraph=True)
    assert torch.equal(compiled(tensors), run("adapter", tensors))


def test_a_wider_residual_under_autocast(backend, device):
    """As in gated_adapter, x keeps its dtype and the products are in autocast's."""
    backend.runs("multi_task_adapter", torch.bfloat16)
    tensors = on(draw([1, 3, 2], 2, (20, 17), torch.float32, TASKS), device)
    with tss_kernels.use_backend(backend), torch.autocast(device.type, torch.bfloat16):
        y, linear = run("adapter", tensors), run("linear", tensors)
    assert (y.dtype, linear.dtype) == (torch.float32, torch.bfloat16)
    narrow = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    with tss_kernels.use_backend(backend):
        assert torch.equal(run("linear", narrow), linear)
        expected = run("adapter", narrow).float() - narrow["x"].float() + tensors["x"]
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=2**-5)


X, W, IDS = torch.randn(3, 8), torch.randn(4, 8), torch.tensor([1, 0, 1])
BANK, UP_BANK = torch.zeros(2, 4, 1, dtype=torch.uint8), torch.zeros(2, 8, 1, dtype=torch.uint8)
WRONG = {
    "ids in a list": ({"task_ids": [1, 0, 1]}, TypeError, r"task_ids must be a tensor but is \[1, 0, 1\], a list"),
    "ids of 32 bits": ({"task_ids": IDS.int()}, TypeError, "task_ids must be int64 but are torch.int32"),
    "too few ids": ({"task_ids": IDS[:2]}, ValueError, r"shape \(3,\), one id .*\(2,\) for x \(3, 8\)"),
    "an id for each feature": ({"task_ids": IDS[:, None]}, ValueError, r"shape \(3,\), .*\(3, 1\)"),
    "x without a first dimension": ({"x": X[0], "task_ids": IDS[:1]}, ValueError, r"shape \(8,\): use x.unsqueeze"),
    "x of another width": ({"x": torch.ones(3, 9)}, ValueError, r"in = 8, but x has shape \(3, 9\)"),
    "x of another dtype": ({"x": X.double()}, TypeError, "x has torch.float64 and weight torch.float32"),
    "no gates": ({"bank": None}, TypeError, "bank must be a tensor but is None"),
    "gates of one task": ({"bank": BANK[0]}, ValueError, r"shape \(tasks, 4, 1\) but has \(4, 1\): stack"),
    "gates of another weight": ({"bank": UP_BANK}, ValueError, r"of a weight \(4, 8\) .*\(2, 8, 1\)"),
    "scores for gates": ({"bank": BANK.float()}, TypeError, "bank must be uint8 but is torch.float32"),
    "a bias of another size": ({"bias": torch.ones(3)}, ValueError, r"bias must have shape \(out,\) = \(4,\)"),
    "a weight that trains": ({"weight": W.clone().requires_grad_()}, ValueError, "weight requires one: detach it"),
    "a bias that trains": ({"bias": torch.ones(4, requires_grad=True)}, ValueError, "bias requires one: detach it"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("op", OPERATIONS)
def test_refusals(op, case):
    changed, error, says = WRONG[case]
    given = {"x": X, "weight": W, "bank": BANK, "task_ids": IDS, "bias": None} | changed
    x, weight, bank, ids, bias = given.values()
    calls = {
        "linear": lambda: tss_kernels.multi_task_linear(x, weight, bank, ids, bias),
        "adapter": lambda: tss_kernels.multi_task_adapter(x, weight, bank, W.T, UP_BANK, ids, bias),
    }
    with pytest.raises(error, match=says):
        calls[op]()


def test_refusals_of_the_adapter_alone():
    with pytest.raises(ValueError, match="down_bank has 2 and up_bank 1"):
        tss_kernels.multi_task_adapter(X, W, BANK, W.T, UP_BANK[:1], IDS)
    with pytest.raises(ValueError, match=r"the up map: up_bank .*\(8, 4\)"):
        tss_kernels.multi_task_adapter(X, W, BANK, W.T, BANK, IDS)
    with pytest.raises(ValueError, match=r"up_weight must have down_weight's shape \(4, 8\) reversed"):
        tss_kernels.multi_task_adapter(X, W, BANK, W, UP_BANK, IDS)
    with pytest.raises(ValueError, match="activation must be one of 'relu'"):
        tss_kernels.multi_task_adapter(X, W, BANK, W.T, UP_BANK, IDS, activation="step")


def test_a_layer_that_was_sealed_asks_for_nothing():
    """Without a gradient to compute, parameters that could have one are no obstacle."""
    trained = W.clone().requires_grad_()
    with torch.no_grad():
        tss_kernels.multi_task_linear(X, trained, BANK, IDS)


def test_no_gradient_for_x_where_none_is_asked_for():
    y = tss_kernels.multi_task_linear(X, W, BANK, IDS)
    assert not y.requires_grad

"""The battery on these operations and on somebody else's; every check notices a fault that was planted for it."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch.nn.functional import gelu, linear

import tss_kernels
from tss_kernels.testing import CHECKS, CheckFailed, check_op


class Product(torch.autograd.Function):
    """A product as a user might write it; what inherits from it has one fault."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        return dy @ weight, dy.T @ x


def product(x, weight, kind=Product):
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return kind.apply(x, weight)


def reference(x, weight):
    return x @ weight.T


def make_inputs(rows, dtype, generator):
    return {name: torch.randn(size, 6, generator=generator).to(dtype) for name, size in (("x", rows), ("weight", 4))}


def contiguous_or_not(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as they would lie if the tensor were contiguous."""
    return torch.as_strided(tensor, tensor.shape, (tensor.shape[1], 1))


class WrongGradient(Product):
    @staticmethod
    def backward(ctx, dy):
        dx, dweight = Product.backward(ctx, dy)
        return dx, 1.001 * dweight


class MeanOverNoRows(Product):
    @staticmethod
    def backward(ctx, dy):
        dx, dweight = Product.backward(ctx, dy)
        return dx, dweight / len(dy) * len(dy)


class LastRowUnwritten(Product):
    @staticmethod
    def forward(ctx, x, weight):
        y = x.new_empty(len(x), len(weight))
        y[: len(x) - 1] = Product.forward(ctx, x, weight)[: len(x) - 1]
        return y


class ContiguousGradient(Product):
    @staticmethod
    def backward(ctx, dy):
        return Product.backward(ctx, contiguous_or_not(dy))


class ContiguousInput(Product):
    @staticmethod
    def forward(ctx, x, weight):
        return Product.forward(ctx, x, contiguous_or_not(weight))


class WritesToTheGradient(Product):
    @staticmethod
    def backward(ctx, dy):
        gradients = Product.backward(ctx, dy)
        dy.data.mul_(2)
        return gradients


class UsesUpWhatItSaved(Product):
    @staticmethod
    def backward(ctx, dy):
        gradients = Product.backward(ctx, dy)
        ctx.saved_tensors[0].data.zero_()
        return gradients


class RemembersTheLastCall(Product):
    @staticmethod
    def forward(ctx, x, weight):
        RemembersTheLastCall.saved = x, weight
        return x @ weight.T

    @staticmethod
    def backward(ctx, dy):
        x, weight = RemembersTheLastCall.saved
        return dy @ weight, dy.T @ x


class CountsItsCalls(Product):
    """Right if each forward pass is followed by its backward pass."""

    calls = 0

    @staticmethod
    def forward(ctx, x, weight):
        CountsItsCalls.calls += 1
        return Product.forward(ctx, x, weight)

    @staticmethod
    def backward(ctx, dy):
        calls, CountsItsCalls.calls = CountsItsCalls.calls, 0
        return Product.backward(ctx, calls * dy)


class KeepsTheTensorItself(Product):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.kept = x, weight
        return x @ weight.T

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.kept
        return dy @ weight, dy.T @ x


def without_autocast(x, weight):
    with torch.autocast(x.device.type, enabled=False):
        return Product.apply(x, weight)


def looks_at_values(x, weight):
    y = product(x, weight)
    return y if y.sum().item() < 1e9 else y.clone()


def row_by_row(x, weight):
    return torch.stack([weight @ row for row in x]) if len(x) else x @ weight.T


counter = itertools.count()


def one_call_in_ten_is_off(x, weight):
    y = product(x, weight)
    return y + (1e-6 if next(counter) % 10 == 9 else 0.0)


@torch.library.custom_op("tss_kernels_tests::undeclared_change", mutates_args=())
def undeclared_change(x: torch.Tensor) -> torch.Tensor:
    x.add_(1)
    return x.clone()


FAULTS = [
    (
        "values",
        WrongGradient,
        r"float32, 1 rows: gradient of weight: .* over the bound .* worst at \(\d, \d\): .* instead",
    ),
    ("empty rows", MeanOverNoRows, "float32, 0 rows: gradient of weight: largest error nan"),
    ("unwritten outputs", LastRowUnwritten, r"1 rows: value: 4 elements unwritten, the first at \(0, 0\)"),
    ("gradient layouts", ContiguousGradient, "5 rows, gradient permuted: gradient of x"),
    ("input layouts", ContiguousInput, "rows, weight sliced: value"),
    ("untouched inputs", WritesToTheGradient, "dy after the call: 20 of 20 elements differ"),
    ("backward twice", UsesUpWhatItSaved, "gradient of weight in the second backward pass"),
    ("twice in one graph", RemembersTheLastCall, "gradient of weight by the first call's tensors"),
    ("checkpointing", CountsItsCalls, "use_reentrant=True: gradient of x under checkpointing"),
    ("autocast", without_autocast, "its dtype is torch.float32, the reference's torch.bfloat16"),
    ("compile", looks_at_values, "5 rows: "),
    ("compile", row_by_row, r"\d graphs for rows \(5, 6, 8, 12, 0, 1\): at most 4 are needed"),
    ("equal bits", one_call_in_ten_is_off, r"value in run \d+: \d+ of 20 elements differ, the first at"),
    ("changed inputs", KeepsTheTensorItself, "x changed before the backward pass: gradient of weight after the change"),
]


@pytest.mark.parametrize(("check", "fault", "says"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS])
def test_a_planted_fault_is_noticed(check, fault, says):
    function = fault if not isinstance(fault, type) else lambda x, weight: product(x, weight, fault)
    with pytest.raises(CheckFailed, match=f"check '{check}' failed, ") as caught:
        check_op(function, reference, make_inputs, trained=("x", "weight"), rows=(0, 1, 5), checks=[check])
    assert re.search(says, str(caught.value)), caught.value
    assert "inputs: x (" in str(caught.value)


def test_an_operator_with_a_wrong_schema_is_noticed():
    with pytest.raises(CheckFailed, match=r"check 'opcheck' failed, tss_kernels_tests\.undeclared_change"):
        check_op(
            product, reference, make_inputs, checks=["opcheck"],
            operators=[(torch.ops.tss_kernels_tests.undeclared_change.default, (torch.randn(3),))],
        )  # fmt: skip


def test_every_check_has_a_fault():
    assert {check for check, *_ in FAULTS} | {"opcheck"} == set(CHECKS)


def test_the_right_function_passes():
    check_op(product, reference, make_inputs, trained=("x", "weight"))


def test_a_function_that_raises_or_gives_no_gradient_is_reported():
    with pytest.raises(CheckFailed, match=r"check 'values' failed, float32, 1 rows: ZeroDivisionError"):
        check_op(lambda x, weight: 1 / 0, reference, make_inputs, checks=["values"])
    with pytest.raises(CheckFailed, match="no gradient of weight arrived"):
        check_op(
            lambda x, weight: x @ weight.detach().T, reference, make_inputs, trained=("x", "weight"), checks=["values"]
        )


def test_unknown_checks_are_refused():
    with pytest.raises(ValueError, match="no check 'speed': choose from values, empty rows"):
        check_op(product, reference, make_inputs, checks=["speed"])


THRESHOLD = 0.1


def drawing(**shapes):
    """Inputs of these shapes, None meaning rows: scores stay float32, importance lies in [0, 1]."""

    def make(rows, dtype, generator):
        tensors = {}
        for name, shape in shapes.items():
            shape = [rows if size is None else size for size in shape]
            if "importance" in name:
                tensors[name] = torch.rand(shape, generator=generator)
            else:
                drawn = torch.randn(shape, generator=generator)
                tensors[name] = drawn if "scores" in name else drawn.to(dtype)
        return tensors

    return make


def masked(weight, scores):
    return torch.where(scores >= THRESHOLD, weight, 0)


def straight_through(dy, x, weight, importance):
    """(dYᵀ x) * W * (1 - I), products that end in float32 starting from it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (dy.to(wide).T @ x.to(wide)) * weight.to(wide) * (1 - importance.to(wide))


# Few values could come out of PyTorch exact by luck, which no other order of sums would equal.
ROWS = (0, 1, 31)


def test_gated_linear(backend, device):
    backend.runs("gated_linear", torch.float32)
    name, make = str(backend), drawing(x=(None, 20), weight=(17, 20), scores=(17, 20), bias=(17,), importance=(17, 20))

    def function(x, weight, scores, bias, importance):
        with tss_kernels.use_backend(name):
            return tss_kernels.gated_linear(x, weight, scores, bias, threshold=THRESHOLD, importance=importance)

    drawn = {key: value.to(device) for key, value in make(5, torch.float32, torch.Generator()).items()}
    arguments = (*(drawn[key] for key in ("x", "weight", "scores", "bias")), THRESHOLD, name)
    check_op(
        function,
        lambda x, weight, scores, bias, importance: linear(x, masked(weight, scores), bias),
        make,
        trained=("x", "weight", "scores", "bias"),
        straight_through={"scores": lambda t, dy: straight_through(dy, t["x"], t["weight"], t["importance"])},
        operators=[(torch.ops.tss_kernels.gated_linear.default, arguments)],
        device=device,
        rows=ROWS,
    )


def test_packed_linear(backend, device):
    backend.runs("packed_linear", torch.float32)
    name, draw = str(backend), drawing(x=(None, 20), weight=(17, 20), bias=(17,))

    def make(rows, dtype, generator):
        bits = torch.randint(0, 256, (17, 3), generator=generator, dtype=torch.uint8)
        bits[:, 2] &= 0b1111  # padding is 0
        return draw(rows, dtype, generator) | {"packed": bits}

    def function(x, weight, packed, bias):
        with tss_kernels.use_backend(name):
            return tss_kernels.packed_linear(x, weight, packed, bias)

    def plain(x, weight, packed, bias):
        column = torch.arange(20, device=x.device)
        return linear(x, torch.where(packed[:, column // 8] >> column % 8 & 1 == 1, weight, 0), bias)

    check_op(function, plain, make, trained=("x", "weight", "bias"), device=device, rows=ROWS)


def test_gated_adapter(backend, device):
    backend.runs("gated_adapter", torch.float32)
    name = str(backend)
    make = drawing(
        x=(None, 24), down_weight=(17, 24), down_scores=(17, 24), up_weight=(24, 17), up_scores=(24, 17),
        down_bias=(17,), up_bias=(24,), down_importance=(17, 24), up_importance=(24, 17),
    )  # fmt: skip

    def function(**inputs):
        with tss_kernels.use_backend(name):
            return tss_kernels.gated_adapter(**inputs, activation="gelu", threshold=THRESHOLD)

    def before(t):
        return linear(t["x"], masked(t["down_weight"], t["down_scores"]), t["down_bias"])

    def down_scores(t, dy):
        d_hidden = torch.ops.aten.gelu_backward(linear(dy, masked(t["up_weight"], t["up_scores"]).T), before(t))
        return straight_through(d_hidden, t["x"], t["down_weight"], t["down_importance"])

    check_op(
        function,
        lambda **t: t["x"] + linear(gelu(before(t)), masked(t["up_weight"], t["up_scores"]), t["up_bias"]),
        make,
        trained=("x", "down_scores", "up_scores", "down_bias", "up_bias"),
        straight_through={
            "down_scores": down_scores,
            "up_scores": lambda t, dy: straight_through(dy, gelu(before(t)), t["up_weight"], t["up_importance"]),
        },
        device=device,
        rows=ROWS,
    )


@pytest.mark.parametrize("empty", ["rows", "dtypes", "checks"])
def test_nothing_to_check_is_an_error(empty):
    with pytest.raises(ValueError, match=f"{empty} is empty"):
        check_op(product, reference, make_inputs, **{empty: ()})

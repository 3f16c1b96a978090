"""`check_op`: everything that PyTorch users do with an operation, as one call for the tests of any operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tss_kernels.testing.exactness import in_layout, poisoned_outputs
from tss_kernels.testing.op_under_test import (
    CheckFailed,
    Formula,
    OpUnderTest,
    assert_close,
    assert_same_bits,
    has_rows,
    is_tensor,
    reported,
)

LAYOUTS = ("permuted", "sliced", "expanded")

__all__ = ["CHECKS", "CheckFailed", "check_op"]


def _values(op: OpUnderTest) -> None:
    """Check that value and gradients are as exact as PyTorch's for every dtype and number of rows."""
    for dtype in op.dtypes:
        for rows in filter(None, op.rows):
            inputs = op.draw(rows, dtype)
            with reported("values", op.where(rows, dtype), inputs):
                dy = op.incoming(inputs)
                op.compare(op.run(inputs, dy), inputs, dy)


def _empty_rows(op: OpUnderTest) -> None:
    """Check that no rows give an empty result and gradients of the right shapes, with 0 for sums over nothing."""
    for dtype in op.dtypes:
        inputs = op.draw(0, dtype)
        with reported("empty rows", op.where(0, dtype), inputs):
            dy = op.incoming(inputs)
            op.compare(op.run(inputs, dy), inputs, dy)


def _unwritten_outputs(op: OpUnderTest) -> None:
    """Check that every element of a result is written: uninitialized tensors are filled with NaN."""
    for dtype in op.dtypes:
        for rows in op.rows:
            inputs = op.draw(rows, dtype)
            with reported("unwritten outputs", op.where(rows, dtype), inputs):
                dy = op.incoming(inputs)
                with poisoned_outputs():
                    actual = op.run(inputs, dy)
                exact = op.exact_results(inputs, dy)
                for name, value in actual.items():
                    assert value.shape == exact[name].shape, f"{name}: {value.shape} is not {exact[name].shape}"
                    gaps = (value.isnan() & ~exact[name].isnan()).nonzero()
                    assert not len(gaps), (
                        f"{name}: {len(gaps)} elements unwritten, the first at {tuple(gaps[0].tolist())}"
                    )


def _gradient_layouts(op: OpUnderTest) -> None:
    """Check incoming gradients that are permuted, sliced or of stride 0, as sums, transposes and slices produce."""
    inputs = op.usual()
    for layout in LAYOUTS if op.trained else ():
        with reported("gradient layouts", f"{op.where()}, gradient {layout}", inputs):
            dy = in_layout(op.incoming(inputs), layout)
            op.compare(op.run(inputs, dy), inputs, dy)


def _input_layouts(op: OpUnderTest) -> None:
    """Check inputs that are permuted, sliced or of stride 0: each alone, and all of them together.

    Not all of them with stride 0: all results would be the same value, and PyTorch's own error of that single value
    does not bound its rounding.
    """
    usual = op.usual()
    names = [name for name, value in usual.items() if has_rows(value)]
    alone = [(layout, [name]) for layout in ("sliced", "expanded") for name in names]
    for layout, chosen in [*alone, ("permuted", names), ("sliced", names)]:
        inputs = usual | {name: in_layout(usual[name], layout) for name in chosen}
        with reported("input layouts", f"{op.where()}, {' and '.join(chosen)} {layout}", inputs):
            dy = op.incoming(inputs)
            op.compare(op.run(inputs, dy), inputs, dy)


def _untouched_inputs(op: OpUnderTest) -> None:
    """Check that neither the inputs nor the incoming gradient are changed."""
    inputs = op.usual()
    with reported("untouched inputs", op.where(), inputs):
        tensors = {name: value for name, value in inputs.items() if is_tensor(value)} | {"dy": op.incoming(inputs)}
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        op.run(inputs, tensors["dy"])
        assert_same_bits(tensors, before, "after the call")


def _backward_twice(op: OpUnderTest) -> None:
    """Check that with retain_graph a second backward pass gives the same gradients as the first."""
    inputs = op.usual()
    with reported("backward twice", op.where(), inputs):
        leaves, dy, passes = op.leaves(inputs), op.incoming(inputs), []
        y = op.function(**leaves)
        for retain_graph in (True, False) if op.trained else ():
            y.backward(dy, retain_graph=retain_graph)
            passes.append(op.gradients(leaves))
            for name in op.trained:
                leaves[name].grad = None
        if passes:
            assert_same_bits(passes[1], passes[0], "in the second backward pass")


def _twice_in_one_graph(op: OpUnderTest) -> None:
    """Check that two calls in one graph, with different first trained inputs, stay independent."""
    one, two = op.usual(), op.usual(seed=1)
    if not op.trained:
        return
    first, *shared = op.trained
    two = one | {first: two[first]}
    with reported("twice in one graph", op.where(), one):
        dys = [op.incoming(one), op.incoming(two).flip(0)]
        alone = [op.run(inputs, dy) for inputs, dy in zip((one, two), dys, strict=True)]
        leaves = op.leaves(one)
        other = leaves | {first: op.leaves(two)[first]}
        torch.autograd.backward([op.function(**leaves), op.function(**other)], dys)
        sums = {
            f"gradient of {name}": alone[0][f"gradient of {name}"] + alone[1][f"gradient of {name}"] for name in shared
        }
        for tensors, run, which in ((leaves, alone[0], "first"), (other, alone[1], "second")):
            expected = sums | {f"gradient of {first}": run[f"gradient of {first}"]}
            assert_same_bits(op.gradients(tensors), expected, f"by the {which} call's tensors")


def _checkpointing(op: OpUnderTest) -> None:
    """Check that gradient checkpointing, which calls it again in the backward pass, changes no bit."""
    inputs = op.usual()
    if not op.trained:
        return
    for reentrant in (True, False):
        with reported("checkpointing", f"{op.where()}, use_reentrant={reentrant}", inputs):
            dy = op.incoming(inputs)

            def again(reentrant: bool = reentrant, **leaves: Any) -> torch.Tensor:
                # Reentrant checkpointing only handles positional tensors.
                call = lambda *values: op.function(**dict(zip(leaves, values, strict=True)))  # noqa: E731
                return checkpoint(call, *leaves.values(), use_reentrant=reentrant)  # type: ignore[return-value]

            assert_same_bits(op.run(inputs, dy, again), op.run(inputs, dy), "under checkpointing")


def _autocast(op: OpUnderTest) -> None:
    """Check that a float32 call under autocast to bfloat16 returns the reference's dtype, and is as exact."""
    inputs = op.draw(max(op.rows), torch.float32)
    with reported("autocast", f"{op.where(dtype=torch.float32)}, autocast to bfloat16", inputs):

        def casting() -> torch.autocast:
            return torch.autocast(op.device.type, torch.bfloat16)

        with casting():
            dy = op.incoming(inputs)
            y = op.function(**inputs)
            assert y.dtype == dy.dtype, f"value: its dtype is {y.dtype}, the reference's {dy.dtype}"
            actual = op.run(inputs, dy)
        exact = op.exact_results(inputs, dy)
        with casting():
            pytorch = op.pytorch_results(inputs, dy, exact)
        for name, value in actual.items():
            assert_close(name, value, pytorch[name], exact[name])


def _compile(op: OpUnderTest) -> None:
    """Check that torch.compile has no graph break, and uses at most two graphs, besides one each for 0 and 1 rows."""
    graphs = 0

    def counting(module: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(module, examples)

    torch._dynamo.reset()
    compiled = torch.compile(op.function, fullgraph=True, backend=counting)
    most, dtype = max(op.rows), op.dtypes[0]
    changing = (most, most + 1, most + 3, most + 7, *sorted(rows for rows in op.rows if rows < 2))
    for rows in changing:
        inputs = op.draw(rows, dtype)
        with reported("compile", op.where(rows), inputs):
            dy = op.incoming(inputs)
            op.compare(op.run(inputs, dy, compiled), inputs, dy)
            allowed = 2 + sum(rows < 2 for rows in changing)
            assert graphs <= allowed, f"{graphs} graphs for rows {changing}: at most {allowed} are needed"
    torch._dynamo.reset()


def _opcheck(op: OpUnderTest) -> None:
    """Check each registered operator with torch.library.opcheck: schema, fake tensors, dispatch."""
    for operator, arguments in op.operators:
        with reported("opcheck", str(operator), {str(number): value for number, value in enumerate(arguments)}):
            torch.library.opcheck(operator, arguments)


def _equal_bits(op: OpUnderTest) -> None:
    """Check that equal inputs give equal bits in every run."""
    inputs = op.usual()
    with reported("equal bits", op.where(), inputs):
        dy = op.incoming(inputs)
        first = op.run(inputs, dy)
        for number in range(2, op.runs + 1):
            assert_same_bits(op.run(inputs, dy), first, f"in run {number}")


@contextmanager
def _refusal() -> Iterator[None]:
    """Accept PyTorch's own error about a tensor that was changed before the backward pass."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise


def _changed_inputs(op: OpUnderTest) -> None:
    """Check that an in-place change of an input before the backward pass leaves the gradients right, or raises."""
    inputs = op.usual()
    dy = op.incoming(inputs)
    for name in (name for name, value in inputs.items() if is_tensor(value) and op.trained):
        with reported("changed inputs", f"{op.where()}, {name} changed before the backward pass", inputs):
            expected = op.run(inputs, dy)
            leaves = op.leaves({name: value.clone() if is_tensor(value) else value for name, value in inputs.items()})
            y = op.function(**leaves)
            with torch.no_grad():
                leaves[name].copy_(leaves[name].flip(0) + 1)
            with _refusal():
                y.backward(dy)
                assert_same_bits(op.gradients(leaves) | {"value": expected["value"]}, expected, "after the change")


CHECKS: Mapping[str, Callable[[OpUnderTest], None]] = MappingProxyType(
    {
        "values": _values,
        "empty rows": _empty_rows,
        "unwritten outputs": _unwritten_outputs,
        "gradient layouts": _gradient_layouts,
        "input layouts": _input_layouts,
        "untouched inputs": _untouched_inputs,
        "backward twice": _backward_twice,
        "twice in one graph": _twice_in_one_graph,
        "checkpointing": _checkpointing,
        "autocast": _autocast,
        "compile": _compile,
        "opcheck": _opcheck,
        "equal bits": _equal_bits,
        "changed inputs": _changed_inputs,
    }
)


def check_op(
    function: Callable[..., torch.Tensor],
    reference: Callable[..., torch.Tensor],
    make_inputs: Callable[[int, torch.dtype, torch.Generator], Mapping[str, Any]],
    *,
    trained: Sequence[str] = ("x",),
    straight_through: Mapping[str, Formula] = MappingProxyType({}),
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    rows: Sequence[int] = (0, 1, 5, 33),
    operators: Sequence[tuple[torch._ops.OpOverload, tuple[Any, ...]]] = (),
    checks: Sequence[str] = tuple(CHECKS),
    device: torch.device | str = "cpu",
    runs: int = 20,
) -> None:
    """Run the checks named in `checks`, all of CHECKS by default, on a function from tensors to one tensor.

    Args:
        function, reference: called with the inputs by keyword. The reference is plain PyTorch and correct in any dtype:
            in float64 it gives the exact result, in the inputs' dtype PyTorch's own error, of which twice is allowed.
        make_inputs: (rows, dtype, generator) -> the inputs by name: tensors drawn on the CPU, numbers, anything. The
            number of rows is what may change from call to call.
        trained: inputs that get a gradient; the first is the one that differs between two calls in one graph.
        straight_through: (inputs, dy) -> gradient, for gradients that autograd of the reference cannot compute; called
            in float64 and in the inputs' dtypes.
        dtypes, rows: "values", "empty rows" and "unwritten outputs" run for all; the others use the first dtype and the
            most rows, except that "compile" varies the number of rows and "autocast" uses float32.
        operators: registered operators with arguments for torch.library.opcheck.
        runs: number of runs that must be bit-identical.

    Raises:
        CheckFailed: an AssertionError that names the check, the dtype, the shapes and the values.
        ValueError: a check is unknown.

    Example::

        def make_inputs(rows, dtype, generator):
            return {"x": torch.randn(rows, 8, generator=generator).to(dtype),
                    "weight": torch.randn(4, 8, generator=generator).to(dtype)}

        check_op(my_linear, lambda x, weight: x @ weight.T, make_inputs, trained=("x", "weight"))
    """
    for name, given in (("rows", rows), ("dtypes", dtypes), ("checks", checks)):
        if not given:
            raise ValueError(f"{name} is empty, so nothing would be checked: give at least one, or leave it out")
    unknown = [name for name in checks if name not in CHECKS]
    if unknown:
        raise ValueError(f"no check {', '.join(map(repr, unknown))}: choose from {', '.join(CHECKS)}")
    op = OpUnderTest(
        function, reference, make_inputs, tuple(trained), straight_through, tuple(dtypes), tuple(rows), operators,
        torch.device(device), runs,
    )  # fmt: skip
    for name in checks:
        CHECKS[name](op)

"""Adapters on the CPU write over what autograd does not keep, and over nothing that anybody else still reads."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from tss_kernels import GatedAdapter
from tss_kernels.gated_adapter import api
from tss_kernels.gated_adapter.reference import ACTIVATIONS, FROM_RESULT
from tss_kernels.testing import in_layout

pytest.importorskip("tss_kernels.backends.native", reason="the native backend was not built", exc_type=ImportError)

ROWS, SIZE, BOTTLENECK = 6, 12, 5


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """One entry for each adapter that goes the way tested here."""
    ways, of = [], api.composes
    monkeypatch.setattr(api, "composes", lambda *a: of(*a) and not ways.append(1))
    return ways


def by_hand(module: GatedAdapter, x: torch.Tensor) -> torch.Tensor:
    """The adapter written out of place, by the gates that it has."""

    def product(layer):
        return lambda rows: torch.nn.functional.linear(rows, torch.where(layer.gate(), layer.weight, 0), layer.bias)

    return x + product(module.up)(ACTIVATIONS[module.activation](product(module.down)(x)))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_input_stays_as_it_was(activation, layout, grad, taken):
    """x is read again after the adapter by whoever made it, and by its own backward pass."""
    module = GatedAdapter(SIZE, BOTTLENECK, activation).double()
    leaf = torch.randn(2, 3, SIZE, dtype=torch.float64)
    x, own = (in_layout(leaf.clone(), layout).requires_grad_(grad) for _ in range(2))
    with torch.set_grad_enabled(grad):
        before = x.sigmoid()  # sigmoid's backward pass reads its result, the adapter's input
        y, expected = module(before) + before, (by_hand(module, own.sigmoid()) + own.sigmoid())
    assert taken
    torch.testing.assert_close(before, leaf.sigmoid())
    torch.testing.assert_close(y, expected)
    if grad:
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, own.grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_kept_for_the_backward_pass(activation, taken):
    """x and one hidden tensor, two where the derivative reads the activation's argument, and no more of these rows."""
    module, kept = GatedAdapter(SIZE, BOTTLENECK, activation), set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 2 and tensor.shape[0] == ROWS:
            kept.add((tensor.data_ptr(), tensor.shape[1]))
        return tensor

    x = torch.randn(ROWS, SIZE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    assert taken
    hidden = [BOTTLENECK] if activation in FROM_RESULT else [BOTTLENECK] * 2
    assert sorted(columns for _, columns in kept) == [*hidden, SIZE]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_memory_of_a_forward_pass(activation, taken):
    """W * g of both maps, one tensor of x's size, and one hidden tensor, two where the activation makes another."""
    module, x = GatedAdapter(SIZE, BOTTLENECK, activation), torch.randn(ROWS, SIZE)
    with torch.no_grad():
        module(x)
        with torch.profiler.profile(profile_memory=True) as profile:
            module(x)
    assert len(taken) == 2
    taken_up = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    hidden = BOTTLENECK if activation in FROM_RESULT else 2 * BOTTLENECK
    assert taken_up == 4 * ROWS * (SIZE + hidden) + 4 * 2 * SIZE * BOTTLENECK


class Guarded(torch.Tensor):
    """A class whose tensors may not be written to."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.startswith("_") and any(isinstance(a, cls) for a in args[:1]):
            raise RuntimeError(f"{name} writes")
        return super().__torch_function__(func, types, args, kwargs)


def test_an_input_of_another_class_is_not_written_over(taken):
    module, x = GatedAdapter(SIZE, BOTTLENECK), torch.randn(ROWS, SIZE)
    y = module(x.as_subclass(Guarded))
    assert not taken
    torch.testing.assert_close(y.as_subclass(torch.Tensor), by_hand(module, x))


def test_a_result_may_be_written_to_by_the_caller(taken):
    """The usual `hidden += ...` after a block, for rows in three dimensions, in training."""
    module, x = GatedAdapter(SIZE, BOTTLENECK), torch.randn(2, 3, SIZE, requires_grad=True)
    y = module(x)
    y += x
    y.sum().backward()
    one = x.grad
    x.grad = None
    (by_hand(module, x) + x).sum().backward()
    assert taken
    torch.testing.assert_close(one, x.grad)


def touched(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def hooked(module: GatedAdapter) -> None:
    module.down.register_forward_hook(touched)


def hooked_before(module: GatedAdapter) -> None:
    module.up.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def hooked_backward(module: GatedAdapter) -> None:
    module.down.register_full_backward_hook(lambda module, given, received: (2 * given[0],))


def replaced(module: GatedAdapter) -> None:
    of = module.up.forward
    module.up.forward = lambda x: of(x) - 1


def pruned(module: GatedAdapter) -> None:
    prune.random_unstructured(module.down, "weight", 0.5)


def normed(module: GatedAdapter) -> None:
    weight_norm(module.down, "weight")
    module.down.weight_g.data *= 3


def parametrized(module: GatedAdapter) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    register_parametrization(module.up, "weight", Doubled())


def exchanged(module: GatedAdapter) -> None:
    module.down = torch.nn.Linear(SIZE, BOTTLENECK)


@pytest.mark.parametrize(
    "change", [hooked, hooked_before, hooked_backward, replaced, pruned, normed, parametrized, exchanged]
)
def test_what_hangs_on_a_layer_is_not_passed_by(change, taken):
    """An adapter runs its layers as calling them would, whatever others have put there."""
    torch.manual_seed(0)
    module = GatedAdapter(SIZE, BOTTLENECK)
    before = module(torch.ones(ROWS, SIZE))
    assert taken
    change(module)
    taken.clear()
    x, own = (torch.ones(ROWS, SIZE, requires_grad=True) for _ in range(2))
    y, expected = module(x), own + module.up(torch.relu(module.down(own)))
    assert not taken
    torch.testing.assert_close(y, expected)
    assert change is hooked_backward or not torch.equal(y, before)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, own.grad)


def test_hooks_of_all_modules_see_the_layers():
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    module = GatedAdapter(SIZE, BOTTLENECK)
    with handle:
        module(torch.ones(ROWS, SIZE))
    assert seen == [module.down, module.up, module]


def test_hooked_layers_in_another_dtype_than_the_input():
    module = GatedAdapter(SIZE, BOTTLENECK, dtype=torch.bfloat16)
    x = torch.randn(ROWS, SIZE)
    expected = module(x)
    hook = module.down.register_forward_hook(lambda module, args, output: None)
    y = module(x)
    hook.remove()
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0.02, atol=1e-3)
    assert torch.equal(module(x), expected)

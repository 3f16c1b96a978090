"""EWC: a penalty keeps the weights of shared adapters that past tasks relied on near where those tasks left them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tss.adapters.config import check_above
from tss.methods.base import Batch, Method, adapter_weights

if TYPE_CHECKING:
    import torch

    from tss.adapters import TssHandle


@dataclass(frozen=True)
class EwcOptions:
    """Options of EWC.

    Attributes:
        strength: lambda, the factor of the penalty; the losses of well-fitted tasks have small gradients, so that it is
            usually in the hundreds to tens of thousands.

    Raises:
        ValueError: names the option and its value.
    """

    strength: float = 5000.0

    def __post_init__(self) -> None:
        check_above("EwcOptions", "strength", self.strength, 0)


class Ewc(Method):
    """EWC of Kirkpatrick et al., PNAS 2017 (arXiv 1612.00796), on the plain adapters that all tasks share.

    The loss of a later task gets strength / 2 * sum over past tasks t of F_t * (w - w_t)^2. F_t is the diagonal of the
    *empirical* Fisher information: the mean over task t's training examples, one by one, of the squared gradient of the
    example's loss (its mean over labels) with the true labels, without dropout, at the weights where the task ended. It
    is not the squared gradient of a batch's mean loss, whose size depends on the batch size. The sum over tasks is kept
    as one quadratic, equal to it up to a constant: the sum of all F_t, around the mean of all w_t weighted by F_t. So
    nothing grows with the number of tasks. Heads are not shared, so they are not penalized.

    The implementation of Avalanche is for its own training loop and models with one output; the formula is a few lines.
    """

    name = "ewc"
    options_type = EwcOptions
    gated = False
    never_forgets = False

    def __init__(self, options: EwcOptions) -> None:
        super().__init__(options)
        self._fisher: dict[str, torch.Tensor] = {}
        self._anchor: dict[str, torch.Tensor] = {}

    def penalty(self, handle: TssHandle, batch: Batch) -> torch.Tensor | None:
        if not self._fisher:
            return None
        total = None
        for name, weight in adapter_weights(handle).items():
            for kept in (self._fisher, self._anchor):
                kept[name] = kept[name].to(weight.device)
            held = (self._fisher[name] * (weight - self._anchor[name]).square()).sum()
            total = held if total is None else total + held
        return None if total is None else self.options.strength / 2 * total

    def end_task(self, handle: TssHandle, name: str, batches: Iterable[Batch]) -> None:
        """Add the task's quadratic to the sum, then seal it."""
        for key, fisher in diagonal_fisher(handle, batches).items():
            weight = adapter_weights(handle)[key].detach()
            before = self._fisher.get(key, fisher.new_zeros(fisher.shape)).to(fisher.device)
            anchor = self._anchor.get(key, weight).to(fisher.device)
            total = before + fisher
            share = (fisher / total).nan_to_num(nan=0.0)  # 0 / 0 where no task so far has a gradient
            self._fisher[key], self._anchor[key] = total, anchor.lerp(weight, share)
        super().end_task(handle, name, batches)

    def state(self) -> dict[str, torch.Tensor]:
        parts = {"fisher": self._fisher, "anchor": self._anchor}
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {"fisher": {}, "anchor": {}}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self._fisher, self._anchor = parts["fisher"], parts["anchor"]


def diagonal_fisher(handle: TssHandle, batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Return the mean over examples of the squared gradient of the loss, by adapter weight; float32, weight's shape.

    Raises:
        ValueError: there is no example.
    """
    import torch  # imported here, because configurations are checked without torch

    from tss.adapters.checkpointing import evaluation_mode

    weights = adapter_weights(handle)
    sums = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    count = 0
    with evaluation_mode(handle.model), torch.enable_grad():
        for batch in batches:
            for row in range(len(batch["labels"])):
                loss = handle.loss(**{key: value[row : row + 1] for key, value in batch.items()})
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:  # None if the task does not pass through it
                        sums[name] += gradient.square()
                count += 1
    if not count:
        raise ValueError("the Fisher information of a task needs its training data, got no examples")
    return {name: total / count for name, total in sums.items()}

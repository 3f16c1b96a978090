"""A step of many small tensors again: what the compiled kernel reads, made once and used while all of it holds."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch

from tss_kernels.adamw import native
from tss_kernels.adamw.table import COLUMNS, table_of
from tss_kernels.dispatch import select
from tss_kernels.gates.scores import READ_BITS, Scores
from tss_kernels.native import kernels
from tss_kernels.watched import plain, undisturbed

STATE = ("step", "exp_avg", "exp_avg_sq")
GRAD, PACKED = 1, 8  # columns of the table that every step writes anew
_data_ptr, _numel = torch.Tensor.data_ptr, torch.Tensor.numel
_is_contiguous, _is_neg = torch.Tensor.is_contiguous, torch.Tensor.is_neg
_dtype = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]

State = Mapping[torch.Tensor, dict[str, Any]]


def _same(ones: Any, others: Sequence[object]) -> bool:
    return len(ones) == len(others) and all(map(is_, ones, others))


class Plan:
    """The step of one group on the CPU, for parameters that all took part in the last one and took as many before it.

    Holds while the lists and dictionaries have the very tensors that they had, and these their memory.
    """

    @staticmethod
    def of(params: list[torch.Tensor], state: State, importance: Mapping[torch.Tensor, torch.Tensor]) -> Plan | None:
        """A plan for these parameters after a step of all of them; None if they need to be looked at every time."""
        states = [state[param] for param in params]
        tensors = [tensor for own in states for tensor in (own["exp_avg"], own["exp_avg_sq"])]
        masks = [importance.get(param) for param in params]
        usable = (
            all(param.is_cpu for param in params)
            and len({param.dtype for param in params}) == 1
            and all(plain(one) and (one is None or one.is_contiguous()) for one in (*params, *tensors, *masks))
            and all(own["step"].is_cpu and own["step"].dtype == torch.float32 for own in states)
        )
        return Plan(params, states, state, masks, importance) if usable else None

    def __init__(
        self,
        params: list[torch.Tensor],
        states: list[dict[str, Any]],
        state: State,
        masks: list[torch.Tensor | None],
        importance: Mapping[torch.Tensor, torch.Tensor],
    ) -> None:
        self.params, self.states = params, states
        self.dtype, self.numels = params[0].dtype, list(map(_numel, params))
        self.every_state, self.every_importance = list(state.values()), list(importance.values())
        self.kept = {name: [own[name] for own in states] for name in STATE}
        self.masks = [mask for mask in masks if mask is not None]
        self.grad_dtypes = [param.grad.dtype for param in params]  # type: ignore[union-attr]
        self.written = [*params, *self.kept["exp_avg"], *self.kept["exp_avg_sq"], *self.kept["step"]]
        self.watched = [*self.written, *self.masks]
        self.addresses = list(map(_data_ptr, self.watched))
        self.steps = array("q", map(_data_ptr, self.kept["step"]))
        lists = (params, [param.grad for param in params], self.kept["exp_avg"], self.kept["exp_avg_sq"])
        self.numbers = array("q", table_of(lists, masks, None, (), None).numbers)  # type: ignore[arg-type]
        self.scores = [(i, param) for i, param in enumerate(params) if isinstance(param, Scores)]
        self.packed_shapes = {i: (scores.shape[0], (scores.shape[1] + 7) // 8) for i, scores in self.scores}
        for index, param in self.scores:
            self.numbers[index * COLUMNS + PACKED - 2 : index * COLUMNS + PACKED] = array("q", param.shape)

    def _grads(self) -> list[torch.Tensor] | None:
        """The gradients, None unless all are there and as they were."""
        grads: list[Any] = [param.grad for param in self.params]
        if (
            not all(type(grad) is torch.Tensor for grad in grads)
            or list(map(_dtype, grads)) != self.grad_dtypes
            or any(grad.layout is not torch.strided for grad in grads)
            or not all(map(_is_contiguous, grads))
            or any(map(_is_neg, grads))
            or list(map(_numel, grads)) != self.numels
        ):
            return None
        return grads

    def _holds(self, params: list[torch.Tensor], state: State, importance: Mapping[torch.Tensor, torch.Tensor]) -> bool:
        return (
            undisturbed()
            and select("soft_masked_adamw_", torch.device("cpu"), self.dtype) == "native"
            and _same(params, self.params)
            and _same(state.values(), self.every_state)
            and _same(importance.values(), self.every_importance)
            and all(_same([own.get(name) for own in self.states], tensors) for name, tensors in self.kept.items())
            and list(map(_data_ptr, self.watched)) == self.addresses
        )

    def step(self, group: Mapping[str, Any], state: State, importance: Mapping[torch.Tensor, torch.Tensor]) -> bool:
        """Takes the step, or returns False and changes nothing if anything has to be looked at anew."""
        if group["maximize"] or not self._holds(group["params"], state, importance):
            return False
        grads = self._grads()
        if grads is None:
            return False
        number = kernels.count_step(self.steps.buffer_info()[0], len(self.steps))
        if number == 0:  # they differ
            return False
        self.numbers[GRAD::COLUMNS] = array("q", map(_data_ptr, grads))
        emitted = self._room_for_gates()
        thresholds = array("d", bytes(8 * len(self.params)))
        for index, threshold, _ in emitted:
            thresholds[index] = threshold
        native.run(self.numbers, thresholds, number, group)
        torch.autograd.graph.increment_version(self.written)
        for index, threshold, packed in emitted:
            self.params[index].keep_emitted(threshold, packed)  # type: ignore[attr-defined]
        return True

    def _room_for_gates(self) -> list[tuple[int, float, torch.Tensor]]:
        """Place, threshold and new memory of the gates that are worth emitting; the table points to them."""
        emitted = []
        reads_bits = select("gated_linear", torch.device("cpu"), torch.float32) in READ_BITS
        for index, scores in self.scores:
            threshold, at = scores.emits_for if reads_bits else None, index * COLUMNS + PACKED
            if threshold is None:
                self.numbers[at] = 0
                continue
            # In fresh memory: a backward pass to come may hold those of before.
            packed = torch.empty(self.packed_shapes[index], dtype=torch.uint8)
            self.numbers[at] = packed.data_ptr()
            emitted.append((index, threshold, packed))
        return emitted

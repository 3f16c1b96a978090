"""All registered operators: their schemas and the shapes of what they return.

Operators take the backend's name as their last argument, so that the one chosen in the forward pass also runs the
backward pass. The functions that call them in each folder's `api.py` add gradients. An operator that autograd meets by
itself, in an exported program or under a torch.func transform in compiled code, raises when it is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library

from tss_kernels.backends.registry import INSTALLED, runs_on
from tss_kernels.tensors import empty_packed

LIBRARY = Library("tss_kernels", "DEF")
Fake = Callable[..., object]


def _define(schema: str, fake: Fake) -> None:
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = f"tss_kernels::{schema.split('(')[0]}"
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if not name.endswith("_"):
        torch.library.register_autograd(name, _refuse_gradient, lib=LIBRARY)


def _refuse_gradient(ctx: object, *gradients: object) -> None:
    raise NotImplementedError(
        "an operator of tss_kernels has no gradient by itself: exported programs are for inference, and torch.func "
        "transforms in compiled code do not see the gradient of a gated operation; train the module itself, with "
        "torch.autograd"
    )


def implement(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Register an operator's implementation for every device; return a function that calls the operator.

    The function does not pass through the operator's refusal of a gradient, which would cost 10 microseconds.

    A graph that was exported or traced holds the name of the backend that it was made with. Where that backend does not
    run, on another machine or after the graph was moved to another device, the reference backend does.
    """

    def run(*arguments: Any) -> object:
        first, backend = arguments[0], arguments[-1]
        tensor = first if isinstance(first, torch.Tensor) else first[0]
        fits = tensor.is_cpu if backend == "native" else tensor.is_cuda
        if backend == "reference" or (fits and INSTALLED[backend]) or runs_on(backend, tensor.device):
            return function(*arguments)
        return function(*arguments[:-1], "reference")

    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    operator = getattr(torch.ops.tss_kernels, name).default

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return call


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _nothing(*arguments: object) -> None:
    """Fake implementation of an operator that only changes its arguments."""


def _as_float32(like: torch.Tensor, *_: object) -> torch.Tensor:
    return like.new_empty(like.shape, dtype=torch.float32)


def _gates(packed: torch.Tensor, in_features: int, backend: str) -> torch.Tensor:
    return packed.new_empty((packed.shape[0], in_features), dtype=torch.bool)


def _scores_grad(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float32)


def _hidden(x: torch.Tensor, down_weight: torch.Tensor) -> torch.Tensor:
    return down_weight.new_empty((math.prod(x.shape[:-1]), down_weight.shape[0]))


def _adapter_input_grad(dy: torch.Tensor, hidden: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    for_x = rest[-2]
    return dy.new_empty(dy.shape if for_x else (0, dy.shape[-1])), hidden.new_empty(hidden.shape)


_define(
    "gated_linear(Tensor x, Tensor weight, Tensor scores, Tensor? bias, float threshold, str backend)"
    " -> (Tensor y, Tensor packed)",
    lambda x, weight, scores, bias, threshold, backend: (_linear(x, weight), empty_packed(scores)),
)
_define(
    "packed_linear(Tensor x, Tensor weight, Tensor packed, Tensor? bias, str backend) -> Tensor",
    lambda x, weight, packed, bias, backend: _linear(x, weight),
)
_define(
    "gated_linear_input_grad(Tensor dy, Tensor weight, Tensor packed, str backend) -> Tensor",
    lambda dy, weight, packed, backend: dy.new_empty((*dy.shape[:-1], weight.shape[1])),
)
_define(
    "gated_linear_scores_grad(Tensor dy, Tensor x, Tensor weight, Tensor? importance, str backend) -> Tensor",
    _scores_grad,
)
_define(
    "gated_linear_weight_grad(Tensor dy, Tensor x, Tensor packed, str backend) -> Tensor",
    lambda dy, x, packed, backend: x.new_empty((dy.shape[-1], x.shape[-1])),
)
_define(
    "gated_adapter(Tensor x, Tensor down_weight, Tensor down_packed, Tensor up_weight, Tensor up_packed,"
    " Tensor? down_bias, Tensor? up_bias, str activation, str backend) -> (Tensor y, Tensor hidden)",
    lambda x, down_weight, *_: (x.new_empty(x.shape), _hidden(x, down_weight)),
)
_define(
    "gated_adapter_input_grad(Tensor dy, Tensor hidden, Tensor down_weight, Tensor down_packed, Tensor up_weight,"
    " Tensor up_packed, str activation, bool for_x, str backend) -> (Tensor dx, Tensor d_hidden)",
    _adapter_input_grad,
)
_define(
    "multi_task_linear(Tensor x, Tensor weight, Tensor bank, Tensor task_ids, Tensor? bias, str backend) -> Tensor",
    lambda x, weight, bank, task_ids, bias, backend: _linear(x, weight),
)
_define(
    "multi_task_linear_input_grad(Tensor dy, Tensor weight, Tensor bank, Tensor task_ids, str backend) -> Tensor",
    lambda dy, weight, bank, task_ids, backend: dy.new_empty((*dy.shape[:-1], weight.shape[1])),
)
_define(
    "multi_task_adapter(Tensor x, Tensor down_weight, Tensor down_bank, Tensor up_weight, Tensor up_bank,"
    " Tensor task_ids, Tensor? down_bias, Tensor? up_bias, str activation, str backend) -> (Tensor y, Tensor hidden)",
    lambda x, down_weight, *_: (x.new_empty(x.shape), down_weight.new_empty((*x.shape[:-1], down_weight.shape[0]))),
)
_define(
    "multi_task_adapter_input_grad(Tensor dy, Tensor hidden, Tensor down_weight, Tensor down_bank, Tensor up_weight,"
    " Tensor up_bank, Tensor task_ids, str activation, str backend) -> Tensor",
    lambda dy, *_: dy.new_empty(dy.shape),
)
_define("pack_gates(Tensor scores, float threshold, str backend) -> Tensor", lambda scores, *_: empty_packed(scores))
_define(
    "pack_gates_pair(Tensor first, Tensor second, float threshold, str backend) -> (Tensor, Tensor)",
    lambda first, second, *_: (empty_packed(first), empty_packed(second)),
)
_define("unpack_gates(Tensor packed, SymInt in_features, str backend) -> Tensor", _gates)
_define("normalize_importance(Tensor raw, str per, str backend) -> Tensor", _as_float32)
_define("accumulate_importance_(Tensor(a!) total, Tensor new, str backend) -> ()", _nothing)
_define("update_importance_(Tensor(a!) total, Tensor raw, str per, str backend) -> ()", _nothing)
_define(
    "soft_masked_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
    " Tensor?[] importances, float step, float lr, float beta1, float beta2, float eps, float weight_decay, str site,"
    " str backend) -> ()",
    _nothing,
)

_define(
    "soft_masked_adamw_capturable_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs,"
    " Tensor(c!)[] exp_avg_sqs, Tensor?[] importances, Tensor[] steps, Tensor lr, float beta1, float beta2, float eps,"
    " float weight_decay, str site, str backend) -> ()",
    _nothing,
)

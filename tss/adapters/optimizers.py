"""Optimizer for the task being trained, and a check of every optimizer before it steps the scores.

Scores are ordinary parameters, so any optimizer can update them: Trainer's, accelerate's, one of `torch.optim`. But
scores that earlier tasks rely on may only be updated as the soft mask allows.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from tss.adapters.config import TssOptions
from tss.adapters.learning import check_whole
from tss.errors import StateError
from tss_kernels import SoftMaskedAdamW

Named = list[tuple[str, torch.nn.Parameter]]
DECAYS = ("weight_decay", "lambd")  # names of weight decay in torch's optimizers; "lambd" is ASGD's
MOST_STEPS = 500
"""Number of steps from a score to its threshold, all in one direction, above which a learning rate gets a warning.

The paper's rate, 5e-4, needs about 80 on BART-Large; Trainer's default, 5e-5, about 800, and flips almost no gate.
"""
MAKE_ONE = "model.tss.optimizer(score_lr=..., head_lr=...) after train_task (for Trainer: optimizers=(optimizer, None))"


def make_optimizer(
    groups: Mapping[str, list[torch.nn.Parameter]],
    rates: Mapping[str, float],
    importance: Mapping[torch.Tensor, torch.Tensor],
    **settings: Any,
) -> SoftMaskedAdamW:
    """Create an AdamW without weight decay, with a group for each kind of parameters and steps scaled by importance."""
    named = [{"name": name, "params": params, "lr": rates[name]} for name, params in groups.items() if params]
    return SoftMaskedAdamW(named, weight_decay=0.0, site="update", importance=importance, **settings)


def checked_rate(name: str, rate: float) -> float:
    """Return a learning rate; the optimizer rejects what is not a number at all.

    Raises:
        ValueError: it is negative, infinite or NaN.
    """
    if isinstance(rate, Real) and not 0 <= rate < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0, but is {rate}: pass a number such as 1e-3")
    return rate


class StepCheck:
    """Check of every optimizer that is about to step, while a task is being trained.

    Uses torch's own hook for the steps of all optimizers. One hook serves all models and is never removed: adding and
    removing hooks with models, in another thread or in garbage collection, would break a step that iterates over them.

    Args:
        backbone: no optimizer may step it, because sealed tasks rely on it.
        layers: layers of the adapters, by name.
        options: options of training.
        gated: the layers have gates; if not, only optimizers of earlier tasks are rejected.
    """

    def __init__(
        self, backbone: torch.nn.Module, layers: Mapping[str, Any], options: TssOptions, *, gated: bool
    ) -> None:
        self._backbone, self._layers, self._options, self._gated = backbone, dict(layers), options, gated
        self._task: str | None = None
        self._begin_watching()

    def _begin_watching(self) -> None:
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # those that have stepped the scores of this task
        # Of each optimizer, the sizes of its groups and the frozen parameters in them, which may be unfrozen later.
        self._held: weakref.WeakKeyDictionary[Optimizer, tuple[tuple[int, ...], Named]] = weakref.WeakKeyDictionary()
        self._retired: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameters of earlier tasks, now in no model

    def start(self, task: str) -> None:
        """Start checking steps, because training of a task starts."""
        self.finish()
        self._task = task
        _watchers.add(self)

    def retire(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Mark parameters as no longer trained: an optimizer that holds one of them was created for an earlier task."""
        for parameter in parameters:
            self._retired[parameter] = None

    def finish(self) -> None:
        """Stop checking steps, because training of the task ends."""
        _watchers.discard(self)
        self._seen.clear()
        self._held.clear()
        self._task = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_backbone", "_layers", "_options", "_gated", "_task")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_watching()
        if self._task is not None:  # a copy of a model that is being trained
            self.start(self._task)

    def __call__(self, optimizer: Optimizer) -> None:
        """Reject a step that would violate the soft mask or miss the task; warn if the learning rate is too small.

        Raises:
            StateError: the optimizer was created before training of the task started, decays scores, does not apply the
                mask that `soft_mask="update"` leaves to it, or steps frozen parameters; or the adapters are sharded.
        """
        self._check_age(optimizer)
        if not self._gated:
            return
        self._check_frozen(optimizer)
        layers = {id(layer.scores): layer for layer in self._layers.values()}
        groups = [group for group in optimizer.param_groups if any(id(p) in layers for p in group["params"])]
        if not groups:
            return
        check_whole(self._layers)
        if self._options.soft_mask != "none":
            self._check_mask(optimizer, groups, layers)
        if optimizer not in self._seen:
            self._seen.add(optimizer)
            self._warn_of_rates(optimizer, groups, layers)

    def _check_age(self, optimizer: Optimizer) -> None:
        if any(p in self._retired for group in optimizer.param_groups for p in group["params"]):
            raise StateError(
                f"this {type(optimizer).__name__} was created before training of task {self._task!r} started, so it "
                "has the parameters of an earlier task and not those that are being trained: create a new one after "
                "train_task, for model.tss.trainable_parameters() or with model.tss.optimizer(score_lr=..., "
                "head_lr=...)"
            )

    def _check_frozen(self, optimizer: Optimizer) -> None:
        sizes = tuple(len(group["params"]) for group in optimizer.param_groups)
        known = self._held.get(optimizer)
        if known is None or known[0] != sizes:
            known = self._held[optimizer] = sizes, self._frozen_in(optimizer)
        if moved := [name for name, parameter in known[1] if parameter.requires_grad]:
            raise StateError(
                f"{type(optimizer).__name__} would train {moved[0]} and {len(moved) - 1} more tensors that are frozen: "
                "every task relies on them. Call requires_grad_(False) on the backbone and on the frozen parts of the "
                "adapters, and give the optimizer model.tss.trainable_parameters()"
            )

    def _frozen_in(self, optimizer: Optimizer) -> Named:
        """Return the frozen parameters of the model that an optimizer holds, with their names."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = [*self._backbone.named_parameters()]
        named += [
            (f"{n}.{key}", p) for n, x in self._layers.items() for key, p in x.named_parameters() if p is not x.scores
        ]
        return [(name, parameter) for name, parameter in named if id(parameter) in held]

    def _check_mask(self, optimizer: Optimizer, groups: list[dict[str, Any]], layers: dict[int, Any]) -> None:
        name, own = type(optimizer).__name__, [(g, p) for g in groups for p in g["params"] if id(p) in layers]
        masked = optimizer.importance if isinstance(optimizer, SoftMaskedAdamW) else {}
        updates = self._options.soft_mask == "update"
        covered = updates and all(
            group.get("site") == "update" and _is_same(layers[id(p)].importance, masked.get(p)) for group, p in own
        )
        if updates and not covered and any(layer.importance is not None for layer in layers.values()):
            raise StateError(
                f'soft_mask="update" must be applied by the optimizer, but {name} does not apply it: create one with '
                f'{MAKE_ONE}, or use soft_mask="gradient"'
            )
        for key, group in ((key, group) for key in DECAYS for group in groups):
            if group.get(key) and not covered:
                raise StateError(
                    f"{name} with {key}={group[key]} would change scores that the soft mask protects: use 0 for "
                    f"model.tss.trainable_parameters()['scores'], or {MAKE_ONE}"
                )

    def _warn_of_rates(self, optimizer: Optimizer, groups: list[dict[str, Any]], layers: dict[int, Any]) -> None:
        for group in groups:
            own = [layers[id(p)] for p in group["params"] if id(p) in layers]
            rate = max(float(group["lr"]), float(group.get("initial_lr", 0)))
            if "betas" not in group or rate <= 0:  # a rate alone says nothing without Adam's normalized steps
                continue
            with torch.no_grad():
                distances = [(x.scores - x.threshold).abs().mean() for x in own]
                steps = float(torch.stack([distance.float() for distance in distances]).mean()) / rate
            if steps > MOST_STEPS:
                warnings.warn(
                    f"the scores of task {self._task!r} have a learning rate of {rate:g} in this "
                    f"{type(optimizer).__name__}: a score needs about {steps:.0f} steps in one direction to switch its "
                    f"gate, so little will be learned; give scores a separate learning rate, with {MAKE_ONE}",
                    stacklevel=2,
                )


def _is_same(importance: torch.Tensor | None, held: torch.Tensor | None) -> bool:
    """Return whether an optimizer holds the current importance, which may have been loaded after its creation."""
    if importance is None or held is None:
        return importance is held
    return importance.data_ptr() == held.data_ptr() or torch.equal(importance, held.to(importance))


class _Watchers:
    """Checks of all models in training, in a tuple that is replaced, not modified: a step may be iterating over it."""

    def __init__(self) -> None:
        self._lock, self.checks = threading.Lock(), ()
        register_optimizer_step_pre_hook(self._before)

    def add(self, check: StepCheck) -> None:
        with self._lock:
            self.checks: tuple[weakref.ref[StepCheck], ...] = (*self.checks, weakref.ref(check))

    def discard(self, check: StepCheck) -> None:
        with self._lock:
            self.checks = tuple(one for one in self.checks if one() not in (None, check))

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for one in self.checks:
            if (check := one()) is not None:
                check(optimizer)


_watchers = _Watchers()

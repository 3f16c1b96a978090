"""`tss.attach`: what may be attached to, and the model around it."""

from __future__ import annotations

from typing import Any

import torch

from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.model import TssModel, make_model
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.sites import check_backbone
from tss.adapters.task_forward import core_of
from tss.errors import StateError


def attach(model: Any, config: AdapterConfig | None = None, options: TssOptions | None = None) -> TssModel:
    """Freeze a Hugging Face model, put an adapter on each of its sites and return the model around it.

    Before a task is learned, and for `task=None` ever after, it answers exactly as before. `model.tss.detach()` undoes
    everything.

    Args:
        model: a transformers model, also one with PEFT's adapters in it.
        config: where the adapters go and what they look like; `AdapterConfig()` if None.
        options: how tasks are learned in them; `TssOptions()` if None.

    Raises:
        StateError: the model has adapters already.
        ValueError: no site, a site of unknown width, or a model that tasks could not be learned or kept on.
        TypeError: settings of another type.
    """
    for name, value, kind in (("config", config, AdapterConfig), ("options", options, TssOptions)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"attach: {name} must be a tss.{kind.__name__} or None, got {value!r}")
    core = core_of(model)
    if isinstance(model, TssModel) or any(
        isinstance(getattr(hook, "__self__", None), SiteAdapter)
        for module in core.modules()
        for hook in module._forward_hooks.values()
    ):
        raise StateError(f"this {type(core).__name__} has adapters already; call model.tss.detach() first")
    check_backbone(model, core)
    if (model is not core and hasattr(model, "_orig_mod")) or model._compiled_call_impl is not None:
        torch.compiler.reset()  # what was compiled without hooks would go on without them
    wrapped = make_model(type(core))
    wrapped.wrap(model, config or AdapterConfig(), options or TssOptions())
    return wrapped

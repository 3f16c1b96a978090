"""`tss.attach`: what may be attached to, and the model around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.model import TssModel, make_model
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.sites import check_backbone
from tss.adapters.task_forward import core_of
from tss.errors import StateError


def attach(model: Any, config: AdapterConfig | None = None, options: TssOptions | None = None) -> TssModel:
    """Freeze a transformers model and wrap it with adapters.

    Outputs with `task=None`, and before the first task is trained, are those of the original model. To remove the
    adapters, call `model.tss.detach()`.

    Args:
        model: a transformers model, with or without PEFT adapters.
        config: settings of the adapters; None for `AdapterConfig()`.
        options: options of training; None for `TssOptions()`.

    Raises:
        StateError: the model already has adapters.
        ValueError: no module matches, the size of a module's output is unknown, or the model is not supported.
        TypeError: `model` is not a module, or `config` or `options` has another type.
    """
    for name, value, kind in (("config", config, AdapterConfig), ("options", options, TssOptions)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"attach: {name} must be a tss.{kind.__name__} or None, got {value!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"attach: model must be a transformers model, got a {type(model).__name__}: load it first, for example "
            "with AutoModelForSeq2SeqLM.from_pretrained"
        )
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

"""Putting adapters on a Hugging Face model, and taking them off again."""

from __future__ import annotations

from typing import Any

from tss.adapters.bank import ATTRIBUTE, make_banks, run_adapter
from tss.adapters.checkpointing import forget_tasks, remember_tasks
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.float32 import TaskHeads
from tss.adapters.gated import GatedBank
from tss.adapters.handle import TssHandle
from tss.adapters.model_class import original_class, with_tasks
from tss.adapters.plain import PlainBank
from tss.adapters.sites import find_sites, hidden_size
from tss.adapters.state import HEADS
from tss.errors import StateError


def attach(model: Any, config: AdapterConfig | None = None, options: TssOptions | None = None) -> TssHandle:
    """Freeze a Hugging Face model, put an adapter on each of its sites and return the handle, also `model.tss`.

    With no active task the model answers exactly as before. `model.tss.detach()` undoes everything.

    Args:
        model: a transformers model.
        config: where the adapters go and what they look like; `AdapterConfig()` if None.
        options: how tasks are learned in them; `TssOptions()` if None.

    Raises:
        StateError: the model has adapters already.
        ValueError: no site, or a site of unknown width.
    """
    config, options = config or AdapterConfig(), options or TssOptions()
    if isinstance(getattr(model, "tss", None), TssHandle):
        raise StateError(f"this {type(model).__name__} has adapters already; call model.tss.detach() first")
    sites = find_sites(model, config)
    widths = {name: hidden_size(model, name, site) for name, site in sites.items()}
    banks = make_banks(GatedBank if config.gated else PlainBank, sites, widths, config, next(model.parameters()))
    handle = TssHandle(model, config, options, banks, TaskHeads())
    model.requires_grad_(False)
    for name, bank in banks.items():
        sites[name].add_module(ATTRIBUTE, bank)
        sites[name].register_forward_hook(run_adapter)
    model.add_module(HEADS, handle.heads)
    model.tss = handle
    model.__class__ = with_tasks(type(model))
    remember_tasks(handle)
    return handle


def remove(handle: TssHandle) -> None:
    """Take class, hooks, adapters, heads and handle off the handle's model."""
    model = handle.model
    forget_tasks(model)
    model.__class__ = original_class(type(model))
    for name in handle.banks:
        site = model.get_submodule(name)
        delattr(site, ATTRIBUTE)
        for key in [key for key, hook in site._forward_hooks.items() if hook is run_adapter]:
            del site._forward_hooks[key]
    delattr(model, HEADS)
    del model.tss

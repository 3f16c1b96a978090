"""Putting adapters on a Hugging Face model and taking them off again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tss.adapters.bank import Bank
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.gated import GatedBank
from tss.adapters.handle import HEADS, TssHandle
from tss.adapters.model_class import task_aware
from tss.adapters.plain import PlainBank
from tss.adapters.site import ATTRIBUTE, AdapterSite, run_site
from tss.adapters.sites import find_sites, hidden_size
from tss.errors import TssError


def attach(model: Any, config: AdapterConfig | None = None, options: TssOptions | None = None) -> TssHandle:
    """Freeze a Hugging Face model, put an adapter on each of its sites and return the handle, also `model.tss`.

    With no active task the model answers exactly as before. `handle.detach()` undoes everything.

    Args:
        model: a transformers model with a `config`.
        config: where the adapters go and what they look like.
        options: how tasks are learned in them.

    Raises:
        TssError: the model already has adapters.
        ValueError: no site, or a site of unknown width.
    """
    config, options = config or AdapterConfig(), options or TssOptions()
    if isinstance(getattr(model, "tss", None), TssHandle):
        raise TssError(f"{type(model).__name__} already has adapters; call model.tss.detach() first")
    sites = find_sites(model, config)
    widths = {name: hidden_size(model, name, site) for name, site in sites.items()}
    bank: Bank = GatedBank(config) if config.gated else PlainBank(config)
    handle = TssHandle(model, config, options, bank)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, site in sites.items():
        example = next(site.parameters(), None)
        example = next(model.parameters()) if example is None else example
        dtype = example.dtype if example.dtype.is_floating_point else torch.float32
        _install(bank, name, site, bank.make_adapter(name, widths[name], example.device, dtype))
    model.add_module(HEADS, nn.ModuleDict())
    model.__class__ = task_aware(type(model))
    # Past nn.Module.__setattr__: the handle is no submodule, and a deep copy of the model copies it along.
    object.__setattr__(model, "tss", handle)
    return handle


def _install(bank: Bank, name: str, site: nn.Module, adapter: nn.Module) -> None:
    holder = AdapterSite(adapter)
    site.add_module(ATTRIBUTE, holder)
    bank.sites[name] = holder
    site.register_forward_hook(run_site)


def remove(model: Any, sites: dict[str, AdapterSite]) -> None:
    """Take hooks, adapters, heads, class and handle off a model."""
    for module in list(model.modules()):
        if getattr(module, ATTRIBUTE, None) in sites.values():
            delattr(module, ATTRIBUTE)
            for key in [key for key, hook in module._forward_hooks.items() if hook is run_site]:
                del module._forward_hooks[key]
    delattr(model, HEADS)
    model.__class__ = type(model).original_class
    object.__delattr__(model, "tss")

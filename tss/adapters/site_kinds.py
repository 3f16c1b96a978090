"""Choice of the adapter at each site of a model: the gated one, or the one that `PlainOptions.trained` names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from tss.adapters.backbone_site import BackboneSite
from tss.adapters.config import AdapterConfig, PlainOptions, TssOptions
from tss.adapters.gated_site import GatedSite
from tss.adapters.lora_site import LoraSite, import_peft
from tss.adapters.masked_site import MaskedSite
from tss.adapters.own_site import OwnSite
from tss.adapters.plain_site import PlainSite
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.sites import find_sites, hidden_size, matching
from tss.adapters.task_store import TaskStore

PLAIN = {"shared": PlainSite, "own": OwnSite}


def make_adapters(core: Any, config: AdapterConfig, options: TssOptions, store: TaskStore) -> dict[str, SiteAdapter]:
    """Create an adapter for every site, on the site's device and in its dtype; the caller registers the hooks.

    Args:
        core: the transformers model.
        config: settings of the adapters, including their sites.
        options: options of training, including what is trained in the adapters.
        store: the model's tasks.

    Raises:
        ValueError: there is no site, a site has unknown width, or the options do not fit the adapters.
        TssError: a package is missing.
    """
    if config.gated and isinstance(options, PlainOptions):
        raise ValueError(
            f"PlainOptions(trained={options.trained!r}) train weights, but AdapterConfig has gated=True, which freezes "
            "them: give AdapterConfig(gated=False), or TssOptions"
        )
    trained = options.trained if isinstance(options, PlainOptions) else "shared"
    if trained == "backbone":
        return {"": BackboneSite(core, config, store)}
    if isinstance(options, PlainOptions) and trained == "lora":
        return _make_loras(core, config, options, store)
    kind: Callable[..., SiteAdapter] = GatedSite if config.gated else PLAIN.get(trained, MaskedSite)
    extra = [options.steepness] if isinstance(options, PlainOptions) and trained == "masked" else []
    fallback = next(core.parameters())
    adapters: dict[str, SiteAdapter] = {}
    for index, (name, site) in enumerate(find_sites(core, config).items()):
        # A block's last parameters determine its output: T5 keeps those in float32 if the rest is half precision.
        like = ([p for p in site.parameters() if p.is_floating_point()] or [fallback])[-1]
        adapter = kind(index, name, hidden_size(core, name, site), config, store, like.dtype, *extra)
        adapters[name] = adapter if like.is_meta else adapter.to(like.device)
    return adapters


def _make_loras(core: Any, config: AdapterConfig, options: PlainOptions, store: TaskStore) -> dict[str, SiteAdapter]:
    targets = find_targets(core, options.targets)
    rank = options.rank or equal_rank(core, config, targets.values(), options.match)
    alpha = rank if options.alpha is None else options.alpha
    fallback = next(core.parameters())
    adapters: dict[str, SiteAdapter] = {}
    for index, (name, target) in enumerate(targets.items()):
        like = next(target.parameters(), fallback)
        adapter = LoraSite(index, name, sizes_of(target), config, store, rank, alpha)
        adapters[name] = adapter if like.is_meta else adapter.to(like.device)
    return adapters


def find_targets(core: Any, pattern: str | None) -> dict[str, nn.Module]:
    """Return the linear layers that get a LoRA, by name, in the model's order.

    Args:
        core: the transformers model.
        pattern: regular expression that matches full names; None for peft's default targets in models of this type.

    Raises:
        ValueError: peft has no targets for this type of model, nothing matches, or a match is not a linear layer.
        TssError: the package peft is not installed.
    """
    if pattern is None:
        known = import_peft().utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        if core.config.model_type not in known:
            raise ValueError(
                f"peft has no default targets for a model of type {core.config.model_type!r}: give targets, a regular "
                r"expression of the names of its linear layers, such as .*\.(q_proj|v_proj)"
            )
        pattern = r"(.*\.)?(" + "|".join(map(re.escape, known[core.config.model_type])) + ")"
    modules = dict(core.named_modules())
    targets = {name: modules[name] for name in matching(pattern, modules)}
    if not targets:
        raise ValueError(f"no module name of {type(core).__name__} matches targets={pattern!r}")
    for name, module in targets.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise ValueError(
                f"a LoRA is added to a linear layer, but {name} is a {type(module).__name__}: change targets"
            )
    return targets


def equal_rank(core: Any, config: AdapterConfig, targets: Iterable[nn.Module], match: str = "parameters") -> int:
    """Return the rank, at least 1, whose LoRAs are nearest in size to the adapters of `config`.

    An adapter of width w and bottleneck b has 2wb + w + b parameters, or 2wb gates of 1 bit (rows in whole bytes). A
    LoRA has rank * (in + out) parameters, of which each takes 4 bytes.

    Args:
        core: the transformers model.
        config: settings of the adapters.
        targets: the linear layers that get a LoRA.
        match: compare trained "parameters", or the "bytes" of gates.
    """
    widths = [hidden_size(core, name, site) for name, site in find_sites(core, config).items()]
    size = config.bottleneck
    of_rank_1 = sum(sum(sizes_of(target)) for target in targets)
    if match == "bytes":
        gates = sum(size * -(-width // 8) + width * -(-size // 8) for width in widths)
        return max(1, round(gates / (4 * of_rank_1)))
    return max(1, round(sum(2 * width * size + width + size for width in widths) / of_rank_1))


def sizes_of(target: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a linear layer."""
    if isinstance(target, nn.Linear):
        return target.in_features, target.out_features
    assert isinstance(target, Conv1D)
    return target.nx, target.nf

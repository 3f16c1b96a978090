"""Which adapter runs at which site of a model: that of the gates, or what `PlainOptions.trained` names."""

from __future__ import annotations

from typing import Any

from tss.adapters.backbone_site import BackboneSite
from tss.adapters.config import AdapterConfig, PlainOptions, TssOptions
from tss.adapters.own_site import OwnSite
from tss.adapters.site_adapter import GatedSite, PlainSite, SiteAdapter
from tss.adapters.sites import find_sites, hidden_size
from tss.adapters.task_store import TaskStore

PLAIN = {"shared": PlainSite, "own": OwnSite}


def make_adapters(core: Any, config: AdapterConfig, options: TssOptions, store: TaskStore) -> dict[str, SiteAdapter]:
    """An adapter for every site, on the site's device and in its dtype; the caller hooks them in.

    Args:
        core: the transformers model.
        config: where adapters go and what they look like.
        options: what is trained in them.
        store: of the model's tasks.

    Raises:
        ValueError: no site, or one of unknown width.
    """
    trained = options.trained if isinstance(options, PlainOptions) else "shared"
    if trained == "backbone":
        return {"": BackboneSite(core, config, store)}
    kind = GatedSite if config.gated else PLAIN[trained]
    fallback = next(core.parameters())
    adapters: dict[str, SiteAdapter] = {}
    for index, (name, site) in enumerate(find_sites(core, config).items()):
        # A block's last parameters shape its output: T5 keeps those in float32 where the rest is half precision.
        like = ([p for p in site.parameters() if p.is_floating_point()] or [fallback])[-1]
        adapter = kind(index, name, hidden_size(core, name, site), config, store, like.dtype)
        adapters[name] = adapter if like.is_meta else adapter.to(like.device)
    return adapters

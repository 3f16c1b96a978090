"""Which modules of a model get an adapter on their output, and how wide that output is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from tss.adapters.config import AdapterConfig


@dataclass(frozen=True)
class Preset:
    """Regular expressions of full module names whose output an adapter transforms."""

    feed_forward: str
    attention: str


# After a block means after its residual and norm where the norm comes last (BART, BERT), and on the block's own output
# before the residual where the norm comes first (T5, Llama): there the running sum is not normalised.
BERT = Preset(r"(.*\.)?encoder\.layer\.\d+\.output", r"(.*\.)?encoder\.layer\.\d+\.attention\.output")
PRESETS = {
    "bart": Preset(
        r"(.*\.)?(encoder|decoder)\.layers\.\d+\.final_layer_norm",
        r"(.*\.)?(encoder|decoder)\.layers\.\d+\.self_attn_layer_norm",
    ),
    "t5": Preset(
        r"(.*\.)?(encoder|decoder)\.block\.\d+\.layer\.\d+\.DenseReluDense",
        r"(.*\.)?(encoder|decoder)\.block\.\d+\.layer\.0\.SelfAttention",
    ),
    "bert": BERT,
    "roberta": BERT,
    "llama": Preset(r"(.*\.)?layers\.\d+\.mlp", r"(.*\.)?layers\.\d+\.self_attn"),
}
# `config.model_type` -> preset.
MODEL_TYPES = {
    "bart": "bart",
    "t5": "t5",
    "mt5": "t5",
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma": "llama",
}


def site_pattern(model: nn.Module, config: AdapterConfig) -> str:
    """The regular expression of the sites: the configuration's own, or its preset's for the placement.

    Raises:
        ValueError: no preset for this type of model.
    """
    if config.sites is not None:
        return config.sites
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    name = config.preset or MODEL_TYPES.get(str(model_type))
    if name is None:
        raise ValueError(
            f"no preset for a model of type {model_type!r}; give AdapterConfig(sites=...) a regular expression of "
            f"module names, or preset= one of {', '.join(PRESETS)}"
        )
    preset = PRESETS[name]
    chosen = {
        "feed_forward": (preset.feed_forward,),
        "attention": (preset.attention,),
        "both": (preset.attention, preset.feed_forward),
    }[config.placement]
    return "|".join(f"(?:{pattern})" for pattern in chosen)


def find_sites(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Module]:
    """Module name -> module, for every module whose full name matches, in the model's order.

    Raises:
        ValueError: nothing matches; the message shows some names of this model.
    """
    pattern = re.compile(site_pattern(model, config))
    named = dict(model.named_modules())
    sites = {name: module for name, module in named.items() if name and pattern.fullmatch(name)}
    if not sites:
        sample = ", ".join([name for name in named if name][:12])
        raise ValueError(f"no module name of {type(model).__name__} matches {pattern.pattern!r}; it has {sample}, ...")
    return sites


def hidden_size(model: nn.Module, name: str, site: nn.Module) -> int:
    """The width of a site's output: what the module itself says, else the model's configuration.

    Raises:
        ValueError: neither says.
    """
    if isinstance(site, nn.LayerNorm):
        return int(site.normalized_shape[-1])
    if isinstance(site, nn.Linear):
        return site.out_features
    config = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    if width is None:
        raise ValueError(f"the width of {name} is unknown: its model's config has neither hidden_size nor d_model")
    return int(width)

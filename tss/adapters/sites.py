"""Modules of a model that get an adapter on their output, and the width of that output."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import regex
import torch
from torch import nn

from tss.adapters.config import AdapterConfig
from tss.adapters.fingerprints import checksum, is_sharded


@dataclass(frozen=True)
class Preset:
    """Regular expressions of the full names of modules whose output an adapter transforms."""

    feed_forward: str
    attention: str


# "After a block" means after its residual and norm where the norm comes last (BART, BERT), and on the block's own
# output, before the residual, where the norm comes first (mBART, T5, Llama): there the running sum is not normalised.
_BERT = Preset(r"(.*\.)?encoder\.layer\.\d+\.output", r"(.*\.)?encoder\.layer\.\d+\.attention\.output")
PRESETS = {
    "bart": Preset(
        r"(.*\.)?(encoder|decoder)\.layers\.\d+\.final_layer_norm",
        r"(.*\.)?(encoder|decoder)\.layers\.\d+\.self_attn_layer_norm",
    ),
    "mbart": Preset(
        r"(.*\.)?(encoder|decoder)\.layers\.\d+\.fc2",
        r"(.*\.)?(encoder|decoder)\.layers\.\d+\.self_attn",
    ),
    "t5": Preset(
        r"(.*\.)?(encoder|decoder)\.block\.\d+\.layer\.\d+\.DenseReluDense",
        r"(.*\.)?(encoder|decoder)\.block\.\d+\.layer\.0\.SelfAttention",
    ),
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": Preset(
        r"(.*\.)?transformer\.layer\.\d+\.output_layer_norm", r"(.*\.)?transformer\.layer\.\d+\.sa_layer_norm"
    ),
    "modernbert": Preset(r"(.*\.)?layers\.\d+\.mlp", r"(.*\.)?layers\.\d+\.attn"),
    "gpt2": Preset(r"(.*\.)?h\.\d+\.mlp", r"(.*\.)?h\.\d+\.attn"),
    "opt": Preset(r"(.*\.)?decoder\.layers\.\d+\.fc2", r"(.*\.)?decoder\.layers\.\d+\.self_attn"),
    "llama": Preset(r"(.*\.)?layers\.\d+\.mlp", r"(.*\.)?layers\.\d+\.self_attn"),
    "vit": Preset(r"(.*\.)?layers\.\d+\.mlp", r"(.*\.)?layers\.\d+\.attention"),
}
# `config.model_type` -> preset.
MODEL_TYPES = {
    "bart": "bart",
    "led": "bart",
    "mbart": "mbart",
    "pegasus": "mbart",
    "t5": "t5",
    "mt5": "t5",
    "bert": "bert",
    "electra": "bert",
    "deberta": "bert",
    "deberta-v2": "bert",
    "distilbert": "distilbert",
    "modernbert": "modernbert",
    "gpt2": "gpt2",
    "opt": "opt",
    "vit": "vit",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma": "llama",
    "gemma2": "llama",
    "gemma3_text": "llama",
    "phi3": "llama",
    "olmo": "llama",
    "olmo2": "llama",
    "smollm3": "llama",
    "granite": "llama",
    "stablelm": "llama",
    "starcoder2": "llama",
}
NAMES_SHOWN = 12
MOST_SECONDS = 5.0
"""Maximum number of seconds for matching the names of a model; a sound expression takes milliseconds."""
BATCH_SECOND = ("xlnet", "fsmt")


def site_pattern(model: nn.Module, config: AdapterConfig) -> str:
    """Return the regular expression of the sites: `config.sites`, or the preset's for the placement.

    Raises:
        ValueError: there is no preset for this type of model.
    """
    if config.sites is not None:
        return config.sites
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    name = config.preset or MODEL_TYPES.get(str(model_type))
    if name is None:
        raise ValueError(
            f"no preset for a model of type {model_type!r}; give AdapterConfig(sites=...) a regular expression of "
            f"module names such as {_some_names(model)}, or preset= one of {', '.join(PRESETS)}"
        )
    preset = PRESETS[name]
    chosen = {
        "feed_forward": (preset.feed_forward,),
        "attention": (preset.attention,),
        "both": (preset.attention, preset.feed_forward),
    }[config.placement]
    return "|".join(f"(?:{pattern})" for pattern in chosen)


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a regular expression matches in full, in their order; never the empty name.

    The package regex, which transformers needs anyway, has a timeout: `re` would run for years with an expression that
    tries exponentially many ways, such as `(.|\\w)*\\W`.

    Raises:
        ValueError: matching takes longer than `MOST_SECONDS`.
    """
    expression, end = regex.compile(pattern), time.monotonic() + MOST_SECONDS
    found = []
    for name in filter(None, names):
        try:
            if expression.fullmatch(name, timeout=max(0.001, end - time.monotonic())):
                found.append(name)
        except TimeoutError as error:
            raise ValueError(
                f"the regular expression {pattern!r} tries too many ways to match {name!r} (more than "
                f"{MOST_SECONDS:g} s): write it without alternatives or repetitions inside a repetition"
            ) from error
    return found


def find_sites(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Module]:
    """Return module name -> module for every module whose full name matches, in the model's order.

    Raises:
        ValueError: nothing matches (the message lists existing names), or a match is a container, which would run an
            adapter as a member.
    """
    pattern, modules = site_pattern(model, config), dict(model.named_modules())
    sites = {name: modules[name] for name in matching(pattern, modules)}
    if not sites:
        raise ValueError(
            f"no module name of {type(model).__name__} matches {pattern!r}; it has {_some_names(model)}, ..."
        )
    for name, module in sites.items():
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            raise ValueError(f"site {name} is a {type(module).__name__}; match its last module instead")
    return sites


def check_backbone(model: nn.Module, core: nn.Module) -> None:
    """Raise ValueError, before anything is trained, for a model on which tasks could not be trained or saved.

    Args:
        model: the model given to `attach`.
        core: the transformers model in it.
    """
    config = getattr(core, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise ValueError(
            f"{type(core).__name__} has no transformers config, which tasks need to find its hidden states: give a "
            "PreTrainedModel, or put GatedAdapter of tss_kernels into your module yourself"
        )
    if config.model_type in BATCH_SECOND:
        raise ValueError(
            f"the layers of {type(core).__name__} return (length, batch, hidden), so tasks by row would mix up rows; "
            "use a model whose first dimension is the batch"
        )
    prompts = [name for name, one in getattr(model, "peft_config", {}).items() if getattr(one, "is_prompt_learning", 0)]
    if prompts:
        raise ValueError(
            f"PEFT adapter {prompts[0]!r} trains prompts, which labelled tasks would skip; use LoRA or another that "
            "changes layers, or unload it"
        )
    for name, tensor in (*core.named_parameters(), *core.named_buffers()):
        if type(tensor) not in (torch.Tensor, nn.Parameter) and not tensor.is_meta and not is_sharded(tensor):
            try:
                checksum(tensor)
            except Exception as error:
                raise ValueError(
                    f"{name} is a {type(tensor).__name__}, whose bytes cannot be read ({type(error).__name__}): "
                    "tasks trained on it could not be saved; use another quantiser"
                ) from error


def hidden_size(model: nn.Module, name: str, site: nn.Module) -> int:
    """Return the width of a site's output, from the norm or linear layer itself, or else from the model's config.

    Raises:
        ValueError: neither has it.
    """
    if isinstance(site, nn.LayerNorm):
        return int(site.normalized_shape[-1])
    if isinstance(site, nn.Linear):
        return site.out_features
    return model_width(model, f"of site {name}")


def model_width(model: nn.Module, what: str) -> int:
    """Return the width of the model's hidden states from its config; `what` is named in the error.

    Raises:
        ValueError: the config does not have it.
    """
    config = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    if width is None:
        raise ValueError(
            f"the width {what} is unknown: the config of {type(model).__name__} has neither hidden_size nor d_model; "
            "match linear layers or layer norms, whose width is known"
        )
    return int(width)


def _some_names(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)]
    # Names from the middle are inside a layer, where sites usually are; the first are embeddings and stacks.
    half = NAMES_SHOWN // 2
    return ", ".join(names if len(names) <= NAMES_SHOWN else [*names[:half], *names[len(names) // 2 :][:half]])

"""Frozen language model of a run: which one, in which precision, with which tokenizer."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tss.adapters import attach
from tss.errors import ConfigError
from tss.io import sha256
from tss.run.runtime import out_of_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tss.adapters import TssHandle
    from tss.methods import Method
    from tss.run.config import RunConfig

NAMED = ("embedded", "embedded-random", "bart-large", "bart-large-random")
"""Backbones with a name of their own; others are model folders or hub names."""

BART_TOKENIZER = "TSS_BART_TOKENIZER"
"""Environment variable with the folder of BART's tokenizer for `bart-large-random`."""

MOST_TOKENS = 10**6
"""Length of inputs for backbones without learned positions; tokenizers without a limit say far more."""

VOLATILE = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_from_model_config",
    "_attn_implementation",
)
"""Entries of a model configuration that change no answer, or are a run's own."""


@dataclass(frozen=True)
class Backbone:
    """Model in evaluation mode on its device, its tokenizer, and a description of where both come from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str
    parameters: int


def resolve_device(device: str) -> torch.device:
    """Return the device that "auto" stands for (CUDA if available, else the CPU), or the named one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device: no device {device!r}; use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device!r} asked for, but {torch.cuda.device_count()} CUDA devices are visible")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16"; "auto" is bfloat16 on GPUs with native support, otherwise float32.

    It is float32 on every CPU, so that a run gives the same scores on all CPUs, with or without bfloat16 units.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32"


def load_backbone(
    name: str,
    *,
    tokenizer: str | None = None,
    precision: str = "float32",
    device: torch.device | None = None,
    seed: int = 2021,
) -> Backbone:
    """Load a model and its tokenizer and check that they fit together.

    Args:
        name: "embedded", "embedded-random" (its shape, random weights), "bart-large", "bart-large-random", a model
            folder, or a hub name.
        tokenizer: folder or hub name of a tokenizer to use instead of the model's own.
        precision: "float32" or "bfloat16", the dtype of all weights.
        device: device of the model; None: the CPU.
        seed: seed of random weights.

    Raises:
        ConfigError: the model or tokenizer cannot be loaded, or the tokenizer has more entries than the model embeds.
    """
    from transformers import AutoConfig

    dtype = getattr(torch, precision)
    if name == "bart-large-random":
        model = random_model(bart_large_config(), dtype=dtype, seed=seed)
        origin = "BART-Large's shape with random weights"
    elif name == "embedded-random":
        folder = embedded_folder()
        model = random_model(AutoConfig.from_pretrained(folder), dtype=dtype, seed=seed)
        origin, tokenizer = "the embedded backbone's shape with random weights", tokenizer or str(folder)
    else:
        source = _source(name)
        model, origin = _pretrained(source, dtype), str(source)
        tokenizer = tokenizer or str(source)
    tokenizer, hint = _tokenizer_source(tokenizer)
    loaded = _load_tokenizer(tokenizer)
    check_vocabulary(model, loaded, tokenizer)
    placed: Any = model.eval()
    placed.to(device or "cpu")
    return Backbone(placed, loaded, f"{origin}{hint}", model.num_parameters())


def attach_adapters(config: RunConfig, backbone: Backbone, method: Method) -> TssHandle:
    """Attach adapters to the backbone.

    Raises:
        ConfigError: the backbone has no such sites, or there is no memory for adapters of this size.
    """
    try:
        return attach(backbone.model, config.adapters, method.layer_options()).tss
    except ValueError as error:
        raise ConfigError(f"adapters on backbone {config.backbone}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if (detail := out_of_memory(error)) is None:
            raise
        width = config.adapters.bottleneck
        raise ConfigError(f"adapters.bottleneck: not enough memory for adapters of width {width} ({detail})") from error


def set_checkpointing(handle: TssHandle, on: bool) -> None:
    """Enable or disable gradient checkpointing in the backbone."""
    if on:  # the other form, with reentrant passes, rounds differently
        handle.model.activation_checkpointing_enable({"use_reentrant": False})
    elif handle.model.is_activation_checkpointing:
        handle.model.activation_checkpointing_disable()


def identity(backbone: Backbone) -> dict[str, str]:
    """Return digests of what predictions depend on besides weights: the tokenizer and the model's own configuration."""
    tokenizer: Any = backbone.tokenizer
    words: Any = sorted(tokenizer.get_vocab().items())
    if tokenizer.is_fast:  # also how text is split and normalized, but not what the last call set
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        words = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    configs = (backbone.model.config, getattr(backbone.model, "generation_config", None))  # encoders have none
    settings = [config.to_diff_dict() for config in configs if config]
    told = [{key: value for key, value in each.items() if key not in VOLATILE} for each in settings]
    return {
        "tokenizer": sha256(json.dumps([type(tokenizer).__name__, words, special], sort_keys=True)),
        "backbone's configuration": sha256(json.dumps(told, sort_keys=True, default=str)),
    }


def embedded_folder() -> Path:
    """Return the folder of the small pretrained backbone that comes with the package."""
    folder = Path(str(resources.files("tss") / "assets" / "backbone"))
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"backbone: this installation has no embedded backbone ({folder} has no config.json); "
            "name a model folder or a hub name instead"
        )
    return folder


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Check that every entry of the tokenizer has a row in the model's input embedding.

    A missing padding token is set to the end token.

    Raises:
        ConfigError: the tokenizer has more entries than the model embeds, or neither a padding nor an end token.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"tokenizer {source}: {len(tokenizer)} entries, but the model embeds {rows}; use the model's own tokenizer"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"tokenizer {source}: it has neither a padding nor an end token; use another one")
        tokenizer.pad_token = tokenizer.eos_token


def check_lengths(model: PreTrainedModel, task: str, *, source_length: int, target_length: int) -> None:
    """Raise ConfigError for lengths beyond the model's learned positions, which would fail deep inside the model."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return
    for key, value in (("source_length", source_length), ("target_length", target_length)):
        if value > positions:
            raise ConfigError(f"task {task}: {key} is {value}, but the backbone has {positions} positions; lower {key}")
    if not model.config.is_encoder_decoder and source_length + target_length > positions:
        raise ConfigError(
            f"task {task}: source_length {source_length} and target_length {target_length} share the backbone's "
            f"{positions} positions; lower one of them"
        )


def longest_source(backbone: Backbone, target_length: int) -> int:
    """Return the largest number of input tokens that the backbone reads, beside an answer of `target_length` tokens."""
    config = backbone.model.config
    known = (getattr(config, "max_position_embeddings", None), backbone.tokenizer.model_max_length)
    longest = min([limit for limit in known if limit is not None and 0 < limit < MOST_TOKENS], default=MOST_TOKENS)
    return max(8, longest if config.is_encoder_decoder else longest - target_length)


def check_checkpointing(model: PreTrainedModel, task: str) -> None:
    """Raise ConfigError if the model does not support gradient checkpointing."""
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"task {task}: gradient_checkpointing: {type(model).__name__} does not support it; leave it out, and use a "
            "smaller batch_size with grad_accumulation to save memory"
        )


def _source(name: str) -> str | Path:
    if name == "embedded":
        return embedded_folder()
    if name == "bart-large":
        return "facebook/bart-large"
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")):
        if not (path / "config.json").is_file():
            raise ConfigError(f"backbone: {path} is not a model folder (it has no config.json)")
        return path
    if near := difflib.get_close_matches(name, NAMED, n=1, cutoff=0.85):
        raise ConfigError(f"backbone: no backbone {name!r}; did you mean {near[0]!r}?")
    return name


def _pretrained(source: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    import transformers

    transformers.utils.logging.disable_progress_bar()  # piped output stays plain
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        return _model_class(config).from_pretrained(source, config=config, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "give a model folder, or a hub name if the network is available"
        if source == "facebook/bart-large":
            remedy = "without a network, backbone=bart-large-random has the same shape with random weights"
        raise ConfigError(f"backbone: {source} cannot be loaded ({reason}); {remedy}") from error


def _model_class(config: Any) -> Any:
    """Return the model class, with a language-model head if the architecture has a usable one."""
    import transformers

    architecture = (config.architectures or [""])[0]
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


def bart_large_config() -> PretrainedConfig:
    """Return a configuration of BART-Large's shape: width 1024, 12 + 12 layers, 50,265 vocabulary entries."""
    from transformers import BartConfig

    return BartConfig(d_model=1024, encoder_layers=12, decoder_layers=12, vocab_size=50265)


def random_model(config: PretrainedConfig, *, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Create an encoder-decoder of this shape with random weights; the global random state is unchanged."""
    from transformers import AutoModelForSeq2SeqLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSeq2SeqLM.from_config(config, dtype=dtype)


def _tokenizer_source(tokenizer: str | None) -> tuple[str, str]:
    """Return the tokenizer's source and a note about it; None stands for a model without its own tokenizer."""
    if tokenizer is not None:
        return tokenizer, ""
    if folder := os.environ.get(BART_TOKENIZER):
        return folder, f", tokenizer from {BART_TOKENIZER}={folder}"
    return str(embedded_folder()), (
        f", with the embedded backbone's tokenizer (set tokenizer= or {BART_TOKENIZER} to a folder with BART's own)"
    )


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"tokenizer: {source} cannot be loaded ({str(error).strip().splitlines()[0]})") from error

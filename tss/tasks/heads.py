"""Backbone features of any Hugging Face model, and the head of a labelled task.

Only the backbone's own modules (encoder, decoder, base model) are called, never its language-model head: a classifier
does not need its product with the vocabulary.
"""

from __future__ import annotations

import difflib
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers.utils.generic import TransformersKwargs

HEADS = ("dense", "linear")
HEAD_STD = 0.02  # as transformers initialises the classification head of BART

Architecture = Literal["encoder-decoder", "encoder", "decoder"]
Call = Callable[..., Any]


def architecture(model: Any) -> Architecture:
    """Return which stacks a model has: "encoder-decoder", "encoder" (bidirectional) or "decoder" (causal)."""
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    if torch.compiler.is_compiling():
        return _single_stack(model)
    if model not in _found:
        _found[model] = _single_stack(model)
    return _found[model]


# Model -> architecture: visiting every module takes as long as a small layer, so it is done once per model.
_found: weakref.WeakKeyDictionary[Any, Architecture] = weakref.WeakKeyDictionary()


def _single_stack(model: Any) -> Architecture:
    causal = [vars(module)["is_causal"] for module in model.modules() if "is_causal" in vars(module)]
    # Attention modules of older architectures have no `is_causal`; then it depends on whether the model can generate.
    return "decoder" if (any(causal) if causal else model.can_generate()) else "encoder"


def shift_right(input_ids: torch.Tensor, start_id: int) -> torch.Tensor:
    """Return decoder inputs shifted right by one token: `start_id`, then all but the last token of each row (B, L)."""
    return torch.cat([torch.full_like(input_ids[:, :1], start_id), input_ids[:, :-1]], dim=1)


def choose_stack(model: Any, stack: str = "auto") -> str:
    """Return the stack that features come from: "auto" is the decoder if there is one, otherwise the encoder.

    Raises:
        ValueError: the model has no such stack.
    """
    have = architecture(model)
    if stack == "auto":
        return "encoder" if have == "encoder" else "decoder"
    if stack not in have.split("-"):
        raise ValueError(f"features of the {stack} requested from {type(model).__name__}, which has only: {have}")
    return stack


class Features(NamedTuple):
    """Input of a head: hidden (B, L, H) of the last layer, mask (B, L) of real tokens, and other requested outputs."""

    hidden: torch.Tensor
    mask: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def features(model: Any, inputs: Mapping[str, Any], stack: str = "auto", call: Call | None = None) -> Features:
    """Compute the hidden states of the last layer of a stack and the mask of real tokens.

    Args:
        model: any Hugging Face model; its forward is not called if its parts can be called instead.
        inputs: keyword arguments of the model's forward pass, without labels; all are passed on. An encoder-decoder's
            decoder reads `input_ids` shifted right, as BART's own classifier does, unless decoder inputs are given.
        stack: "encoder", "decoder", or "auto": the decoder if there is one.
        call: runs a part of the model with keyword arguments; None calls the part itself.

    Raises:
        ValueError: an input that the model does not have, no inputs for the decoder, or no such stack.
    """
    have, stack = architecture(model), choose_stack(model, stack)
    kwargs = {key: value for key, value in inputs.items() if value is not None and key not in ("return_dict", "labels")}
    check_inputs(model, kwargs)
    run = call or (lambda module, **named: module(**named))
    mask = kwargs.get("attention_mask")
    if mask is None and isinstance(kwargs.get("input_ids"), torch.Tensor):
        mask = real_tokens(kwargs["input_ids"], getattr(model.config, "pad_token_id", None))
    if have != "encoder-decoder":
        if have == "decoder":
            kwargs.setdefault("use_cache", False)
        return _read_output(run(model.base_model, **kwargs), mask)
    if stack == "encoder":
        own = inspect.signature(model.get_encoder().forward).parameters
        if foreign := sorted(key for key in kwargs if key.startswith(("decoder_", "encoder_")) and key not in own):
            raise ValueError(f"a head on the encoder cannot use {', '.join(foreign)}: leave it out, or use the decoder")
        return _read_output(run(model.get_encoder(), **kwargs), mask)
    if "decoder_input_ids" in kwargs or "decoder_inputs_embeds" in kwargs:
        mask = kwargs.get("decoder_attention_mask")
    else:
        if "input_ids" not in kwargs:
            raise ValueError(
                "a labelled task needs input_ids, which its decoder reads shifted right; or give decoder_input_ids"
            )
        start = getattr(model.config, "decoder_start_token_id", None)
        if start is None:
            raise ValueError(
                f"{type(model).__name__} has no config.decoder_start_token_id, which the decoder starts from"
            )
        kwargs["decoder_input_ids"] = shift_right(kwargs["input_ids"], start)
    kwargs.setdefault("use_cache", False)
    if model.base_model is not model or model.get_output_embeddings() is None:
        return _read_output(run(model.base_model, **kwargs), mask)
    if call is not None:
        return _read_output(call(model.get_decoder(), **kwargs), mask)
    return _read_output(_run_stacks(model, kwargs), mask)


def real_tokens(ids: torch.Tensor, pad_id: int | None) -> torch.Tensor | None:
    """Return the mask (B, L) of ids between the padding at both ends; None without a padding token.

    Padding tokens in between count as text: some models pad with their end token.
    """
    if pad_id is None or ids.dim() != 2:
        return None
    real = ids != pad_id
    return (real.cumsum(1) > 0) & (real.flip(1).cumsum(1).flip(1) > 0)


def _run_stacks(model: Any, kwargs: dict[str, Any]) -> Any:
    """Return the decoder's output for a model, such as T5, that has its stacks and its head in one class."""
    decoder = {key.removeprefix("decoder_"): kwargs.pop(key) for key in list(kwargs) if key.startswith("decoder_")}
    decoder |= {key: kwargs.pop(key) for key in ("use_cache", "past_key_values", "cache_position") if key in kwargs}
    decoder |= {key: kwargs[key] for key in ("output_hidden_states", "output_attentions") if key in kwargs}
    encoded = kwargs.pop("encoder_outputs", None)
    hidden = (model.get_encoder()(**kwargs) if encoded is None else encoded)[0]
    return model.get_decoder()(
        **decoder, encoder_hidden_states=hidden, encoder_attention_mask=kwargs.get("attention_mask")
    )


def check_inputs(model: Any, inputs: Iterable[str]) -> None:
    """Raise ValueError for a keyword that neither model nor base model declares: transformers would ignore it."""
    if torch.compiler.is_compiling():  # eager calls check this
        return
    known = _declared(type(model)) | _declared(type(model.base_model))
    for name in inputs:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{type(model).__name__} has no input {name!r}{hint}")


@cache
def _declared(model_class: type) -> frozenset[str]:
    """Return the keywords that a forward pass takes by name, and those that transformers passes on to its layers."""
    named = inspect.signature(model_class.forward).parameters
    return frozenset({*named, *TransformersKwargs.__annotations__, "inputs_embeds"})


def _read_output(output: Any, mask: torch.Tensor | None) -> Features:
    """Return the features in the output of a stack, or of a base model, where its decoder's outputs are used."""
    hidden = output.last_hidden_state
    if mask is None or mask.dim() != 2 or mask.shape[1] != hidden.shape[1]:
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    found = [output.get(f"decoder_{key}", output.get(key)) for key in ("hidden_states", "attentions")]
    return Features(hidden, mask.to(hidden.device), *found)


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """Pool hidden states (B, L, H) to one vector per row, (B, H): the "first" or "last" real token, or the "mean"."""
    if how == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    real = mask.bool()
    if how == "last":
        index = torch.where(real, positions, 0).amax(1)
    else:
        index = torch.where(real, positions, mask.shape[1] - 1).amin(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]


class Head(nn.Module):
    """Head that maps hidden states (..., hidden_size) to logits (..., outputs).

    "dense" is the head of BART's own classifier: dropout, dense d -> d, tanh, dropout, out d -> outputs. "linear" is
    dropout and out only, with d * outputs instead of d * (d + outputs) weights.

    Args:
        hidden_size: width d of the backbone.
        outputs: number of classes.
        dropout: probability of every dropout.
        generator: draws the weights (normal, std 0.02; biases are zero); None uses torch's global generator.
        head: "dense" or "linear".
    """

    def __init__(
        self,
        hidden_size: int,
        outputs: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        head: str = "dense",
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, dtype=torch.float32) if head == "dense" else None
        self.out = nn.Linear(hidden_size, outputs, dtype=torch.float32)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for linear in filter(None, (self.dense, self.out)):
                linear.weight.normal_(0.0, HEAD_STD, generator=generator)
                linear.bias.zero_()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits in the head's dtype (float32), or autocast's; `hidden` may have any floating dtype."""
        hidden = self.dropout(hidden.to(self.out.weight.dtype))
        if self.dense is not None:
            hidden = self.dropout(torch.tanh(self.dense(hidden)))
        return self.out(hidden)

    @staticmethod
    def apply(tensors: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Return the output, in evaluation mode, of a head with these tensors (named as in `state_dict`)."""
        hidden = hidden.to(tensors["out.weight"].dtype)
        if "dense.weight" in tensors:
            hidden = torch.tanh(nn.functional.linear(hidden, tensors["dense.weight"], tensors["dense.bias"]))
        return nn.functional.linear(hidden, tensors["out.weight"], tensors["out.bias"])

"""Backbone features of any Hugging Face model, and the head that a labelled task owns.

The backbone's own modules are called (encoder, decoder, base model), never its language-model head, whose vocabulary
product a classifier does not need.
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
    """Which stacks a model has: "encoder-decoder", "encoder" (sees both ways) or "decoder" (causal)."""
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    if torch.compiler.is_compiling():
        return _single_stack(model)
    if model not in _found:
        _found[model] = _single_stack(model)
    return _found[model]


# Looking at every module takes as long as a small layer: once for each model.
_found: weakref.WeakKeyDictionary[Any, Architecture] = weakref.WeakKeyDictionary()


def _single_stack(model: Any) -> Architecture:
    causal = [vars(module)["is_causal"] for module in model.modules() if "is_causal" in vars(module)]
    # Attention modules of older architectures do not say; then whether the model can generate does.
    return "decoder" if (any(causal) if causal else model.can_generate()) else "encoder"


def shift_right(input_ids: torch.Tensor, start_id: int) -> torch.Tensor:
    """Decoder inputs that lag one token behind: `start_id`, then all but the last of each row of (B, L)."""
    return torch.cat([torch.full_like(input_ids[:, :1], start_id), input_ids[:, :-1]], dim=1)


def choose_stack(model: Any, stack: str = "auto") -> str:
    """The stack that features come from: "auto" is the decoder if there is one, else the encoder.

    Raises:
        ValueError: the model has no such stack.
    """
    have = architecture(model)
    if stack == "auto":
        return "encoder" if have == "encoder" else "decoder"
    if stack not in have.split("-"):
        raise ValueError(f"features of the {stack} asked of {type(model).__name__}, which has only: {have}")
    return stack


class Features(NamedTuple):
    """What a head reads: hidden (B, L, H) of the last layer and mask (B, L) of real tokens; and what else was asked."""

    hidden: torch.Tensor
    mask: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def features(model: Any, inputs: Mapping[str, Any], stack: str = "auto", call: Call | None = None) -> Features:
    """Hidden states of the last layer of a stack and the mask of real tokens.

    Args:
        model: any Hugging Face model; its forward is not called where it has parts that can be called instead.
        inputs: keyword arguments of the model's forward pass without labels; all are passed on. An encoder-decoder's
            decoder reads `input_ids` shifted right, as BART's own classifier does, unless decoder inputs are given.
        stack: "encoder", "decoder", or "auto": the decoder if there is one.
        call: runs a part of the model with keyword arguments; None calls it.

    Raises:
        ValueError: an input that the model does not have, no inputs for the decoder, or no such stack.
    """
    have, stack = architecture(model), choose_stack(model, stack)
    kwargs = {key: value for key, value in inputs.items() if value is not None and key not in ("return_dict", "labels")}
    check_inputs(model, kwargs)
    run = call or (lambda module, **named: module(**named))
    mask = kwargs.get("attention_mask")
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


def _run_stacks(model: Any, kwargs: dict[str, Any]) -> Any:
    """The decoder's output of a model, such as T5, that has its stacks and its head in one class."""
    decoder = {key.removeprefix("decoder_"): kwargs.pop(key) for key in list(kwargs) if key.startswith("decoder_")}
    decoder |= {key: kwargs.pop(key) for key in ("use_cache", "past_key_values", "cache_position") if key in kwargs}
    decoder |= {key: kwargs[key] for key in ("output_hidden_states", "output_attentions") if key in kwargs}
    encoded = kwargs.pop("encoder_outputs", None)
    hidden = (model.get_encoder()(**kwargs) if encoded is None else encoded)[0]
    return model.get_decoder()(
        **decoder, encoder_hidden_states=hidden, encoder_attention_mask=kwargs.get("attention_mask")
    )


def check_inputs(model: Any, inputs: Iterable[str]) -> None:
    """Raise ValueError for a keyword that neither the model nor its base model declares: transformers would drop it."""
    if torch.compiler.is_compiling():  # eager calls have told
        return
    known = _declared(type(model)) | _declared(type(model.base_model))
    for name in inputs:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{type(model).__name__} has no input {name!r}{hint}")


@cache
def _declared(model_class: type) -> frozenset[str]:
    """Keywords that a forward pass takes by name, and those that transformers passes on to its layers."""
    named = inspect.signature(model_class.forward).parameters
    return frozenset({*named, *TransformersKwargs.__annotations__, "inputs_embeds"})


def _read_output(output: Any, mask: torch.Tensor | None) -> Features:
    """Features from the output of a stack or of a base model, whose own are its decoder's."""
    hidden = output.last_hidden_state
    if mask is None or mask.dim() != 2 or mask.shape[1] != hidden.shape[1]:
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    found = [output.get(f"decoder_{key}", output.get(key)) for key in ("hidden_states", "attentions")]
    return Features(hidden, mask.to(hidden.device), *found)


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """One vector per row, (B, H), from hidden states (B, L, H): the "first" or "last" real token, or their "mean"."""
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
    """Logits (..., outputs) from hidden states (..., hidden_size).

    "dense" is the head of BART's own classifier: dropout, dense d -> d, tanh, dropout, out d -> outputs. "linear" is
    dropout and out alone, which keeps d * outputs instead of d * (d + outputs) numbers.

    Args:
        hidden_size: width d of the backbone.
        outputs: number of classes.
        dropout: probability in all places.
        generator: draws the weights (normal, std 0.02; biases are zero); None takes torch's global one.
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
        """Logits in the head's dtype (float32), or autocast's; `hidden` may have any floating dtype."""
        hidden = self.dropout(hidden.to(self.out.weight.dtype))
        if self.dense is not None:
            hidden = self.dropout(torch.tanh(self.dense(hidden)))
        return self.out(hidden)

    @staticmethod
    def apply(tensors: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """What a head of these tensors (the names of `state_dict`) gives in evaluation mode."""
        hidden = hidden.to(tensors["out.weight"].dtype)
        if "dense.weight" in tensors:
            hidden = torch.tanh(nn.functional.linear(hidden, tensors["dense.weight"], tensors["dense.bias"]))
        return nn.functional.linear(hidden, tensors["out.weight"], tensors["out.bias"])

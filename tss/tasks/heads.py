"""Backbone features of any Hugging Face model, and the head that a labelled task owns.

The backbone's own modules are called (encoder, decoder, base model), never its language-model head, whose vocabulary
product a classifier does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

HEAD_STD = 0.02  # as transformers initialises the classification head of BART

Architecture = Literal["encoder-decoder", "encoder", "decoder"]


def architecture(model: Any) -> Architecture:
    """Which stacks a model has: "encoder-decoder", "encoder" (sees both ways) or "decoder" (causal)."""
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
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


def features(model: Any, inputs: Mapping[str, torch.Tensor], stack: str = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the last layer and the mask of real tokens: (B, L, H) and (B, L) int64.

    Args:
        model: any Hugging Face model; its forward is not called where it has parts that can be called instead.
        inputs: input_ids (B, L); attention_mask (B, L), all ones if absent; token_type_ids where the model knows them.
        stack: "encoder", "decoder" (an encoder-decoder's decoder reads the inputs shifted right, as BART's own
            classifier does), or "auto": the decoder if there is one.

    Raises:
        ValueError: no input_ids, or the model has no such stack.
    """
    input_ids = inputs.get("input_ids")
    if input_ids is None:
        raise ValueError("a labelled task needs input_ids; embeddings alone are not supported")
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    have = architecture(model)
    stack = choose_stack(model, stack)
    if have != "encoder-decoder":
        extra = {"token_type_ids": inputs["token_type_ids"]} if "token_type_ids" in inputs else {}
        keep = {"use_cache": False} if have == "decoder" else {}
        return model.base_model(input_ids=input_ids, attention_mask=mask, **extra, **keep).last_hidden_state, mask
    encoded = model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
    if stack == "encoder":
        return encoded, mask
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ValueError(f"{type(model).__name__} has no config.decoder_start_token_id, which the decoder starts from")
    decoded = model.get_decoder()(
        input_ids=shift_right(input_ids, start),
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        use_cache=False,
    )
    return decoded.last_hidden_state, mask


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
    """dropout, dense d -> d, tanh, dropout, out: logits (..., outputs) from hidden states (..., hidden_size).

    Args:
        hidden_size: width d of the backbone.
        outputs: number of classes.
        dropout: probability in both places.
        generator: draws the weights (normal, std 0.02; biases are zero); None takes torch's global one.
    """

    def __init__(
        self, hidden_size: int, outputs: int, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        self.out = nn.Linear(hidden_size, outputs, dtype=torch.float32)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for linear in (self.dense, self.out):
                linear.weight.normal_(0.0, HEAD_STD, generator=generator)
                linear.bias.zero_()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in the head's dtype (float32), or autocast's; `hidden` may have any floating dtype."""
        hidden = self.dropout(hidden.to(self.dense.weight.dtype))
        return self.out(self.dropout(torch.tanh(self.dense(hidden))))

"""Loss of a frozen language-model head: computes logits only at labels, and stores none for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tss.tasks.base import IGNORED

CHUNK_ROWS, CHUNK_LOGITS = 256, 2**22
"""Logits exist for a chunk of rows at a time: as many rows as make about this many logits (16 MB), at least 256."""

Head = tuple[torch.Tensor, torch.Tensor]


def vocabulary_loss(model: Any, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor | None:
    """Return the mean cross-entropy of the model's language-model head over labels that are not -100, 0 if all are.

    Args:
        model: a transformers encoder-decoder.
        inputs: inputs of its forward pass, without labels.
        labels: (B, M), int64.

    Returns:
        The scalar, float32 (float64 for a float64 model); None if this function does not support the model or inputs:
            then use its forward pass.
    """
    head = frozen_head(model)
    if head is None or "decoder_input_ids" in inputs or "decoder_inputs_embeds" in inputs:
        return None
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    hidden = model.base_model(**inputs, decoder_input_ids=decoder_input_ids, use_cache=False).last_hidden_state
    chosen = labels != IGNORED
    return linear_cross_entropy(hidden[chosen], *head, labels[chosen])


def frozen_head(model: Any) -> Head | None:
    """Return weight (V, H) and bias (V,) of a head `linear(hidden) + final_logits_bias`, as in BART and similar models.

    None for any other model, and if the head is trained.
    """
    bias, linear = getattr(model, "final_logits_bias", None), model.get_output_embeddings()
    plain = type(linear) is nn.Linear and linear.bias is None and not linear.weight.requires_grad
    if bias is None or not plain or model.base_model is model or linear._forward_hooks or linear._forward_pre_hooks:
        return None
    return linear.weight, bias.reshape(-1).to(linear.weight.dtype)


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross-entropy, in float32 (float64 for float64), of `hidden @ weight.T + bias`; 0 if N = 0.

    The gradient of `hidden` is computed in the same pass, so no logits are kept; weight and bias get no gradient.

    Args:
        hidden: (N, H).
        weight: (V, H).
        bias: (V,).
        labels: (N,), int64, each in [0, V).
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(CHUNK_ROWS, CHUNK_LOGITS // len(weight))
        count = max(1, len(labels))
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[rows], weight, bias)
            logarithms = torch.log_softmax(logits.to(wide), dim=-1)
            wanted = labels[rows, None]
            total -= logarithms.gather(1, wanted).sum()
            if gradient is not None:
                probabilities = logarithms.exp_()
                probabilities.scatter_add_(1, wanted, probabilities.new_full((1, 1), -1.0).expand_as(wanted))
                # as in autograd: backward through the cast, to the logits' dtype, with the factor of the mean
                gradient[rows] = (probabilities / count).to(logits.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None

"""Whole models to measure: backbones with gated adapters while a task is being trained, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

Apply = Callable[[torch.Tensor], torch.Tensor]
LABELS, TASK = 3, "measured"


@dataclass(frozen=True)
class Setting:
    """A model and the batches with which it is measured.

    backbone: "embedded" or "BART-Large" (its shape, random weights), or "tiny". source, target: tokens per row; target
    0: a classification task.
    """

    backbone: str
    dtype: torch.dtype
    device: torch.device
    batch: int
    source: int
    target: int = 0

    @property
    def shape(self) -> dict[str, int]:
        """The shape as a case lists it."""
        return {"batch": self.batch, "source": self.source, "target": self.target}


def backbone(setting: Setting) -> Any:
    """Return the frozen language model from transformers, without adapters."""
    from transformers import BartConfig, BartForConditionalGeneration

    if setting.backbone == "embedded":
        from tss.run.backbone import load_backbone

        model: Any = load_backbone("embedded", device=setting.device).model
        return model.to(setting.dtype)
    config = BartConfig()  # its defaults are BART-Large's
    if setting.backbone == "tiny":
        config = BartConfig(
            vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        )  # fmt: skip
    torch.manual_seed(0)
    with setting.device:
        model = BartForConditionalGeneration(config)
    return model.to(setting.dtype)


def kind_of_task(setting: Setting) -> Any:
    """Return a classification task, or a generation task if the setting has targets."""
    import tss

    return tss.Generation() if setting.target else tss.Classification(labels=tuple(str(i) for i in range(LABELS)))


@lru_cache(maxsize=1)  # one at a time: they are large
def learning(setting: Setting) -> Any:
    """Return a model in training mode with importance on its scores, as when it is trained on a second task."""
    import tss

    model: Any = tss.attach(backbone(setting), tss.AdapterConfig(bottleneck=4 if setting.backbone == "tiny" else 64))
    model.tss.add_task(TASK, kind_of_task(setting))
    model.tss.train_task(TASK)
    generator = torch.Generator(setting.device).manual_seed(2)
    for layer in model.tss.layers.values():
        layer.importance = torch.rand(layer.scores.shape, generator=generator, device=setting.device)
    return model.to(setting.device).train()


def batch_for(setting: Setting, words: int, *, rows: int | None = None, seed: int = 1) -> dict[str, torch.Tensor]:
    """Draw random tokens without padding; rows: overrides the setting's number."""
    rows, generator = rows or setting.batch, torch.Generator(setting.device).manual_seed(seed)

    def drawn(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, device=setting.device)

    labels = drawn(4, words, rows, setting.target) if setting.target else drawn(0, LABELS, rows)
    source = drawn(4, words, rows, setting.source)
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": labels}


@contextmanager
def adapters_replaced(model: Any, by: Mapping[str, Apply] | None) -> Iterator[None]:
    """Replace what every adapter computes by the function for its site; None replaces nothing."""
    adapters = model.tss.adapters
    for site, adapter in adapters.items():
        if by is not None:
            adapter.adapt = by[site]
    try:
        yield
    finally:
        for adapter in adapters.values():
            adapter.__dict__.pop("adapt", None)

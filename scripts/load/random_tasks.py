"""Many sealed tasks without training: random gates and heads run as fast as trained ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration

import tss
from tss.run.backbone import load_backbone
from tss.tasks import TaskKind

LABELS = ("negative", "neutral", "positive", "mixed", "unclear", "other")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def kinds(count: int) -> dict[str, TaskKind]:
    """Return names and kinds: of five tasks, three classify (with two to six labels), one extracts, one generates."""
    mix: dict[str, TaskKind] = {}
    for i in range(count):
        if i % 5 < 3:
            mix[f"asc/{i:02d}"] = tss.Classification(labels=LABELS[: 2 + i % 5])
        elif i % 5 == 3:
            mix[f"ner/{i:02d}"] = tss.Extraction(labels=TAGS)
        else:
            mix[f"drg/{i:02d}"] = tss.Generation(num_beams=1, max_new_tokens=8)
    return mix


def add_random_tasks(model: tss.TssModel, tasks: Mapping[str, TaskKind] | Iterable[tuple[str, TaskKind]]) -> None:
    """Seal tasks, each with its own random scores."""
    for name, kind in dict(tasks).items():
        model.tss.add_task(name, kind)
        model.tss.train_task(name)
        with torch.no_grad():
            for layer in model.tss.layers.values():
                layer.scores.add_(torch.randn_like(layer.scores).mul_(layer.scores.std()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings that nothing was learned and no importance computed
            model.tss.seal_task()


def tiny_backbone(folder: Path) -> Path:
    """Save a model folder with a BART of width 16 with random weights, and the embedded backbone's tokenizer."""
    tokenizer = load_backbone("embedded").tokenizer
    sizes: dict[str, Any] = {f"{stack}_{key}": value for stack in ("encoder", "decoder")
             for key, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    config = BartConfig(vocab_size=len(tokenizer), d_model=16, max_position_embeddings=256, **sizes)
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_random_tasks(folder: Path, tasks: Mapping[str, TaskKind], backbone: str = "embedded") -> Path:
    """Save a folder with such tasks for `tss serve FOLDER --backbone …`."""
    torch.manual_seed(0)
    model = tss.attach(
        load_backbone(backbone).model,
        tss.AdapterConfig(bottleneck=16),
        tss.TssOptions(score_copy=False, soft_mask="none"),
    )
    add_random_tasks(model, tasks)
    model.tss.save(folder)
    return folder

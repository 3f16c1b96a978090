#!/usr/bin/env python3
"""How far scores move under each form of the soft mask, by how important they are to an earlier task.

    python scripts/soft_mask.py --out docs/images/soft-mask.svg

Learns one generated task on the embedded backbone, then a second from the same scores under each form, and draws how
far scores moved over 1 - importance, relative to the unmasked run. Prints the table of the figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import tss
from tss.data import TaskData, load_task
from tss.run.backbone import load_backbone

FIRST, SECOND = "ner/news", "ccd/topics"
BINS = 10
# Form -> (options' soft_mask, optimizer of the second task).
FORMS: dict[str, tuple[str, str]] = {
    "AdamW, no mask": ("none", "adamw"),
    "AdamW, mask on the gradient": ("gradient", "adamw"),
    "AdamW, mask on the update": ("update", "adamw"),
    "SGD, mask on the gradient": ("gradient", "sgd"),
    "SGD, no mask": ("none", "sgd"),
}


def batches(task: TaskData, tokenizer: Any, count: int, size: int = 16) -> Iterator[dict[str, torch.Tensor]]:
    """Yield `count` batches of a task, cycling through the data in order."""
    encoded = task.kind.encode_all(task.train, tokenizer, source_length=64, target_length=64)
    for number in range(count):
        rows = [encoded[(number * size + i) % len(encoded)] for i in range(size)]
        yield task.kind.collate(rows, pad_id=tokenizer.pad_token_id)


def learn(model: tss.TssModel, task: TaskData, tokenizer: Any, steps: int, make: Callable[[], Any]) -> list[Any]:
    """Train the current task; return its batches."""
    optimizer, seen = make(), []
    model.train()
    for batch in batches(task, tokenizer, steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(batch)
    return seen


def movement(form: str, seed: int, steps: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the first task's importance (None without a mask) and how far each score moved in the second, flat."""
    mask, kind = FORMS[form]
    backbone = load_backbone("embedded")
    first, second = (load_task("generated", name, seed=seed, limits={"train": 320}) for name in (FIRST, SECOND))
    model = tss.attach(backbone.model, tss.AdapterConfig(seed=seed), tss.TssOptions(soft_mask=mask))

    def adamw() -> torch.optim.Optimizer:
        return model.tss.optimizer(score_lr=1e-2, head_lr=5e-3)

    def sgd() -> torch.optim.Optimizer:
        groups = model.tss.trainable_parameters()
        return torch.optim.SGD([{"params": groups["scores"], "lr": 30.0}, {"params": groups["head"], "lr": 0.1}])

    # The first task is never masked, so that it is the same in every form.
    torch.manual_seed(seed)
    model.tss.add_task(FIRST, first.kind)
    model.tss.train_task(FIRST)
    model.tss.seal_task(learn(model, first, backbone.tokenizer, steps, adamw))
    model.tss.add_task(SECOND, second.kind)
    model.tss.train_task(SECOND)
    before = {name: layer.scores.detach().clone() for name, layer in model.tss.layers.items()}
    importance = [layer.importance for layer in model.tss.layers.values() if layer.importance is not None]
    torch.manual_seed(seed)
    learn(model, second, backbone.tokenizer, steps, sgd if kind == "sgd" else adamw)
    moved = [(layer.scores.detach() - before[name]).abs().flatten() for name, layer in model.tss.layers.items()]
    return torch.cat([one.flatten() for one in importance]) if importance else None, torch.cat(moved)


def binned(free: torch.Tensor, moved: torch.Tensor) -> list[float]:
    """Return the mean movement in each of BINS ranges of 1 - importance, from masked to free."""
    place = (free * BINS).long().clamp(max=BINS - 1)
    return [moved[place == number].mean().item() if (place == number).any() else float("nan") for number in range(BINS)]


def main() -> None:
    """Run every form, draw the figure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=2021)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each task")
    options = parser.parse_args()
    found = {form: movement(form, options.seed, options.steps) for form in FORMS}
    importance = next(one for one, _ in found.values() if one is not None)
    raw = {form: binned(1 - importance, moved) for form, (_, moved) in found.items()}
    rows = {}
    for form, values in raw.items():
        unmasked = raw["SGD, no mask" if "SGD" in form else "AdamW, no mask"]
        rows[form] = [value / free for value, free in zip(values, unmasked, strict=True)]
    middles = [(number + 0.5) / BINS for number in range(BINS)]
    print("| 1 - importance | " + " | ".join(f"{middle:.2f}" for middle in middles) + " |")
    print("|---|" + "---:|" * BINS)
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for form, values in rows.items():
        print(f"| {form} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
        if "no mask" not in form:
            axis.plot(middles, values, marker="o", label=form)
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="what (1 - I) asks for")
    axis.set(xlabel="1 - importance of the first task", ylabel="movement over the unmasked run's", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()

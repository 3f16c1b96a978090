"""Add a task later: load saved tasks, learn one more, save again. python examples/later.py [FOLDER]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import tss
from tss.run.backbone import load_backbone

REVIEWS = {
    "loud": (["too loud for me", "whisper quiet", "loud as a train", "not a sound"], [1, 0, 1, 0]),
    "cheap": (["worth every cent", "a waste of money", "a bargain", "far too dear"], [1, 0, 1, 0]),
}


def inputs_of(name: str, tokenizer: object) -> dict[str, torch.Tensor]:
    """Return the model's inputs and labels for a task."""
    texts, labels = REVIEWS[name]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")  # type: ignore[operator]
    return {key: tokens[key] for key in ("input_ids", "attention_mask")} | {"labels": torch.tensor(labels)}


def learn(model: tss.TssModel, name: str, batch: dict[str, torch.Tensor]) -> None:
    """Learn and seal one task."""
    model.tss.add_task(name, tss.Classification(labels=["no", "yes"], features="encoder_mean"))
    model.tss.train_task(name)
    optimizer = model.tss.optimizer(score_lr=1e-2, head_lr=5e-3)
    for _ in range(10):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.tss.seal_task([batch])


def main(folder: Path) -> None:
    """Learn a task and save it; then, as another program would, load it and add a second task."""
    backbone = load_backbone("embedded")
    loud, cheap = (inputs_of(name, backbone.tokenizer) for name in REVIEWS)
    model = tss.attach(backbone.model)
    learn(model, "loud", loud)
    model.tss.save(folder)
    with torch.no_grad():
        before = model.eval()(**loud, task="loud").logits

    later = tss.load(load_backbone("embedded").model, folder)
    learn(later, "cheap", cheap)
    with torch.no_grad():
        assert torch.equal(later.eval()(**loud, task="loud").logits, before)
    later.tss.save(folder)
    print(tss.load(load_backbone("embedded").model, folder).tss)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

"""Learn two tasks, one after the other, with transformers' Trainer: python examples/trainer.py [FOLDER]

Scores need their own learning rate: the handle's optimizer has a parameter group for them. With Trainer's own
optimizer, the default learning rate of 5e-5 for all parameters would flip few gates, which causes a warning, and weight
decay would move scores that earlier tasks rely on, which raises an error.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import transformers

import tss
from tss.data import load_task
from tss.run.backbone import load_backbone

TASKS = ("asc/cameras", "ner/shop")
EXAMPLES = 64


class SealAtEnd(transformers.TrainerCallback):
    """Callback that seals the task after its last step.

    Args:
        data: training data of the task, for the importance pass.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].tss.seal_task(self.data)


def main(folder: str) -> None:
    """Learn both tasks, save them, and check that the fingerprints of both are unchanged."""
    backbone = load_backbone("embedded")
    model = tss.attach(backbone.model, tss.AdapterConfig(bottleneck=16, weight_init="signed_constant"))
    fingerprints = {}
    for name in TASKS:
        task = load_task("generated", name, seed=2021, limits={"train": EXAMPLES})
        lengths = {"source_length": 64, "target_length": 64}
        rows = task.kind.encode_all(task.train, backbone.tokenizer, **lengths)

        def collate(batch: list[Any], kind: Any = task.kind) -> dict[str, Any]:
            return kind.collate(batch, pad_id=backbone.tokenizer.pad_token_id)

        model.tss.add_task(name, task.kind)
        model.tss.train_task(name)
        model.tss.print_trainable_parameters()
        arguments = transformers.TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=16, use_cpu=True, report_to=[], logging_steps=1,
            save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        optimizer = model.tss.optimizer(score_lr=1e-2, head_lr=1e-3)
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=collate,
            optimizers=(optimizer, None),
        )
        trainer.add_callback(SealAtEnd(trainer.get_train_dataloader()))
        trainer.train()
        fingerprints[name] = model.tss.fingerprint(name)
    print(model.tss)
    model.tss.save(folder)
    model.tss.verify()
    assert {name: model.tss.fingerprint(name) for name in TASKS} == fingerprints
    print(f"saved to {folder}: tss.load(backbone, {folder!r}) opens it")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)

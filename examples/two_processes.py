"""Learn a task on two processes with accelerate, gloo: torchrun --nproc-per-node 2 examples/two_processes.py [FOLDER]

Every process seals the task: its importance is averaged over the batches of all processes, so that all keep the same.
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator

import tss
from tss.data import load_task
from tss.run.backbone import load_backbone

TASK, EXAMPLES = "asc/cameras", 64


def main(folder: str | None) -> None:
    """Learn, seal, compare the processes, and save on the first one."""
    accelerator = Accelerator(cpu=True)
    backbone = load_backbone("embedded")
    task = load_task("generated", TASK, seed=2021, limits={"train": EXAMPLES})
    rows = task.kind.encode_all(task.train, backbone.tokenizer, source_length=64, target_length=64)

    def collate(batch: list) -> dict[str, torch.Tensor]:
        return task.kind.collate(batch, pad_id=backbone.tokenizer.pad_token_id)

    model = tss.attach(backbone.model, tss.AdapterConfig(bottleneck=16, weight_init="signed_constant"))
    model.tss.add_task(TASK, task.kind)
    model.tss.train_task(TASK)
    loader = torch.utils.data.DataLoader(rows, batch_size=8, collate_fn=collate)  # type: ignore[arg-type]
    parallel, optimizer, loader = accelerator.prepare(model, model.tss.optimizer(score_lr=1e-2, head_lr=1e-3), loader)
    for batch in loader:
        accelerator.backward(parallel(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    model.tss.seal_task(loader)
    importance = torch.stack([layer.importance.double().sum() for layer in model.tss.layers.values()]).sum()
    seen = accelerator.gather(importance.reshape(1))
    assert (seen == seen[0]).all(), f"processes sealed different importance: {seen.tolist()}"
    if accelerator.is_main_process:
        print(model.tss)
        if folder is not None:
            model.tss.save(folder)
    accelerator.wait_for_everyone()  # no process exits while another is still saving
    # Free DDP before its process group: freed after it, DDP holds the GIL while it waits for gloo's threads to end, and
    # one of those may be waiting for the GIL.
    parallel, optimizer, loader = accelerator.free_memory(parallel, optimizer, loader)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)

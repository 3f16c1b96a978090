"""FSDP on two processes: a sharded backbone serves whole adapters; sharded adapters are refused before they learn."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tss

from .conftest import TOPICS, gradients_of, learn, logits, make_bart, make_batch, run_processes


def learning():
    backbone = make_bart(encoder_layers=1, decoder_layers=1)
    model = tss.attach(backbone, tss.AdapterConfig(bottleneck=4, weight_init="signed_constant")).eval()
    learn(model.tss, "old", TOPICS)
    model.tss.add_task("topics", TOPICS)
    model.tss.train_task("topics")
    return model


def halves(batch, rank):
    return {key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()}


def _process(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model, batch = learning(), make_batch(TOPICS)
    core = model.backbone
    for layer in (*core.get_encoder().layers, *core.get_decoder().layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(core, mesh=mesh)
    old = logits(model, batch, "old")
    model(**halves(batch, rank)).loss.backward()
    for gradient in (p.grad for group in model.tss.trainable_parameters().values() for p in group):
        distributed.all_reduce(gradient)
        gradient /= 2
    gradients = gradients_of(model.tss)
    model.tss.optimizer(score_lr=0.05, head_lr=0.05).step()
    model.tss.seal_task([make_batch(TOPICS, seed=rank)])
    if rank == 0:
        model.tss.save(f"{folder}/save")  # by one process alone: what is sharded is not read
    torch.save((old, gradients, logits(model, batch, "topics")), f"{folder}/{rank}.pt")
    whole = learning()
    fully_shard(whole, mesh=mesh)
    with pytest.raises(tss.StateError, match=r"is sharded over processes, .* with fully_shard\(model\.backbone\)"):
        whole.tss.optimizer(score_lr=0.05, head_lr=0.05)
    whole(**batch).loss.backward()
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    with pytest.raises(tss.StateError, match="is sharded over processes"):
        optimizer.step()
    distributed.destroy_process_group()


def test_a_sharded_backbone(tmp_path):
    run_processes(_process, str(tmp_path))
    model, batch = learning(), make_batch(TOPICS)
    old = logits(model, batch, "old")
    model(**batch).loss.backward()
    gradients = gradients_of(model.tss)
    loaded = tss.load(make_bart(encoder_layers=1, decoder_layers=1), tmp_path / "save")
    for rank in range(2):
        there = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(there[0], old, atol=1e-6)
        for one, other in zip(gradients, there[1], strict=True):
            assert (one - other).abs().max() <= 1e-4 * one.abs().max()
        assert torch.allclose(logits(loaded, batch, "topics"), there[2], atol=1e-6)

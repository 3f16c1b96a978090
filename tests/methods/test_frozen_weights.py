"""SupSup and Piggyback choose among frozen weights: no task moves one, and no task hands anything on."""

from __future__ import annotations

import pytest
import torch

from tests.methods.conftest import KINDS, changed, make_batches, start, train, weights
from tss.adapters import AdapterConfig, attach
from tss.methods import METHODS


@pytest.mark.parametrize("name", ["supsup", "piggyback"])
def test_only_scores_and_heads_move_and_gates_flip(name, tiny_bart):
    method, handle = start(tiny_bart, name)
    before, frozen = weights(handle), handle.frozen_fingerprint()
    for seed in (1, 2):
        method.begin_task(handle, f"asc/{seed}", KINDS["classification"])
        first = handle.packed()
        train(handle, method, make_batches(seed), epochs=3)
        assert any(handle.flipped(first).values())
        method.end_task(handle, f"asc/{seed}", make_batches(seed))
    moved = changed(before, weights(handle))
    assert moved
    assert all(key.endswith(".scores") for key in moved)
    assert handle.frozen_fingerprint() == frozen
    assert all(layer.importance is None for layer in handle.layers.values())


def test_piggyback_starts_with_every_gate_on_and_switches_off_at_the_threshold(tiny_bart):
    method, handle = start(tiny_bart, "piggyback")
    for name in ("asc/first", "asc/second"):
        method.begin_task(handle, name, KINDS["classification"])
        assert set(handle.density().values()) == {1.0}
        layer = next(iter(handle.layers.values()))
        assert layer.scores.eq(1e-2).all()
        with torch.no_grad():
            layer.scores[0, :3] = torch.tensor([5e-3, 5e-3 + 1e-9, 4e-3])
        assert layer.gate()[0, :4].tolist() == [False, True, False, True]
        with torch.no_grad():
            layer.scores.fill_(1e-2)
        train(handle, method, make_batches(1))
        method.end_task(handle, name, make_batches(1))
    assert all(0 < record.density < 1 for record in handle.tasks.values())


def test_piggyback_refuses_a_second_threshold(tiny_bart):
    method = METHODS["piggyback"](METHODS["piggyback"].options_type())
    handle = attach(tiny_bart, AdapterConfig(bottleneck=4, threshold=0.1), method.layer_options()).tss
    with pytest.raises(ValueError, match=r"has its own threshold, 0.005, .* adapters.threshold=0.1"):
        method.begin_task(handle, "asc/first", KINDS["classification"])

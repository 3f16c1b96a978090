"""GatedAdapterLinear in a plain training loop: two tasks share one frozen weight, each with its own gates.

python examples/layer.py
"""

from __future__ import annotations

import torch
from torch import nn

from tss_kernels import GatedAdapterLinear, SoftMaskedAdamW, pack_gates, packed_linear, update_importance_


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (256, 32) and the outputs of a random linear map, (256, 8)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 32, generator=generator)
    return x, x @ torch.randn(32, 8, generator=generator) / 32**0.5


def learn(layer: GatedAdapterLinear, readout: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> float:
    """Train the scores and the readout on one task; return the last loss."""
    optimizer = SoftMaskedAdamW(
        [{"params": [layer.scores], "lr": 1e-2}, {"params": readout.parameters(), "lr": 1e-2}],
        weight_decay=0.0,
        importance={layer.scores: layer.importance},
    )
    loss = torch.zeros(())
    for _ in range(100):
        loss = (readout(torch.relu(layer(x))) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    """Learn two tasks, and check that the outputs of both are as when they were learned."""
    torch.manual_seed(0)
    layer = GatedAdapterLinear(32, 128)
    layer.mask_gradient = False  # the optimizer masks the step instead
    kept = []
    for seed in (1, 2):
        x, y = data(seed)
        readout = nn.Linear(128, 8)
        loss = learn(layer, readout, x, y)
        # The importance of each score to this task; the next task moves important scores less.
        (readout(torch.relu(layer(x))) - y).square().mean().backward()
        assert layer.scores.grad is not None
        total = torch.zeros_like(layer.scores) if layer.importance is None else layer.importance
        layer.importance = update_importance_(total, layer.scores.grad * (layer.scores >= layer.threshold))
        layer.scores.grad = None
        gates = pack_gates(layer.scores.detach(), layer.threshold)  # 1 bit per weight: all that is kept of the scores
        with torch.no_grad():
            answer = readout(torch.relu(packed_linear(x, layer.weight, gates, layer.bias)))
        kept.append((x, readout, gates, answer))
        print(f"task {seed}: loss {loss:.4f}, {gates.numel()} bytes of gates")
    with torch.no_grad():
        for x, readout, gates, answer in kept:
            again = readout(torch.relu(packed_linear(x, layer.weight, gates, layer.bias)))
            assert torch.equal(again, answer)
    print("both tasks answer as when they were learned")


if __name__ == "__main__":
    main()

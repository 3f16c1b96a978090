"""What sits on a site: the adapter, whether it runs, and which rows belong to which task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

ATTRIBUTE = "tss_adapter"


class AdapterSite(nn.Module):
    """Holds one adapter; passes its input through untouched unless active.

    The state lives on the module, not on a thread: backward threads and recomputation under gradient checkpointing see
    the same one.

    Attributes:
        active: whether the adapter runs.
        rows: for a batch of mixed tasks, the name of each row's task; None for one task.
        gates: task name -> gates of `adapter.down` and `adapter.up`, for the tasks in `rows`.
    """

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter
        self.active = False
        self.rows: Sequence[str] | None = None
        self.gates: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, output: Any) -> Any:
        """The site's output with its hidden states (B, ..., H) adapted; other parts of a tuple are passed on."""
        if not self.active:
            return output
        hidden, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        adapted = self.adapter(hidden) if self.rows is None else self._by_rows(hidden)
        return adapted if rest is None else (adapted, *rest)

    def _by_rows(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self.rows is not None
        copies, odd = divmod(hidden.shape[0], len(self.rows))
        if odd:
            raise ValueError(
                f"a batch of {hidden.shape[0]} rows for {len(self.rows)} task names: "
                "give one name per row (beams repeat rows in order)"
            )
        adapted = torch.empty_like(hidden)
        for name in dict.fromkeys(self.rows):
            first = torch.tensor([i for i, row in enumerate(self.rows) if row == name], device=hidden.device)
            index = (first[:, None] * copies + torch.arange(copies, device=hidden.device)).flatten()
            adapted[index] = self._with_gates(name, hidden[index])
        return adapted

    def _with_gates(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        layers = (self.adapter.down, self.adapter.up)
        before = [layer.packed for layer in layers]
        try:
            for layer, packed in zip(layers, self.gates[name], strict=True):
                layer.set_packed(packed)
            return self.adapter(hidden)
        finally:
            for layer, packed in zip(layers, before, strict=True):
                layer.set_packed(packed)


def run_site(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook of a site; it finds its adapter through the module, so that a deep copy finds its own."""
    return getattr(module, ATTRIBUTE)(output)

"""One site's adapter for all tasks, and which of them runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tss.adapters.config import AdapterConfig
from tss.errors import StateError

ATTRIBUTE = "tss_adapter"
Tensors = dict[str, torch.Tensor]


class Rows:
    """A batch whose rows belong to different tasks.

    Args:
        names: the task of each row. A batch of k times as many rows holds k copies of each row beside each other, as
            beams do.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._groups: dict[tuple[int, torch.device], tuple[list[tuple[str, torch.Tensor]], torch.Tensor]] = {}

    def groups(self, count: int, device: torch.device) -> tuple[list[tuple[str, torch.Tensor]], torch.Tensor]:
        """For `count` rows: [(task, its rows)], and where each row is after joining these groups.

        Raises:
            ValueError: `count` is no multiple of the number of names.
        """
        if (count, device) not in self._groups:
            copies, odd = divmod(count, len(self.names))
            if odd:
                raise ValueError(
                    f"a batch of {count} rows for {len(self.names)} task names: give one name per row "
                    "(beams repeat rows in order)"
                )
            owners = [name for name in self.names for _ in range(copies)]
            groups = [
                (task, torch.tensor([i for i, owner in enumerate(owners) if owner == task], device=device))
                for task in dict.fromkeys(self.names)
            ]
            self._groups[count, device] = groups, torch.cat([rows for _, rows in groups]).argsort()
        return self._groups[count, device]


Selection = str | Rows | None


class Bank(nn.Module, ABC):
    """One site's adapter; `adapter.down` and `adapter.up` are its layers.

    What runs is state of this module, not of a thread: backward threads and layers that run again under gradient
    checkpointing see the same.

    Attributes:
        site: full name of the module whose output is adapted.
        width: last dimension of that output.
        selection: the task that runs, the tasks of the rows, or None: the output passes through untouched.
        learning: the task whose tensors are being trained, or None.
        recalled: a checkpointed layer runs again with the selection of its forward pass.
    """

    gated: ClassVar[bool]

    def __init__(self, site: str, width: int, adapter: nn.Module) -> None:
        super().__init__()
        self.site, self.width, self.adapter = site, width, adapter
        self.selection: Selection = None
        self.learning: str | None = None
        self.recalled = False
        self.requires_grad_(False)

    @property
    def layers(self) -> dict[str, Any]:
        """ "<site>.down" and "<site>.up" -> the linear layer."""
        return {f"{self.site}.{part}": getattr(self.adapter, part) for part in ("down", "up")}

    def select(self, selection: Selection) -> None:
        """Run this task, these tasks by row, or none."""
        self.selection = selection
        self.prepare(selection if isinstance(selection, str) else None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (B, ..., width) -> the same shape and dtype, each row through its task's adapter."""
        if hidden.shape[-1] != self.width:
            raise ValueError(
                f"site {self.site} gives {hidden.shape[-1]} features where {self.width} were expected: "
                "choose sites whose output is the hidden state"
            )
        if not isinstance(self.selection, Rows):
            return self.adapter(hidden)
        groups, back = self.selection.groups(hidden.shape[0], hidden.device)
        parts = []
        for task, rows in groups:
            self.prepare(task)
            parts.append(self.adapter(hidden[rows]))
        self.prepare(None)
        return torch.cat(parts)[back]

    def load(self, tensors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
        """Copy stored tensors into `targets`, which name what is expected.

        Raises:
            StateError: one is missing or has another shape.
        """
        load_exactly(targets, tensors, f"adapter at {self.site}")

    @abstractmethod
    def prepare(self, task: str | None) -> None:
        """Make the layers run as this task; None: as the tensors that are trained."""

    @abstractmethod
    def start(self, task: str, *, fresh: bool, masked: bool) -> None:
        """Begin to learn a task.

        Args:
            task: its name.
            fresh: from scores drawn for this task; False: from the tensors as they are.
            masked: the backward pass scales score gradients by (1 - importance).
        """

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """What learning moves, by full name."""

    @abstractmethod
    def seal(self, task: str) -> None:
        """Keep what the task being learned needs to run for ever."""

    @abstractmethod
    def sealed(self, task: str) -> Tensors:
        """What is kept of a sealed task, named "gates.<layer>"."""

    @abstractmethod
    def load_sealed(self, task: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `sealed` gave; raises StateError if it does not fit."""

    @abstractmethod
    def shared(self) -> Tensors:
        """What is handed from task to task."""

    @abstractmethod
    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `shared` gave; raises StateError if it does not fit."""

    @abstractmethod
    def frozen(self) -> Tensors:
        """The adapter's tensors that never change, by full name."""

    @abstractmethod
    def gate_bytes(self) -> int:
        """Bytes kept here for a sealed task."""


BankType = type[Bank]


@torch.no_grad()
def load_exactly(targets: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy stored tensors into targets of the same names and shapes.

    Raises:
        StateError: naming the first that is missing or has another shape; nothing is copied then.
    """
    for name, target in targets.items():
        found = tuple(stored[name].shape) if name in stored else "missing"
        if found != tuple(target.shape):
            raise StateError(
                f"{what}: stored tensor {name} is {found}, expected {tuple(target.shape)}; "
                "use the model and configuration that it was learned with"
            )
    for name, target in targets.items():
        target.copy_(stored[name])


def make_banks(bank_type: BankType, sites: Mapping[str, nn.Module], widths: Mapping[str, int], config: AdapterConfig,
               fallback: nn.Parameter) -> dict[str, Bank]:  # fmt: skip
    """A bank for every site, on the site's device and in its dtype."""
    banks = {}
    for name, site in sites.items():
        # A block's last parameters shape its output: T5 keeps those in float32 where the rest is half precision.
        example = [p for p in site.parameters() if p.is_floating_point()][-1:] or [fallback]
        banks[name] = bank_type(name, widths[name], config, example[0].dtype).to(example[0].device)  # type: ignore[call-arg]
    return banks


def run_adapter(site: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook of a site. It finds its bank through the module, so that a deep copy of the model finds its own."""
    bank: Bank = getattr(site, ATTRIBUTE)
    if bank.selection is None:
        if bank.learning is not None and not bank.recalled and _in_backward():
            raise StateError(
                f"a checkpointed layer runs again in the backward pass with no active task while {bank.learning!r} is "
                "being learned: call backward() inside `with model.tss.using(...)`, or checkpoint with "
                "model.gradient_checkpointing_enable(), which remembers the task"
            )
        return None
    return (bank(output[0]), *output[1:]) if isinstance(output, tuple) else bank(output)


def _in_backward() -> bool:
    # The autograd engine's number for the backward pass that is running on this thread, -1 outside.
    return torch._C._current_graph_task_id() != -1

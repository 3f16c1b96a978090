"""A handle on disk: adapters and importance once, one file per sealed task, never the backbone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.record import State
from tss.adapters.storage import read_tensors, write_tensors
from tss.errors import StateError

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle

ADAPTERS = "adapters.safetensors"


def save(handle: TssHandle, directory: Path) -> None:
    """Write `adapters.safetensors` and `tasks/NN.safetensors`; each file is replaced atomically, the index last."""
    sealed = [record for record in handle.tasks.values() if record.state is State.SEALED]
    files = {}
    for i, record in enumerate(sealed):
        files[record.name] = f"tasks/{i:02d}.safetensors"
        write_tensors(directory / files[record.name], *handle.task_state(record.name))
    frozen = {f"frozen.{name}": tensor for name, tensor in handle.bank.frozen().items()}
    shared = {f"shared.{name}": tensor for name, tensor in handle.shared_state().items()}
    metadata = {"config": asdict(handle.config), "options": asdict(handle.options), "tasks": files}
    write_tensors(directory / ADAPTERS, frozen | shared, metadata)


def load(model: Any, directory: str | Path) -> TssHandle:
    """Read what `handle.save` wrote onto a model of the same architecture, attaching to it if need be.

    Raises:
        StateError: a file that is missing, damaged, or of another model or configuration.
    """
    from tss.adapters.attach import attach
    from tss.adapters.handle import TssHandle

    directory = Path(directory)
    tensors, metadata = read_tensors(directory / ADAPTERS)
    config, options = AdapterConfig(**metadata["config"]), TssOptions(**metadata["options"])
    handle = getattr(model, "tss", None)
    if not isinstance(handle, TssHandle):
        handle = attach(model, config, options)
    elif handle.config != config:
        raise StateError(
            f"{directory} was saved with {json.dumps(asdict(config))}, but the model is attached with "
            f"{json.dumps(asdict(handle.config))}; detach it first"
        )
    _load_frozen(handle, tensors, directory)
    shared = {k.removeprefix("shared."): v for k, v in tensors.items() if k.startswith("shared.")}
    handle.load_shared_state(shared)
    for name, file in metadata["tasks"].items():
        handle.load_task_state(name, *read_tensors(directory / file))
    return handle


@torch.no_grad()
def _load_frozen(handle: TssHandle, tensors: dict[str, torch.Tensor], directory: Path) -> None:
    own = handle.bank.frozen()
    stored = {k.removeprefix("frozen."): v for k, v in tensors.items() if k.startswith("frozen.")}
    for name in sorted({*own, *stored}):
        here = tuple(own[name].shape) if name in own else None
        there = tuple(stored[name].shape) if name in stored else None
        if here != there:
            raise StateError(
                f"{directory} is of another model: {name} is {there} there and {here} here; load it onto the model "
                "that it was saved from"
            )
    for name, tensor in own.items():
        tensor.copy_(stored[name])

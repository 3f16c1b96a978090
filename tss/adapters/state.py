"""The tensors of a handle's tasks: what is stored and loaded, and the hashes that tell whether anything changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tss.adapters.bank import ATTRIBUTE, Tensors, load_exactly
from tss.adapters.record import State
from tss.adapters.storage import digest
from tss.errors import StateError
from tss.tasks.base import kind_from_dict
from tss_kernels import unpack_gates

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle
    from tss.adapters.lifecycle import Lifecycle

HEADS = "tss_heads"  # the model's attribute that holds them


def head_tensors(handle: Lifecycle, name: str) -> Tensors:
    """A task's head, named "head.<parameter>"; empty without one. The tensors are the head's own."""
    head = handle.heads.of(name)
    return {} if head is None else {f"head.{key}": tensor.detach() for key, tensor in head.state_dict().items()}


def gate_tensors(handle: Lifecycle, name: str) -> Tensors:
    """A sealed task's packed gates, named "gates.<layer>"."""
    return {key: packed for bank in handle.banks.values() for key, packed in bank.sealed(name).items()}


def sealed_tensors(handle: Lifecycle, name: str) -> Tensors:
    """All that a sealed task's answers depend on, besides what is frozen: gates and head."""
    return gate_tensors(handle, name) | head_tensors(handle, name)


def density(handle: Lifecycle, name: str) -> float | None:
    """The share of a sealed task's gates that are on; None without gates."""
    packed, layers = gate_tensors(handle, name), {k: v for b in handle.banks.values() for k, v in b.layers.items()}
    ones = sum(int(unpack_gates(g, layers[k.removeprefix("gates.")].in_features).sum()) for k, g in packed.items())
    return ones / sum(layer.weight.numel() for layer in layers.values()) if packed else None


def learning_state(handle: TssHandle) -> Tensors:
    """Trained tensors of the adapters, and the head, of the task that is being learned."""
    if handle.trainable is None:
        raise StateError("no task is being learned: call train_task(name) first")
    return trained_tensors(handle) | head_tensors(handle, handle.trainable)


def trained_tensors(handle: TssHandle) -> Tensors:
    """What learning moves in the adapters."""
    return {key: p.detach() for bank in handle.banks.values() for key, p in bank.trained().items()}


def task_state(handle: TssHandle, name: str) -> tuple[Tensors, dict[str, Any]]:
    """A task's own tensors, and what else there is to know of it."""
    record = handle.record(name)
    tensors = (sealed_tensors if record.state is State.SEALED else head_tensors)(handle, name)
    metadata = {
        "name": name,
        "kind": record.kind.to_dict(),
        "state": str(record.state),
        "density": record.density,
        "bytes": handle.bytes_per_task(name),
    }
    return tensors, metadata


def load_task_state(
    handle: TssHandle, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Add a task from what `task_state` gave; a failure adds nothing."""
    try:
        kind, state = kind_from_dict(metadata["kind"]), State(metadata["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"task {name!r}: its metadata does not describe a task ({error!r})") from error
    if state is State.LEARNING and handle.trainable is not None:
        raise StateError(f"task {name!r} is being learned, but so is {handle.trainable!r}; seal that one first")
    if state is State.SEALED:
        for bank in handle.banks.values():
            bank.load_sealed(name, tensors)
    head = handle.make_head(name, kind)
    if head is not None:
        targets = {f"head.{key}": tensor for key, tensor in head.state_dict().items()}
        load_exactly(targets, tensors, f"task {name!r}")
    handle.admit(name, kind, head)
    if state is State.LEARNING:
        handle.begin(name, fresh=False)
    if state is State.SEALED:
        handle.close(name)


def frozen_fingerprint(handle: TssHandle) -> str:
    """sha256 over what never changes: the backbone's parameters and buffers, and the adapters' frozen tensors."""
    own = {f"{site}.{ATTRIBUTE}." for site in handle.banks} | {f"{HEADS}."}
    named = {**dict(handle.model.named_parameters()), **dict(handle.model.named_buffers())}
    backbone = {f"backbone.{n}": tensor for n, tensor in named.items() if not n.startswith(tuple(own))}
    adapters = {f"adapter.{n}": t for bank in handle.banks.values() for n, t in bank.frozen().items()}
    return digest(backbone | adapters)

"""Hooks of a `TssModel`'s `load_state_dict` for checkpoints of other tools: what these contain and what they lack."""

from __future__ import annotations

from typing import Any

from tss.adapters.learning import tasks_in
from tss.errors import StateError

BACKBONE, ADAPTERS, LEARNING = "backbone.", "adapters.", "learning."
"""Prefixes of the keys in a `TssModel`'s state dict, by part of the model."""


def check_state(
    model: Any, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
    unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """Reject a checkpoint of another task before `load_state_dict`: training would resume from the wrong scores."""
    start = prefix + LEARNING
    stored = tasks_in(key.removeprefix(start) for key in state if key.startswith(start))
    here = set(model.tss.store.learners)
    adapters = {key for key in state if key.startswith(prefix + ADAPTERS)}
    if (stored or adapters) and stored != here:
        there = ", ".join(map(repr, sorted(stored))) or "no task"
        now = ", ".join(map(repr, here)) or "no task"
        raise StateError(
            f"this checkpoint was made while {there} was being trained, and now {now} is: call add_task and train_task "
            "as before it was made, or open the folder with tss.load, which also loads sealed tasks"
        )
    for name, buffer in model.adapters.named_buffers():
        if not adapters:
            state[f"{prefix}{ADAPTERS}{name}"] = buffer  # keep importance if a checkpoint has only the backbone


def forgive_missing_backbone(model: Any, result: Any) -> None:
    """Report no missing backbone keys for a checkpoint that has none of them, as `save_pretrained` writes it."""
    theirs = [key for key in result.missing_keys if BACKBONE in key]
    if len(theirs) == len(model.backbone.state_dict()):
        result.missing_keys[:] = [key for key in result.missing_keys if BACKBONE not in key]

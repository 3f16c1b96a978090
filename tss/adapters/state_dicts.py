"""Hooks of a `TssModel`'s `load_state_dict` for checkpoints of other tools: what these contain and what they lack."""

from __future__ import annotations

from typing import Any

from tss.adapters.learning import module_name, read_about, tasks_in
from tss.errors import StateError

BACKBONE, ADAPTERS, LEARNING = "backbone.", "adapters.", "learning."
"""Prefixes of the keys in a `TssModel`'s state dict, by part of the model."""
DECODING = ("metric", "num_beams", "min_new_tokens", "max_new_tokens", "no_repeat_ngram_size")
"""Settings of kinds that do not affect training."""


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
    for task in stored & here:
        key = f"{start}{module_name(task)}.about"
        if key in state:
            _check_about(model, task, read_about(state[key]))
            state[key] = model.learning.of(task).about  # it may be longer or shorter
    for name, buffer in model.adapters.named_buffers():
        if not adapters:
            state[f"{prefix}{ADAPTERS}{name}"] = buffer  # keep importance if a checkpoint has only the backbone


def _check_about(model: Any, task: str, then: dict[str, Any]) -> None:
    """Raise StateError if a checkpoint's task had other settings, or was trained beside sealed tasks that are not here.

    Args:
        model: the `TssModel`.
        task: the task being trained.
        then: what the checkpoint says about it.
    """
    now = model.learning.of(task).content
    for part, of in (("kind", "the task"), ("adapters", "the adapters"), ("options", "training")):
        keys = [key for key in {**then[part], **now[part]} if key not in DECODING]
        if key := next((key for key in keys if then[part].get(key) != now[part].get(key)), None):
            raise StateError(
                f"this checkpoint of task {task!r} was made with other settings of {of}: {key} {then[part].get(key)!r} "
                f"there, {now[part].get(key)!r} here; use the same, or open its folder with tss.load"
            )
    here = {record.hash: name for name, record in model.tss.tasks.items()}
    if gone := [name for sha, name in then["sealed"].items() if sha not in here]:
        other = sorted(set(gone) & set(here.values()))
        raise StateError(
            f"this checkpoint was made beside the sealed {'tasks' if len(gone) > 1 else 'task'} "
            f"{', '.join(map(repr, gone))}, which this model lacks"
            + (f" ({', '.join(map(repr, other))} has other gates here)" if other else "")
            + " and later checkpoints would lose: open its folder with tss.load(backbone, folder) and continue with "
            "that model"
        )


def forgive_missing_backbone(model: Any, result: Any) -> None:
    """Report no missing backbone keys for a checkpoint that has none of them, as `save_pretrained` writes it."""
    theirs = [key for key in result.missing_keys if BACKBONE in key]
    if len(theirs) == len(model.backbone.state_dict()):
        result.missing_keys[:] = [key for key in result.missing_keys if BACKBONE not in key]

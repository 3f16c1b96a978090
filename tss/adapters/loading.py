"""`tss.load`: load tasks from a folder, a run or a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tss.adapters import hub, saving
from tss.adapters.attaching import attach
from tss.adapters.config import AdapterConfig, options_from
from tss.adapters.model import TssModel
from tss.errors import StateError


def load(
    model: Any, source: str | Path, *, tasks: Sequence[str] | None = None, cache_bytes: int | None = None
) -> TssModel:
    """Load tasks that `model.tss.save` or a run has written, for a backbone with the same weights.

    Loads all tasks, sealed or not, and the scores and importance that the next task starts from. If the model has tasks
    already, the new ones are added; it keeps its scores, and the maximum of both importances.

    Args:
        model: the backbone, or a `TssModel` that wraps it.
        source: a folder, a run folder, or the name of a repository on the hub.
        tasks: names of the tasks to load; None for all.
        cache_bytes: keep sealed tasks on disk, so that folders with thousands of tasks open quickly. Each is read and
            checked when it is first used; the least recently used are dropped when all in memory exceed this size. The
            folder must remain available. Replaces the limit of earlier calls on this model.

    Raises:
        StateError: a file is missing, damaged or from another save, the backbone or settings differ, or a name is
            taken. The model is unchanged.
        TypeError, ValueError: `tasks` is a single name, or `cache_bytes` is not a number of bytes.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks must be a collection of task names, got one string: give [{tasks!r}]")
    if cache_bytes is not None and (isinstance(cache_bytes, bool) or not isinstance(cache_bytes, int)):
        raise TypeError(f"cache_bytes must be a whole number of bytes, got {cache_bytes!r}")
    if cache_bytes is not None and cache_bytes < 0:
        raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
    directory = _folder(source)
    with torch.inference_mode(False):  # the caller's mode would make tensors that cannot be trained later
        saved = saving.read(directory, names=tasks, keep=cache_bytes is not None)
        loaded = restore(model, saved, str(directory))
    if cache_bytes is not None:
        loaded.tss.store.cache.limit = cache_bytes
    return loaded


def restore(model: Any, saved: saving.SavedTasks, origin: str) -> TssModel:
    """Load tasks that have been read already; `origin` is their folder, for messages."""
    try:
        config, options = AdapterConfig(**saved.config), options_from(saved.options)
    except (TypeError, ValueError) as error:
        raise StateError(f"{origin}: its settings are not valid for tss ({error}); save it again") from error
    if not isinstance(model, TssModel):
        model = attach(model, config, options)
        try:
            _restore(model, saved, origin)
        except Exception:
            model.tss.detach()
            raise
        return model
    if (model.tss.config, model.tss.options) != (config, options):
        raise StateError(
            f"{origin}: saved with {config}, {options}, but this model has {model.tss.config}, {model.tss.options}; "
            "load it on a separate backbone"
        )
    _restore(model, saved, origin)
    return model


def _restore(model: TssModel, saved: saving.SavedTasks, origin: str) -> None:
    try:
        model.tss.restore(saved, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{origin}: its contents are inconsistent ({error!r}); save it again") from error


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.exists() or isinstance(source, Path) or source.count("/") > 1 or source.startswith((".", "/", "~")):
        return path.expanduser()
    return hub.download(source)

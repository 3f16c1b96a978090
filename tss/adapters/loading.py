"""`tss.load`: a model around a backbone, with the tasks of a folder, a run or a repository of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tss.adapters import hub, saving
from tss.adapters.attaching import attach
from tss.adapters.config import AdapterConfig, options_from
from tss.adapters.model import TssModel
from tss.errors import StateError


def load(
    model: Any, source: str | Path, *, tasks: Sequence[str] | None = None, cache_bytes: int | None = None
) -> TssModel:
    """Put what `model.tss.save(directory)` or a run wrote around a model of the same weights.

    Tasks come back as they were, sealed or not, with the scores and the importance that the next one starts from. Into
    a model that has tasks the others are added: it keeps its scores, and of importance the larger.

    Args:
        model: the backbone, or a `TssModel` around it.
        source: a folder, a run folder, or the name of a repository on the hub.
        tasks: names of some of its tasks; None: all.
        cache_bytes: leave sealed tasks where they are. Each is read and checked when it is first asked for; of those
            in memory the least recently used leave when they exceed so many bytes, and are read again when asked for.
            So a folder of a thousand tasks opens at once. It has to stay; other folders' limits are replaced by this.

    Raises:
        StateError: a file is missing, damaged or of another save; another backbone; other settings, or names that are
            taken. The model is then as it was.
        TypeError, ValueError: `tasks` is one name, or `cache_bytes` no number of bytes.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks takes names of tasks, got one string: give [{tasks!r}]")
    if cache_bytes is not None and not isinstance(cache_bytes, int):
        raise TypeError(f"cache_bytes must be a whole number of bytes, got {cache_bytes!r}")
    if cache_bytes is not None and cache_bytes < 0:
        raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
    directory = _folder(source)
    saved = saving.read(directory, names=tasks, keep=cache_bytes is not None)
    loaded = restore(model, saved, str(directory))
    if cache_bytes is not None:
        loaded.tss.store.cache.limit = cache_bytes
    return loaded


def restore(model: Any, saved: saving.SavedTasks, origin: str) -> TssModel:
    """`load` of what was read already; `origin` names its folder in messages."""
    try:
        config, options = AdapterConfig(**saved.config), options_from(saved.options)
    except (TypeError, ValueError) as error:
        raise StateError(f"{origin}: its settings are not those of tss ({error}); save it again") from error
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
            "load it around a backbone of its own"
        )
    _restore(model, saved, origin)
    return model


def _restore(model: TssModel, saved: saving.SavedTasks, origin: str) -> None:
    try:
        model.tss.restore(saved, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{origin}: what it holds does not fit together ({error!r}); save it again") from error


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.exists() or isinstance(source, Path) or source.count("/") > 1 or source.startswith((".", "/", "~")):
        return path.expanduser()
    return hub.download(source)

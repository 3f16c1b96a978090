"""`tss.load`: a model around a backbone, with the tasks of a folder, a run or a repository of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tss.adapters import hub, saving
from tss.adapters.config import AdapterConfig, options_from
from tss.adapters.model import TssModel, attach
from tss.errors import StateError


def load(model: Any, source: str | Path) -> TssModel:
    """Put what `model.tss.save(directory)` or a run wrote around a model of the same weights.

    Tasks come back as they were, sealed or not, with the scores and the importance that the next one starts from. Into
    a model that has tasks the others are added: it keeps its scores, and of importance the larger.

    Args:
        model: the backbone, or a `TssModel` around it.
        source: a folder, a run folder, or the name of a repository on the hub.

    Raises:
        StateError: a file is missing, damaged or of another save; another backbone; other settings, or names that are
            taken. The model is then as it was.
    """
    directory = _folder(source)
    saved = saving.read(directory)
    config, options = AdapterConfig(**saved.config), options_from(saved.options)
    if not isinstance(model, TssModel):
        model = attach(model, config, options)
        try:
            model.tss.restore(saved, str(directory))
        except Exception:
            model.tss.detach()
            raise
        return model
    if (model.tss.config, model.tss.options) != (config, options):
        raise StateError(
            f"{directory}: saved with {config}, {options}, but this model has {model.tss.config}, {model.tss.options}; "
            "load it around a backbone of its own"
        )
    model.tss.restore(saved, str(directory))
    return model


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.exists() or isinstance(source, Path) or source.count("/") > 1 or source.startswith((".", "/", "~")):
        return path.expanduser()
    return hub.download(source)

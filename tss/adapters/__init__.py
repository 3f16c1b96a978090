"""Adapters and tasks on a frozen model: `attach`, `load`, the model around the backbone and its handle `model.tss`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tss.adapters.attaching import attach
    from tss.adapters.config import AdapterConfig, PlainOptions, TssOptions
    from tss.adapters.handle import TssHandle
    from tss.adapters.loading import load
    from tss.adapters.model import TssModel
    from tss.adapters.task_store import TaskRecord

__all__ = ["AdapterConfig", "PlainOptions", "TaskRecord", "TssHandle", "TssModel", "TssOptions", "attach", "load"]

# Modules are imported on first use, so that settings can be validated without importing torch.
_MODULES = {
    "AdapterConfig": "config",
    "PlainOptions": "config",
    "TaskRecord": "task_store",
    "TssHandle": "handle",
    "TssModel": "model",
    "TssOptions": "config",
    "attach": "attaching",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

"""Where adapters go and how: presets, attach and detach, the handle `model.tss`, the life of a task, files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tss.adapters.attaching import attach
    from tss.adapters.config import AdapterConfig, TssOptions
    from tss.adapters.handle import TssHandle
    from tss.adapters.persist import load
    from tss.adapters.record import TaskRecord

__all__ = ["AdapterConfig", "TaskRecord", "TssHandle", "TssOptions", "attach", "load"]

# A configuration can be checked without torch: what needs torch is loaded when first used.
_MODULES = {
    "AdapterConfig": "config",
    "TaskRecord": "record",
    "TssHandle": "handle",
    "TssOptions": "config",
    "attach": "attaching",
    "load": "persist",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

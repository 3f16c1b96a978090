"""Continual learning without forgetting on one frozen language model; names are loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tss.adapters import AdapterConfig, TssHandle, TssModel, TssOptions, attach, load
    from tss.errors import ConfigError, DataError, ForgettingError, StateError, TssError
    from tss.tasks import Classification, Extraction, Generation

__version__ = "0.1.0"

# Importing torch takes seconds and the command line must start at once: a name's module is imported on first use.
_NAMES = {
    "tss.adapters": ("AdapterConfig", "TssHandle", "TssModel", "TssOptions", "attach", "load"),
    "tss.errors": ("ConfigError", "DataError", "ForgettingError", "StateError", "TssError"),
    "tss.tasks": ("Classification", "Extraction", "Generation"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "AdapterConfig",
    "Classification",
    "ConfigError",
    "DataError",
    "Extraction",
    "ForgettingError",
    "Generation",
    "StateError",
    "TssError",
    "TssHandle",
    "TssModel",
    "TssOptions",
    "attach",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tss' has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("tss", "tss_kernels"):
            raise
        raise ImportError(
            f"tss.{name} needs the package {error.name}, which is not installed: pip install 'tss[train]', or "
            "pip install -e '.[train]' in a checkout"
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

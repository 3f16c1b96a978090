"""Where adapters go and how: presets, attach and detach, the handle `model.tss`, the life of a task, files."""

from tss.adapters.attach import attach
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.handle import TssHandle
from tss.adapters.persist import load
from tss.adapters.record import State, TaskRecord

__all__ = ["AdapterConfig", "State", "TaskRecord", "TssHandle", "TssOptions", "attach", "load"]

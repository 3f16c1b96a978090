"""Kinds of tasks: one file per kind, and the table that maps the name of a kind to its class."""

from tss.tasks.base import TaskKind, kind_from_dict
from tss.tasks.classification import Classification
from tss.tasks.extraction import Extraction
from tss.tasks.generation import Generation

KINDS: dict[str, type[TaskKind]] = {kind.kind: kind for kind in (Classification, Extraction, Generation)}

__all__ = ["KINDS", "Classification", "Extraction", "Generation", "TaskKind", "kind_from_dict"]

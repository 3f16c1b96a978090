"""NCL, naive continual learning: one set of plain adapters trained on task after task; nothing protects old tasks."""

from __future__ import annotations

from tss.methods.base import Method


class Ncl(Method):
    """The same adapter shapes and a head for each task, but the adapters' weights are shared and trained further."""

    name = "ncl"
    gated = False
    never_forgets = False

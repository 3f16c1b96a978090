"""ONE: every task trains a plain adapter and a head of its own; nothing is shared, so nothing is forgotten."""

from __future__ import annotations

from tss.adapters.config import PlainOptions
from tss.methods.base import Method


class One(Method):
    """Each task alone: the baseline for methods with transfer between tasks, at the price of one adapter per task.

    A task is learned the same in any sequence: its adapter and head start from random values that depend on its name
    alone.
    """

    name = "one"
    gated = False
    never_forgets = True

    def layer_options(self) -> PlainOptions:
        return PlainOptions(trained="own")

"""FULL: the whole backbone is trained on task after task; nothing protects old tasks."""

from __future__ import annotations

from tss.adapters.config import PlainOptions
from tss.methods.base import Method


class Full(Method):
    """Full fine-tuning in sequence, the worst case of forgetting: every parameter is trained, each task has a head.

    The learning rate of the backbone's parameters is `adapter_lr`, which must be far smaller here than for adapters
    (1e-5 to 5e-5 for pretrained models). There are no adapters, and the backbone must be in float32.
    """

    name = "full"
    gated = False
    never_forgets = False

    def layer_options(self) -> PlainOptions:
        return PlainOptions(trained="backbone")

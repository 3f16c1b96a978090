"""x + up(activation(down(x))) with both maps gated; see README.md."""

from tss_kernels.gated_adapter.api import ACTIVATIONS, gated_adapter

__all__ = ["ACTIVATIONS", "gated_adapter"]

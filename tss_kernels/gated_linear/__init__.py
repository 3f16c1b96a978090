"""y = x (W * 1[s >= threshold])ᵀ + b, with a straight-through gradient for the scores; see README.md."""

from tss_kernels.gated_linear.api import gated_linear

__all__ = ["gated_linear"]

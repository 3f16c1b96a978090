"""Importance of a task's gates: normalisation and accumulation over tasks; see README.md."""

from tss_kernels.importance.api import accumulate_importance_, normalize_importance

__all__ = ["accumulate_importance_", "normalize_importance"]

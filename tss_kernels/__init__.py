"""Kernels for gated adapters: linear maps whose frozen weights are switched on and off by trained scores.

Importing this needs no GPU, no Triton and no compiler; operations find their backend when they are called.
"""

from tss_kernels.adamw.api import soft_masked_adamw_
from tss_kernels.adamw.optimizer import SoftMaskedAdamW
from tss_kernels.backends.dispatch import BackendUnavailable, use_backend
from tss_kernels.explain import Explanation, explain
from tss_kernels.gated_adapter.api import gated_adapter, packed_adapter
from tss_kernels.gated_linear.api import gated_linear, packed_linear
from tss_kernels.gates.api import pack_gates, unpack_gates
from tss_kernels.importance.api import accumulate_importance_, normalize_importance, update_importance_
from tss_kernels.modules import GatedAdapter, GatedAdapterLinear
from tss_kernels.multi_task.api import multi_task_adapter, multi_task_linear

__all__ = [
    "BackendUnavailable",
    "Explanation",
    "GatedAdapter",
    "GatedAdapterLinear",
    "SoftMaskedAdamW",
    "accumulate_importance_",
    "explain",
    "gated_adapter",
    "gated_linear",
    "multi_task_adapter",
    "multi_task_linear",
    "normalize_importance",
    "pack_gates",
    "packed_adapter",
    "packed_linear",
    "soft_masked_adamw_",
    "unpack_gates",
    "update_importance_",
    "use_backend",
]

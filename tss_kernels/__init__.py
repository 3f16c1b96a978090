"""Gated-adapter kernels for PyTorch: threshold, mask and multiply in one pass, and the soft-masked update.

Importing this package needs no GPU, no Triton and no compiled extension, and queries no device.
"""

from tss_kernels.adamw import SoftMaskedAdamW, soft_masked_adamw_
from tss_kernels.dispatch import BackendUnavailable, use_backend
from tss_kernels.explain import explain
from tss_kernels.gated_adapter import gated_adapter
from tss_kernels.gated_linear import gated_linear
from tss_kernels.gates import pack_gates, packed_linear, unpack_gates
from tss_kernels.importance import accumulate_importance_, normalize_importance
from tss_kernels.modules import GatedAdapter, GatedAdapterLinear

__all__ = [
    "BackendUnavailable",
    "GatedAdapter",
    "GatedAdapterLinear",
    "SoftMaskedAdamW",
    "accumulate_importance_",
    "explain",
    "gated_adapter",
    "gated_linear",
    "normalize_importance",
    "pack_gates",
    "packed_linear",
    "soft_masked_adamw_",
    "unpack_gates",
    "use_backend",
]

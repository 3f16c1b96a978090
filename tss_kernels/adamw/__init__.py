"""AdamW whose step is softly masked by importance, over lists of tensors; see README.md."""

from tss_kernels.adamw.api import soft_masked_adamw_
from tss_kernels.adamw.optimizer import SoftMaskedAdamW

__all__ = ["SoftMaskedAdamW", "soft_masked_adamw_"]

"""Test tools for operations, of this package or others: `check_op`, the error bound, poisoned outputs, layouts."""

from tss_kernels.testing.check_op import CHECKS, CheckFailed, check_op
from tss_kernels.testing.exactness import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

__all__ = ["CHECKS", "CheckFailed", "assert_as_exact_as_pytorch", "check_op", "in_layout", "poisoned_outputs"]

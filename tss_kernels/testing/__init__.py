"""For tests of operations, these or anybody's: the error bound, poisoned outputs, layouts, and `check_op` with all of
it. `python -m tss_kernels.testing.resources` compiles the Triton kernels without a GPU and says what they take."""

from tss_kernels.testing.battery import CHECKS, CheckFailed, check_op
from tss_kernels.testing.exactness import assert_as_exact_as_pytorch, in_layout, poisoned_outputs

__all__ = ["CHECKS", "CheckFailed", "assert_as_exact_as_pytorch", "check_op", "in_layout", "poisoned_outputs"]

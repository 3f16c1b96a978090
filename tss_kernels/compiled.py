"""What both compiled backends share: element types by csrc's numbers, and addresses. Loads neither module."""

from __future__ import annotations

import torch

# As csrc/common/dtype.h numbers them.
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor's elements start; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()

"""The compiled module of csrc/cpu; csrc/cpu/kernels.h documents each function.

Tensors are passed as addresses of contiguous memory, 0 for none; kinds as in `tss_kernels.tensors.DTYPE_CODES`.
Arguments are not checked.
"""

def pack(scores: int, kind: int, threshold: float, packed: int, rows: int, columns: int, threads: int) -> None: ...
def unpack(packed: int, gate: int, rows: int, columns: int, threads: int) -> None: ...
def mask_by_scores(
    weight: int, masked: int, width: int, scores: int, kind: int, threshold: float, packed: int,
    rows: int, columns: int, threads: int,
) -> None: ...  # fmt: skip
def mask_by_bits(weight: int, masked: int, width: int, packed: int, rows: int, columns: int, threads: int) -> None: ...
def scores_grad(
    product: int, product_kind: int, weight: int, weight_kind: int, importance: int, importance_kind: int,
    grad: int, count: int, threads: int,
) -> None: ...  # fmt: skip
def adamw(
    table: int, count: int, decay: float, one_minus_beta1: float, beta2: float, one_minus_beta2: float,
    step_size: float, root_correction: float, eps: float, update_site: bool, decays: bool, threads: int,
) -> None: ...  # fmt: skip
def importance(
    raw: int, raw_kind: int, target: int, target_kind: int, update: bool, groups: int, size: int, threads: int
) -> None: ...
def accumulate(total: int, other: int, kind: int, count: int, threads: int) -> None: ...
def multi_task_product(
    x: int, x_stride: int, weight: int, kind: int, bank: int, task_stride: int, tasks: int, task_ids: int,
    entries: int, length: int, bias: int, y: int, out_features: int, in_features: int, backward: bool, threads: int,
) -> int: ...  # fmt: skip
def activate(start: int, to: int, kind: int, activation: int, count: int, threads: int) -> None: ...
def use_team(team: int) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...

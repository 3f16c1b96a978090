"""What a step of soft-masked AdamW emits beside its update: the next gates, the number of flips, its writes' counts."""

from __future__ import annotations

import pytest
import torch

import tss_kernels
from tss_kernels import SoftMaskedAdamW
from tss_kernels.testing import in_layout

HYPER = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
# Rows of whole 32-bit words over several blocks, of whole bytes, within a byte, within a byte over several blocks.
MATRICES = [(40, 64), (3, 8), (33, 31), (9, 257), (0, 5), (5, 0), (1, 1)]


def matrices(device, seed: int = 0) -> dict[str, list]:
    """Arguments of a step on MATRICES and one vector, whose gates nobody asks for; moments as after some steps."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [*MATRICES, (70,)]
    values = {
        name: [make(shape, generator=generator).to(device) for shape in shapes]
        for name, make in [(name, torch.randn) for name in ("params", "grads", "exp_avgs")]
        + [(name, torch.rand) for name in ("exp_avg_sqs", "importances")]
    }
    values["importances"][1] = None
    return values


def asked(device) -> tuple[list, list[float]]:
    """Memory for the gates, full of ones, and a threshold for each parameter."""
    packed = [torch.full((rows, (columns + 7) // 8), 255, dtype=torch.uint8) for rows, columns in MATRICES]
    return [*(bits.to(device) for bits in packed), None], [index / 16 for index in range(len(packed) + 1)]


@pytest.mark.parametrize("site", ["update", "gradient"])
def test_emits_the_next_gates_and_counts_flips(backend, device, site):
    backend.runs("soft_masked_adamw_", torch.float32)
    values, plain = matrices(device), matrices(device)
    before = [param.clone() for param in values["params"]]
    packed, thresholds = asked(device)
    flips = torch.arange(len(before), device=device)
    options = {"step": 3, **HYPER, "lr": 0.3, "weight_decay": 0.1, "site": site}
    with tss_kernels.use_backend(backend):
        tss_kernels.soft_masked_adamw_(*values.values(), **options, packed=packed, thresholds=thresholds, flips=flips)
        tss_kernels.soft_masked_adamw_(*plain.values(), **options)
    for index, (old, new, bits, threshold) in enumerate(zip(before, values["params"], packed, thresholds, strict=True)):
        changed = 0
        if bits is not None:
            assert torch.equal(bits, tss_kernels.pack_gates(new, threshold)), index
            changed = ((old >= threshold) != (new >= threshold)).sum()
            assert changed > 0 or new.numel() < 9
        assert flips[index] == index + changed, index
    for name in ("params", "exp_avgs", "exp_avg_sqs"):  # the step itself is the same without gates
        assert all(torch.equal(one, two) for one, two in zip(values[name], plain[name], strict=True)), name


def still(device, rows: list[list[float]]) -> list[list[torch.Tensor]]:
    """Arguments of a step that changes nothing in these parameters."""
    params = torch.tensor(rows, device=device)
    return [[params], *([torch.zeros_like(params)] for _ in range(3)), [torch.ones_like(params)]]


def test_edge_scores_of_emitted_gates(backend, device):
    """At the threshold a gate is on, also for -0 at 0; NaN is off; padding is 0 also where 0 would be on."""
    backend.runs("soft_masked_adamw_", torch.float32)
    edges = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), -1e-45, 1e-45, 0.1, 0.0, -1.0]
    results = []
    for threshold in (0.0, 0.1, -1e30, float("inf"), float("nan")):
        values, packed = still(device, [edges]), torch.full((1, 2), 255, dtype=torch.uint8, device=device)
        flips = torch.zeros(1, dtype=torch.int64, device=device)
        options = {"step": 1, **HYPER, "packed": [packed], "thresholds": threshold, "flips": flips}
        with tss_kernels.use_backend(backend):
            tss_kernels.soft_masked_adamw_(*values, **options)
        assert torch.equal(packed, tss_kernels.pack_gates(values[0][0], threshold))
        assert flips.item() == 0
        results.append(packed.tolist()[0])
    assert results[0] == [0b11001011, 0b1]
    assert results[3:] == [[0b1000, 0], [0, 0]]


def test_a_gate_lost_to_nan_is_a_flip(backend, device):
    backend.runs("soft_masked_adamw_", torch.float32)
    values = still(device, [[1.0, 1.0, -1.0, -1.0]])
    values[1][0][0, 1:3] = float("nan")
    packed, flips = torch.zeros(1, 1, dtype=torch.uint8, device=device), torch.zeros(1, dtype=torch.int64).to(device)
    with tss_kernels.use_backend(backend):
        tss_kernels.soft_masked_adamw_(*values, step=1, **HYPER, packed=[packed], flips=flips)
    assert packed.tolist() == [[1]]
    assert flips.tolist() == [1]


@pytest.mark.parametrize("layout", ["permuted", "sliced"])
def test_gates_in_any_layout(backend, device, layout):
    backend.runs("soft_masked_adamw_", torch.float32)
    shapes = [(12, 20), (9, 16)]
    lists = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(2)]
    lists += [[torch.zeros(shape, device=device) for shape in shapes] for _ in range(2)]
    before = [param.clone() for param in lists[0]]
    strided = [[in_layout(tensor, layout) for tensor in tensors] for tensors in lists]
    packed = [in_layout(torch.full(size, 255, dtype=torch.uint8, device=device), layout) for size in ((12, 3), (9, 2))]
    counts = torch.zeros(5, dtype=torch.int64, device=device)
    with tss_kernels.use_backend(backend):
        options = {"step": 1, **HYPER, "lr": 0.5}
        tss_kernels.soft_masked_adamw_(*lists, [None] * 2, **options)
        tss_kernels.soft_masked_adamw_(*strided, [None] * 2, **options, packed=packed, flips=counts[1::2])
    changed = [((old >= 0) != (new >= 0)).sum().item() for old, new in zip(before, lists[0], strict=True)]
    assert all(torch.equal(one, two) for one, two in zip(strided[0], lists[0], strict=True))
    assert all(torch.equal(bits, tss_kernels.pack_gates(new)) for bits, new in zip(packed, lists[0], strict=True))
    assert counts.tolist() == [0, changed[0], 0, changed[1], 0]
    assert all(changed)


def test_flips_beside_parameters_of_other_dtypes(backend, device):
    backend.runs("soft_masked_adamw_", torch.float32)
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float32]
    lists = [[torch.randn(5, 9).to(dtype).to(device) for dtype in dtypes] for _ in range(3)]
    lists += [[tensor.abs() for tensor in lists[2]], [None] * 4]
    before = [param.clone() for param in lists[0]]
    packed = [None, *(torch.zeros(5, 2, dtype=torch.uint8, device=device) if i == 3 else None for i in range(1, 4))]
    flips = torch.full((4,), 7, device=device)
    with tss_kernels.use_backend(backend):
        tss_kernels.soft_masked_adamw_(*lists, step=1, **HYPER | {"lr": 0.5}, packed=packed, flips=flips)
    changed = ((before[3] >= 0) != (lists[0][3] >= 0)).sum().item()
    assert changed > 0
    assert flips.tolist() == [7, 7, 7, 7 + changed]


def test_autograd_notices_every_write(backend, device):
    backend.runs("soft_masked_adamw_", torch.float32)
    values = matrices(device)
    packed, thresholds = asked(device)
    flips = torch.zeros(len(thresholds), dtype=torch.int64, device=device)
    changed = [*values["params"], *values["exp_avgs"], *values["exp_avg_sqs"], *packed[:-1], flips]
    untouched = [*values["grads"], values["importances"][0]]
    versions = [[tensor._version for tensor in tensors] for tensors in (changed, untouched)]
    with tss_kernels.use_backend(backend):
        options = {"packed": packed, "thresholds": thresholds, "flips": flips}
        tss_kernels.soft_masked_adamw_(*values.values(), step=1, **HYPER, **options)
    assert all(tensor._version > before for tensor, before in zip(changed, versions[0], strict=True))
    assert [tensor._version for tensor in untouched] == versions[1]
    parameter = torch.nn.Parameter(torch.randn(3, 3, device=device))
    loss = (parameter * parameter).sum()
    parameter.grad = torch.ones_like(parameter)
    with tss_kernels.use_backend(backend):
        SoftMaskedAdamW([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()

    def step(param, grad, exp_avg, exp_avg_sq, packed, flips):
        tss_kernels.soft_masked_adamw_(
            [param], [grad], [exp_avg], [exp_avg_sq], [None],
            step=1, **HYPER | {"lr": 0.5}, packed=[packed], thresholds=0.25, flips=flips,
        )  # fmt: skip

    def arguments():
        torch.manual_seed(0)
        drawn = [torch.rand(4, 9) for _ in range(4)]
        return *drawn, torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)

    eager, compiled = arguments(), arguments()
    versions = [tensor._version for tensor in compiled]
    step(*eager)
    torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    assert all(torch.equal(one, two) for one, two in zip(eager, compiled, strict=True))
    assert eager[-1] > 0
    counts = [tensor._version - before for tensor, before in zip(compiled, versions, strict=True)]
    assert all(count > 0 for i, count in enumerate(counts) if i != 1)


class Keeper(torch.nn.Parameter):
    """Asks for its gates as scores do, and keeps what it was given."""

    wanted: float | None = 0.25

    def wants_gates(self) -> float | None:
        return self.wanted

    def keep_gates(self, threshold: float, packed: torch.Tensor) -> None:
        assert torch.equal(packed, tss_kernels.pack_gates(self, threshold)), "handed over before the step was done"
        self.kept = [*getattr(self, "kept", []), (threshold, packed, packed.clone(), self._version)]


def test_optimizer_hands_gates_over(backend, device):
    backend.runs("soft_masked_adamw_", torch.float32)
    torch.manual_seed(0)
    wanting, other, quiet, plain = (Keeper(torch.randn(6, 11, device=device)) for _ in range(4))
    other.wanted, quiet.wanted = -0.5, None
    plain = torch.nn.Parameter(plain.detach())
    optimizer = SoftMaskedAdamW([wanting, plain, quiet, other], lr=0.1)
    with tss_kernels.use_backend(backend):
        for _ in range(3):
            for parameter in (wanting, plain, quiet, other):
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    assert not hasattr(quiet, "kept")
    for keeper in (wanting, other):
        assert [threshold for threshold, *_ in keeper.kept] == [keeper.wanted] * 3
        # Gates of an earlier step lie in memory of their own, which a later step leaves as it was.
        assert all(type(packed) is torch.Tensor and torch.equal(packed, then) for _, packed, then, _ in keeper.kept)
        assert keeper.kept[-1][-1] == keeper._version
    assert not torch.equal(wanting.kept[0][1], wanting.kept[2][1])

"""Which backend runs: the default, forcing one, what cannot run, and what is said about it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import tss_kernels
from tss_kernels import BackendUnavailable, explain, use_backend
from tss_kernels.backends import dispatch
from tss_kernels.backends import registry as backends
from tss_kernels.backends.dispatch import choose, select
from tss_kernels.backends.preferences import preferences
from tss_kernels.backends.registry import OPERATIONS, why_not

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
X, W, S = torch.randn(4, 16), torch.randn(3, 16), torch.randn(3, 16)
BANK = torch.randint(0, 256, (5, 3, 2), dtype=torch.uint8)
BANK_OF_UP = torch.randint(0, 8, (5, 16, 1), dtype=torch.uint8)
IDS = torch.tensor([4, 0, 0, 2])


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The code in a Python of its own, nothing interpreted or emulated and no backend forced unless asked for."""
    ours = ("TRITON_INTERPRET", backends.EMULATED, dispatch.VARIABLE)
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run([sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True)


def test_import_needs_and_asks_nothing():
    code = """
import sys
sys.modules["triton"] = None  # importing it raises
import torch
def asked(*_, **__):
    raise AssertionError("a device was asked for")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.get_device_capability = torch.cuda._lazy_init = asked
before = set(sys.modules)
import tss_kernels
assert "torch._dynamo" not in set(sys.modules) - before, "slow to import"
x, w, s = torch.ones(2, 8), torch.ones(3, 8), torch.ones(3, 8, requires_grad=True)
tss_kernels.gated_linear(x, w, s).sum().backward()
assert s.grad.eq(2).all()
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def installed(monkeypatch):
    """Says which backends are there, whatever this machine has, and that nothing is interpreted or emulated."""

    def say(*names: str) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.delenv(backends.EMULATED, raising=False)
        for name in backends.INSTALLED:
            monkeypatch.setitem(backends.INSTALLED, name, name in names)

    return say


@pytest.mark.parametrize("op", OPERATIONS)
def test_default_on_the_cpu(op, installed):
    installed("triton", "cuda")
    assert choose(op, CPU, torch.float32, (4, 16, 3)).backend == "reference"
    assert "native (compiled C++ for the CPU) was not built" in choose(op, CPU, torch.float32, (4, 16, 3)).reason
    installed("native", "triton", "cuda")
    assert dispatch.default_backend(op, CPU, torch.float32) == "native"
    assert dispatch.default_backend(op, META, torch.float32) == "reference"


@pytest.mark.parametrize("op", OPERATIONS)
def test_default_on_cuda(op, installed):
    product = "linear" in op or "adapter" in op
    installed("native", "triton", "cuda")
    assert dispatch.default_backend(op, CUDA, torch.bfloat16) == ("triton" if product else "cuda")
    installed("native", "triton")
    assert dispatch.default_backend(op, CUDA, torch.bfloat16) == "triton"
    installed("native", "cuda")
    assert dispatch.default_backend(op, CUDA, torch.bfloat16) == "cuda"
    installed("native")
    assert dispatch.default_backend(op, CUDA, torch.bfloat16) == "reference"


def test_default_by_dtype(installed):
    installed("triton", "cuda")
    assert dispatch.default_backend("gated_linear", CUDA, torch.float64) == "reference"
    assert dispatch.default_backend("unpack_gates", CUDA, torch.uint8) == "cuda"
    assert dispatch.default_backend("normalize_importance", CUDA, torch.float64) == "cuda"  # computed in float64 anyway


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_preference_says_what_it_rests_on(op):
    for device in (CPU, CUDA):
        for preference in preferences(op, device, torch.float32)[:1]:
            assert preference.basis.startswith(("measured", "predicted"))


@pytest.mark.parametrize(
    ("backend", "op", "device", "dtype", "says"),
    [
        ("native", "gated_linear", CUDA, torch.float32, "runs on the CPU, not on cuda"),
        ("cuda", "pack_gates", CPU, torch.float32, backends.EMULATED),
        ("cuda", "gated_linear", CUDA, torch.float64, "not in torch.float64"),
        ("cuda", "gated_linear", META, torch.float32, "not on meta"),
        ("triton", "gated_linear", CUDA, torch.float64, "not in torch.float64"),
        ("triton", "gated_linear", META, torch.float32, "not on meta"),
        ("triton", "gated_linear", CPU, torch.float32, "TRITON_INTERPRET"),
    ],
)
def test_a_forced_backend_that_cannot_run_raises(backend, op, device, dtype, says, installed):
    installed("native", "triton", "cuda")
    with use_backend(backend), pytest.raises(BackendUnavailable, match=says) as raised:
        select(op, device, dtype)
    assert "Remedy: " in str(raised.value)
    assert select(op, device, dtype) != backend


def test_an_operation_that_a_backend_lacks_is_said(monkeypatch, installed):
    installed("triton")
    lacking = backends.COMPILED["triton"]._replace(operations=("gated_linear",))
    monkeypatch.setitem(backends.COMPILED, "triton", lacking)
    with use_backend("triton"), pytest.raises(BackendUnavailable, match="implements gated_linear, not gated_adapter"):
        CALLS["gated_adapter"]()
    assert explain("gated_adapter", X, W, S, W.T, S.T).rejected["triton"].startswith("triton implements gated_linear")


def test_what_is_missing_is_said(installed, monkeypatch):
    installed()
    with use_backend("triton"), pytest.raises(BackendUnavailable, match=r"not installed.*pip install"):
        tss_kernels.gated_linear(X, W, S)
    record = {"_native": {"built": False, "how": "no C++ compiler was found", "remedy": "install g++"}}
    monkeypatch.setattr(backends, "build_record", lambda: record)
    with use_backend("native"), pytest.raises(BackendUnavailable, match=r"not built: no C\+\+ .*install g\+\+, then"):
        tss_kernels.gated_linear(X, W, S)
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match=r"was not built\. Remedy: install a compiler"):
        tss_kernels.gated_linear(X, W, S)


CALLS = {
    "gated_linear": lambda: tss_kernels.gated_linear(X, W, S),
    "gated_adapter": lambda: tss_kernels.gated_adapter(X, W, S, W.T, S.T),
    "pack_gates": lambda: tss_kernels.pack_gates(S),
    "unpack_gates": lambda: tss_kernels.unpack_gates(torch.zeros(3, 2, dtype=torch.uint8), 16),
    "packed_linear": lambda: tss_kernels.packed_linear(X, W, torch.zeros(3, 2, dtype=torch.uint8)),
    "normalize_importance": lambda: tss_kernels.normalize_importance(S),
    "accumulate_importance_": lambda: tss_kernels.accumulate_importance_(S.clone(), S),
    "update_importance_": lambda: tss_kernels.update_importance_(S.abs(), S),
    "soft_masked_adamw_": lambda: tss_kernels.soft_masked_adamw_(
        [W.clone()], [W], [W.clone()], [W.abs()], [None], step=1, lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8
    ),
    "multi_task_linear": lambda: tss_kernels.multi_task_linear(X, W, BANK, IDS),
    "multi_task_adapter": lambda: tss_kernels.multi_task_adapter(X, W, BANK, W.T, BANK_OF_UP, IDS),
}


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_obeys(op, installed):
    installed("native", "triton", "cuda")
    with use_backend("reference"):
        CALLS[op]()
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match=f"forced for {op} "):
        CALLS[op]()


def test_environment_variable():
    code = "import torch, tss_kernels; tss_kernels.gated_linear(torch.ones(1, 8), torch.ones(2, 8), torch.ones(2, 8))"
    assert python(code, TSS_KERNELS_BACKEND="reference").returncode == 0
    assert "BackendUnavailable: backend 'cuda'" in python(code, TSS_KERNELS_BACKEND="cuda").stderr
    assert "no backend 'cuad'" in python(code, TSS_KERNELS_BACKEND="cuad").stderr
    inside = f"import tss_kernels\nwith tss_kernels.use_backend(None):\n    {code}"
    assert python(inside, TSS_KERNELS_BACKEND="cuda").returncode == 0
    report = python("import runpy; runpy.run_module('tss_kernels', run_name='__main__')", TSS_KERNELS_BACKEND="cuad")
    assert report.returncode == 1
    assert "'cuad', which is not a backend" in report.stdout


def test_blocks_nest_and_end_with_an_error():
    with use_backend("reference"):
        with pytest.raises(KeyError), use_backend("triton"):
            raise KeyError
        assert dispatch.forced_backend() == "reference"
    assert dispatch.forced_backend() is None
    with pytest.raises(ValueError, match=r"no backend 'fast'.*reference, native, triton, cuda"):
        use_backend("fast")


def test_a_thread_does_not_see_anothers_choice():
    seen = []
    with use_backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(tss_kernels.gated_linear(X, W, S)))
        thread.start()
        thread.join()
    assert len(seen) == 1


def test_one_object_in_two_threads():
    choice, entered, leave = use_backend("reference"), threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with use_backend("native"), choice:
            entered.set()
            leave.wait(60)
        seen.append(dispatch.forced_backend())

    thread = threading.Thread(target=other)
    with choice:
        thread.start()
        assert entered.wait(60)
    assert dispatch.forced_backend() is None
    leave.set()
    thread.join()
    assert seen == [None]


def test_an_operator_with_the_name_of_a_backend_that_is_not_here_runs_the_reference(installed, monkeypatch):
    monkeypatch.delenv(backends.EMULATED, raising=False)
    installed("triton")
    expected = tss_kernels.gated_linear(X, W, S)
    for backend in ("cuda", "native"):
        assert torch.equal(torch.ops.tss_kernels.gated_linear(X, W, S, None, 0.0, backend)[0], expected)
    (weight, mean), zeros = (W.clone(), W * 0), torch.zeros_like(W)
    torch.ops.tss_kernels.soft_masked_adamw_(
        [weight], [S], [mean], [zeros], [None], 1.0, 0.1, 0.9, 0.99, 1e-8, 0.0, "update", "cuda"
    )
    torch.testing.assert_close(weight, W - 0.1 * S.sign())


def test_backward_runs_on_the_forwards_backend(installed):
    installed("native", "triton")  # not cuda, which would raise
    scores = S.clone().requires_grad_()
    with use_backend("reference"):
        y = tss_kernels.gated_linear(X, W, scores)
    with use_backend("cuda"):
        y.sum().backward()
    assert scores.grad is not None


def test_explain_says_what_would_run(installed):
    installed("triton")
    told = explain("gated_linear", X.bfloat16(), W.bfloat16(), scores=S)
    assert (told.op, told.backend, told.configuration) == ("gated_linear", "reference", "plain PyTorch")
    assert told.bytes == 2 * (4 * 16 + 3 * 16 + 4 * 3) + 4 * 3 * 16
    assert told.flops == 2 * 4 * 16 * 3
    assert told.roofline_seconds is None
    assert "no measured ceilings for cpu" in told.roofline_note
    assert set(told.rejected) == {"native", "triton", "cuda"}
    assert "not cuda: cuda (compiled CUDA C++) was not built" in str(told)


def test_explain_of_a_forced_backend():
    if why_not("triton", "gated_linear", CPU, torch.float32) is not None:
        pytest.skip("triton cannot run on CPU tensors here")
    with use_backend("triton"):
        told = explain(tss_kernels.gated_linear, X, W, S)
    assert told.backend == "triton"
    assert "forced" in told.reason
    assert "Tile(" in told.configuration
    assert "triton was forced" in told.rejected["reference"]


@pytest.mark.parametrize(
    ("rows", "bottleneck", "says"),
    [
        (4, 3, "Tile(hidden=64, features=32, rows=32, warps=8, stages=2); x is read once"),
        (4, 70, "two packed_linear around the activation; 70 hidden units are more than the 64"),
        (600, 3, "two packed_linear around the activation; predicted: float32 without tensor cores"),
    ],
)
def test_explain_says_how_the_adapter_runs(rows, bottleneck, says):
    x, weight = torch.empty(rows, 16), torch.empty(bottleneck, 16)
    arguments = (x, weight, weight, weight.T, weight.T)
    with use_backend("reference"):
        assert explain("gated_adapter", *arguments).configuration == "plain PyTorch"
    if why_not("triton", "gated_adapter", CPU, torch.float32) is not None:
        pytest.skip("triton cannot run on CPU tensors here")
    with use_backend("triton"):
        assert explain("gated_adapter", *arguments).configuration.startswith(says)


def test_explain_every_operation_and_no_other():
    tensors = {name: [W.clone()] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    hyper = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8}
    packed = tss_kernels.pack_gates(S)
    counted = {
        "gated_adapter": explain("gated_adapter", X, W, S, W.T, S.T),
        "packed_linear": explain("packed_linear", X, W, packed),
        "pack_gates": explain("pack_gates", S),
        "unpack_gates": explain("unpack_gates", packed, 16),
        "normalize_importance": explain("normalize_importance", S, per="row"),
        "accumulate_importance_": explain("accumulate_importance_", S, S),
        "update_importance_": explain("update_importance_", S.abs(), S),
        "soft_masked_adamw_": explain("soft_masked_adamw_", **tensors, importances=[S], **hyper),
        "multi_task_linear": explain("multi_task_linear", X, W, BANK, IDS),
        "multi_task_adapter": explain("multi_task_adapter", X, W, BANK, W.T, BANK_OF_UP, IDS),
    }
    # x, y, the weight, and the gates of the four tasks that four rows have at most
    assert counted["multi_task_linear"].bytes == 4 * (4 * 16 + 4 * 3 + 3 * 16) + 4 * 3 * 2 + 8 * 4
    assert counted["multi_task_adapter"].flops == counted["gated_adapter"].flops
    assert set(counted) | {"gated_linear"} == set(OPERATIONS)
    assert counted["soft_masked_adamw_"].bytes == 32 * W.numel()
    assert counted["update_importance_"].bytes == 16 * S.numel()
    assert counted["gated_adapter"].flops == 2 * 2 * 4 * 16 * 3
    # x, y and the hidden units; two weights and scores of 48 entries
    assert counted["gated_adapter"].bytes == 4 * (2 * 4 * 16 + 4 * 3 + 4 * 48)
    assert counted["pack_gates"].bytes == 4 * S.numel() + packed.numel()
    with pytest.raises(ValueError, match="no operation 'linear'"):
        explain("linear", X)
    with pytest.raises(TypeError, match="missing"):
        explain("gated_linear", X)


def test_environment_report():
    done = subprocess.run([sys.executable, "-m", "tss_kernels"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"torch {torch.__version__}" in done.stdout
    for backend in backends.BACKENDS:
        assert f"\n  {backend}" in done.stdout
    for part in backends.build_record().values():
        assert str(part["how"]) in done.stdout


class Module:
    """In place of the compiled CUDA kernels: why none runs on this machine, and what the driver says of their code."""

    def __init__(self, obstacle: str = "", code: str = "") -> None:
        self.reason, self.code = obstacle, code

    def obstacle(self) -> str:
        return self.reason

    def has_warpgroups(self, index: int) -> bool:
        if self.code:
            raise RuntimeError(self.code)
        return False


OLD_DRIVER = Module(obstacle="CUDA driver version is insufficient for CUDA runtime version")
OTHER_CODE = Module(code="asking for a kernel's registers: no kernel image is available for execution on the device")


@pytest.fixture
def gpu(monkeypatch, installed):
    """Gives this machine a GPU of a compute capability, and compiled kernels with a module in their place."""

    def give(capability: tuple[int, int], module: Module) -> torch.device:
        installed("native", "triton", "cuda")
        monkeypatch.setattr(backends, "_ON_GPU", {})
        monkeypatch.setitem(sys.modules, "tss_kernels._cuda", module)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        return torch.device("cuda", 0)

    return give


@pytest.mark.parametrize(
    ("capability", "module", "others", "said"),
    [
        ((9, 0), OLD_DRIVER, "triton", "driver version is insufficient for CUDA runtime version"),
        ((8, 9), OTHER_CODE, "triton", "no code for GPU 0 (compute capability 8.9): asking for a kernel's registers"),
        ((7, 5), Module(), "reference", "compute capability 8.0 or newer, and GPU 0 has 7.5"),
    ],
    ids=["old driver", "code of other GPUs", "old GPU"],
)
def test_compiled_kernels_are_not_chosen_on_a_gpu_that_cannot_run_them(gpu, capability, module, others, said):
    device = gpu(capability, module)
    for op in OPERATIONS:
        wanted = [each.backend for each in preferences(op, device, torch.float32, (64, 256, 64))]
        expected = others if others in wanted else "reference"
        assert dispatch.default_backend(op, device, torch.float32, (64, 256, 64)) == expected, op
    obstacle = why_not("cuda", "pack_gates", device, torch.float32)
    assert said in obstacle.reason
    assert obstacle.remedy
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match="cannot run"):
        select("pack_gates", device, torch.float32)


def test_compiled_kernels_are_chosen_on_a_gpu_that_runs_them(gpu):
    device = gpu((9, 0), Module())
    assert dispatch.default_backend("pack_gates", device, torch.float32) == "cuda"
    assert why_not("cuda", "pack_gates", torch.device("cuda", 1), torch.float32) is None, "a GPU that is not here"

"""Every way of testing kernels without a GPU notices a kernel that is wrong: a copy of a real one with one fault."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

pytest.importorskip("triton")

import tss_kernels
from tests.kernels.inspectors.resources import kernels_and_operations, measure, violations
from tss_kernels.gated_linear import triton as products
from tss_kernels.gated_linear import triton_kernels
from tss_kernels.testing import CheckFailed, check_op

HERE = Path(__file__).parent
CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is for machines without a GPU")


def faulty(folder: Path, right: str, wrong: str) -> Path:
    """A copy of the products' kernels in which one piece of text is replaced wherever it stands."""
    source = Path(triton_kernels.__file__).read_text()
    assert right in source, f"the kernels no longer say {right!r}: plant another fault"
    path = folder / "faulty_kernels.py"
    path.write_text(source.replace(right, wrong))
    return path


def check_gated_linear(*checks: str) -> None:
    """The battery's checks on gated_linear by Triton, with scores that often equal the threshold."""

    def make_inputs(rows, dtype, generator):
        scores = torch.randint(-1, 2, (17, 20), generator=generator).float()
        drawn = {name: torch.randn(size, 20, generator=generator) for name, size in (("x", rows), ("weight", 17))}
        return {name: tensor.to(dtype) for name, tensor in drawn.items()} | {"scores": scores}

    def function(x, weight, scores):
        with tss_kernels.use_backend("triton"):
            return tss_kernels.gated_linear(x, weight, scores)

    def reference(x, weight, scores):
        return linear(x, torch.where(scores >= 0, weight, 0))

    check_op(function, reference, make_inputs, dtypes=[torch.float32], rows=(5,), checks=checks)


@CPU
def test_the_interpreter_notices_a_gate_that_is_off_at_the_threshold(tmp_path, monkeypatch):
    path = faulty(tmp_path, "score >= threshold", "score > threshold")
    specification = importlib.util.spec_from_file_location("faulty_kernels", path)
    kernels = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(kernels)
    check_gated_linear("values")
    monkeypatch.setattr(products, "forward_kernel", kernels.forward_kernel)
    with pytest.raises(CheckFailed, match="float32, 5 rows: value: largest error"):
        check_gated_linear("values")


@CPU
def test_strided_gradients_notice_a_launch_that_ignores_strides(monkeypatch):
    right = products.input_grad

    def as_if_contiguous(dy, weight, packed):
        return right(torch.as_strided(dy, dy.shape, (dy.shape[1], 1)), weight, packed)

    monkeypatch.setattr(products, "input_grad", as_if_contiguous)
    check_gated_linear("values", "backward twice")
    with pytest.raises(CheckFailed, match="gradient permuted: gradient of x"):
        check_gated_linear("gradient layouts")


GUARDED = """
import torch
from triton_guarded import guarded
from tss_kernels.gated_linear import triton as products

if {faulty}:
    import faulty_kernels
    products.forward_kernel = faulty_kernels.forward_kernel
products.forward(guarded(torch.randn(33, 70)), torch.randn(65, 70), torch.randn(65, 70), None, 0.0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_guard_pages_notice_a_missing_mask(tmp_path):
    faulty(tmp_path, "x_mask = inside[:, None] & row_mask[None, :]", "x_mask = inside[:, None] & (row >= 0)[None, :]")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{tmp_path}"}
    ends = [
        subprocess.run([sys.executable, "-c", GUARDED.format(faulty=one)], env=environment, capture_output=True)
        for one in (False, True)
    ]
    assert ends[0].returncode == 0, ends[0].stderr.decode()
    assert ends[1].returncode == -signal.SIGSEGV


LAUNCHES = """
import sys

sys.path.insert(0, {folder!r})
import faulty_kernels
from tss_kernels.gated_linear import triton as products
from tests.kernels.inspectors import triton_cases as cases

products.forward_kernel = faulty_kernels.forward_kernel
cases.PRODUCTS, cases.ALIKE = cases.PRODUCTS[:1], ()
KERNELS = cases.KERNELS
OPERATIONS = {{"gated_linear": cases.gated_linear}}
"""


def test_the_resource_gate_notices_a_mask_that_leaves_the_registers(tmp_path):
    """The product the other way round is as right, and its masked operand goes through shared memory."""
    faulty(
        tmp_path,
        "sums = tl.dot(dot_operand(masked), dot_operand(x), sums, input_precision=PRECISION)",
        "sums += tl.trans(tl.dot(tl.trans(x), tl.trans(masked), input_precision=PRECISION))",
    )
    path = tmp_path / "triton_cases.py"
    path.write_text(LAUNCHES.format(folder=str(tmp_path)))
    kernels, _ = kernels_and_operations()
    seen = {one.kernel: one for one in measure(path, [90]) if one.launch.startswith("bfloat16")}
    # Some versions of Triton put no such product on Hopper's tensor cores at all.
    found = violations(seen["forward_kernel"], kernels["forward_kernel"])[0]
    assert "masked operand: 0 products from registers" in found or "no tensor core" in found

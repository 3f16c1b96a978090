"""Every Triton launch compiles for sm_90, fits its shared memory and uses tensor cores, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = 232_448  # bytes that one block may use on sm_90
PRODUCTS = {"forward_kernel", "input_grad_kernel", "partial_kernel"}


@pytest.fixture(scope="module")
def launches() -> list[dict]:
    script = Path(__file__).with_name("triton_offline.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_kernels_are_covered(launches):
    assert {launch["kernel"] for launch in launches} == PRODUCTS | {"reduce_kernel", "adamw_kernel"}


def test_resources(launches):
    for launch in launches:
        assert launch["shared"] <= SHARED_MEMORY, launch
        assert launch["spills"] == launch["stack"] == 0, launch


def test_tensor_cores_take_the_masked_weight_from_registers(launches):
    halves = [launch for launch in launches if launch["kernel"] in PRODUCTS and "float32" not in launch["launch"]]
    assert len(halves) >= 9
    for launch in halves:
        assert launch["tensor_core"] > 0, launch
        if launch["kernel"] != "partial_kernel":
            assert launch["wgmma_from_registers"] > 0, launch
            assert launch["wgmma_from_shared"] == 0, launch


def test_optimizer_stores_sixteen_bytes_at_once(launches):
    for launch in launches:
        if launch["kernel"] == "adamw_kernel":
            assert launch["wide_stores"] >= 3, launch

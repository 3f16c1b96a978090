"""No Triton kernel reads or writes past the end of a tensor; the interpreter does not notice that by itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")

PACKAGE = Path(__file__).parents[2] / "tss_kernels"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("triton_guarded.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    return subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)


def test_nothing_past_the_end():
    done = run()
    assert done.returncode == 0, done.stderr
    sources = [path.read_text() for path in PACKAGE.glob("*/triton*.py")]
    kernels = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}
    assert set(done.stdout.split()) == kernels, "a kernel that triton_guarded.py does not run"


@pytest.mark.parametrize("family", ["gated_linear", "gated_adapter", "multi_task", "gates", "importance", "adamw"])
def test_an_access_past_the_end_would_be_seen(family):
    assert run("--short", family).returncode == -signal.SIGSEGV

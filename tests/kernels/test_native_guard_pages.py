"""No native kernel reads or writes past the end of a tensor."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tss_kernels.backends.native", reason="the native backend was not built", exc_type=ImportError)

from tss_kernels.backends.native import kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")

SETTINGS = {"instruction_set", "instruction_sets", "use_instruction_set", "use_team"}
FUNCTIONS = sorted(name for name in vars(kernels) if not name.startswith("_") and name not in SETTINGS)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("native_guarded.py")
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


def test_nothing_past_the_end():
    done = run()
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == FUNCTIONS, "a function that native_guarded.py does not run"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_access_past_the_end_would_be_seen(function):
    assert run("--short", function).returncode == -signal.SIGSEGV

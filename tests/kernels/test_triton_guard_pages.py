"""No Triton kernel reads past the end of an input; the interpreter does not notice that by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("triton_guarded.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    return subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)


def test_no_read_past_the_end():
    done = run()
    assert done.returncode == 0, done.stderr
    assert "nothing was read past its end" in done.stdout


def test_a_read_past_the_end_would_be_seen():
    assert run("--past-the-end").returncode == -signal.SIGSEGV

"""Measured entries into the tables: what is written is what dispatch then reads, and nothing else changes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types

import pytest

from bench.gpu import adopt
from bench.gpu.context import ROOT
from tss_kernels.backends.tables import measured
from tss_kernels.backends.tables.table import ALWAYS, Crossover

ENTRY = {"backend": "cuda", "table": "sm_90", "product": "forward", "kind": "half", "even": True, "bound": "memory"}
PROPOSED = {
    "crossovers": [
        ENTRY | {"rows": 4096.0, "basis": "measured on X", "present": None},
        ENTRY | {"backend": "triton", "rows": None, "basis": "measured on X", "present": None},
    ],
    "preferences": [{"op": "pack_gates", "backends": ["triton", "cuda"], "basis": "measured on X: 0.5"}],
}  # fmt: skip
KEY = ("forward", "half", True, "memory")


def loaded(text: str) -> types.ModuleType:
    module = types.ModuleType("measured")
    exec(text, module.__dict__)
    return module


def report(tmp_path, **part: object):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"format": 1, "machine": {}, "parts": {"measure.dispatch": part}}))
    return path


def test_the_file_is_what_the_writer_writes():
    tables = {name: getattr(measured, name) for name in adopt.TABLES}
    assert adopt.TARGET.read_text() == adopt.text_of(tables, measured.PREFERENCES)


def test_what_is_adopted_is_what_was_proposed(tmp_path, monkeypatch):
    target = tmp_path / "measured.py"
    monkeypatch.setattr(adopt, "TARGET", target)
    other = ("input_grad", "half", True, "memory")
    monkeypatch.setattr(measured, "CUDA", {"sm_90": {other: Crossover(7, "before"), KEY: Crossover(8, "before")}})
    monkeypatch.setattr(measured, "PREFERENCES", {"unpack_gates": (("cuda",), "before")})
    path = report(tmp_path, tiny=False, result={"proposal": PROPOSED})
    assert adopt.main([str(path), "--dry-run"]) == 0
    assert not target.exists()
    assert adopt.main([str(path)]) == 0
    made = loaded(target.read_text())
    expected = {KEY: (4096, "measured on X"), other: (7, "before")}
    assert made.CUDA["sm_90"] == expected
    assert made.TRITON == {"sm_90": {KEY: (ALWAYS, "measured on X")}}
    assert made.PREFERENCES == {
        "pack_gates": (("triton", "cuda"), "measured on X: 0.5"), "unpack_gates": (("cuda",), "before")
    }  # fmt: skip


@pytest.mark.parametrize("part", [{}, {"result": {"cases": []}}, {"tiny": True, "result": {"proposal": PROPOSED}}])
def test_what_means_nothing_is_not_adopted(tmp_path, monkeypatch, part, capsys):
    monkeypatch.setattr(adopt, "TARGET", tmp_path / "measured.py")
    assert adopt.main([str(report(tmp_path, **part))]) == 1
    assert not (tmp_path / "measured.py").exists()
    assert capsys.readouterr().err


READ = """
import torch
from tss_kernels.backends.tables import measured, sm_90
from tss_kernels.backends.tables.cuda import cuda_table
from tss_kernels.backends.preferences import preferences
key = ("forward", "half", True, "memory")
cpu = torch.device("cpu")
print(sm_90.TABLE.crossovers[key].rows, sm_90.CROSSOVERS[key].basis[:9], cuda_table(cpu).crossovers[key].rows)
print([one.backend for one in preferences("pack_gates", torch.device("cuda"), torch.float32)])
"""


def test_the_tables_take_measured_entries_before_predicted_ones(tmp_path):
    tables = {"TRITON": {"sm_90": {KEY: Crossover(11, "m")}}, "CUDA": {"sm_90": {KEY: Crossover(22, "m")}}}
    file = tmp_path / "replaced.py"
    file.write_text(adopt.text_of(tables, {"pack_gates": (("triton", "cuda"), "m")}))
    replace = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('tss_kernels.backends.tables.measured', {str(file)!r})\n"
        "import tss_kernels.backends.tables.table\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "for name in [one for one in sys.modules if one.startswith('tss_kernels.backends.tables')]: del sys.modules[name]\n"
        "sys.modules[spec.name] = module\n"
    )
    done = subprocess.run([sys.executable, "-c", replace + READ], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["11 predicted 22", "['triton', 'cuda']"], done.stderr


def test_the_file_needs_no_formatting(tmp_path):
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("the package ruff is not installed")
    tables = {
        name: {"sm_90": {KEY: Crossover(ALWAYS, "measured on X"), (*KEY[:3], "arithmetic"): Crossover(64, "m" * 90)}}
        for name in adopt.TABLES
    }
    file = tmp_path / "measured.py"
    file.write_text(adopt.text_of(tables, {"pack_gates": (("triton", "cuda"), "measured " * 20)}))
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

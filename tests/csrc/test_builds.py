"""Real builds of small modules: paths that need quoting, compilers that fail, and a wheel that works elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from csrc.build import install, ninja_file, record
from csrc.build.command import keep_record
from csrc.build.plan import ROOT, Module, Source
from csrc.build.settings import read
from csrc.build.toolchain import Missing, Tool, find_cxx

CXX = find_cxx(read())
pytestmark = pytest.mark.skipif(isinstance(CXX, Missing), reason="no C++ compiler")
MODULE = """#include <Python.h>
#include "answer.h"
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "tiny", nullptr, -1};
PyMODINIT_FUNC PyInit_tiny() {
    PyObject* module = PyModule_Create(&definition);
    PyModule_AddIntConstant(module, "answer", ANSWER);
    return module;
}
"""


def tiny(folder: Path, source: str = MODULE) -> Module:
    """A module of one source in a folder whose name needs every kind of quoting."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answer.h").write_text("#define ANSWER 42\n")
    (folder / "tiny.cpp").write_text(source)
    flags = ("-fPIC", f"-I{folder}", "-isystem", sysconfig.get_paths()["include"])
    return Module("tiny", (Source(folder / "tiny.cpp", "tiny", "cxx", flags),))


def build(module: Module, folder: Path) -> Path:
    assert isinstance(CXX, Tool)
    return ninja_file.build(module, {"cxx": CXX.path}, folder, 1)


def answer(file: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", "import tiny; print(tiny.answer)"], cwd=file.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_paths_with_spaces_and_dollars(tmp_path):
    file = build(tiny(tmp_path / "my $HOME source's"), tmp_path / "a build: here")
    assert answer(file) == 42


def test_what_changed_is_built_again_and_nothing_else(tmp_path, capfd):
    module, folder = tiny(tmp_path / "source"), tmp_path / "build"
    first = build(module, folder).stat().st_mtime_ns
    out, told = capfd.readouterr()
    assert "tss_kernels: tiny: 2 steps with " in told
    assert re.search(r"^tss_kernels: \[1 of 2, [\d.]+ s\] compiled tiny$", told, re.MULTILINE)
    assert out == ""
    assert build(module, folder).stat().st_mtime_ns == first
    assert capfd.readouterr() == ("", "")
    (tmp_path / "source" / "answer.h").write_text("#define ANSWER 43\n")  # headers count
    assert answer(build(module, folder)) == 43


def test_a_compiler_s_errors_are_passed_on(tmp_path):
    with pytest.raises(ninja_file.BuildFailed, match="no such thing"):
        build(tiny(tmp_path, '#error "no such thing"'), tmp_path / "build")


def planned(parts: str, module: Module) -> install.Plan:
    plan = install.Plan(read({"TSS_KERNELS_BUILD": "cpu"}))
    plan.settings = plan.settings._replace(parts=parts)
    plan.steps = [install.Step("_native", lambda: module, "g++")]
    return plan


def test_what_does_not_compile_is_left_out_and_recorded(tmp_path):
    files, parts = planned("auto", tiny(tmp_path, '#error "no such thing"')).build(tmp_path / "build")
    assert files == {}
    assert not parts["_native"]["built"]
    assert "compiling failed" in parts["_native"]["how"]
    assert "no such thing" in (tmp_path / "build" / "_native.log").read_text()


def test_what_was_demanded_and_does_not_compile_fails(tmp_path):
    with pytest.raises(ninja_file.BuildFailed, match="no such thing"):
        planned("cpu", tiny(tmp_path, '#error "no such thing"')).build(tmp_path / "build")


def test_the_record_in_one_line(tmp_path):
    parts: dict[str, record.Part] = {
        "_native": {"built": True, "how": "g++ 12", "remedy": ""},
        "_cuda": {"built": False, "how": "no nvcc was found", "remedy": "install it"},
    }
    record.write(tmp_path, parts)
    assert record.read(tmp_path) == parts
    line = record.line(parts)
    assert line == "tss_kernels: _native built (g++ 12); _cuda not built (no nvcc was found: install it)"
    assert record.read(tmp_path / "nothing") == {}


def test_a_module_of_an_earlier_build_goes_where_the_record_denies_it(tmp_path):
    old, kept = (tmp_path / f"{name}{ninja_file.suffix()}" for name in ("_cuda", "_native"))
    for file in (old, kept):
        file.write_bytes(b"")
    parts: dict[str, record.Part] = {
        "_native": {"built": True, "how": "g++", "remedy": ""},
        "_cuda": {"built": False, "how": "no nvcc was found", "remedy": "install it"},
    }
    keep_record(tmp_path, parts)
    assert not old.exists()
    assert kept.exists()
    assert record.read(tmp_path) == parts


def test_sources_know_no_torch():
    for file in (ROOT / "csrc").rglob("*"):
        if file.suffix in (".h", ".cpp", ".cu", ".cuh", ".py"):
            text = file.read_text()
            assert "import torch" not in text, file
            assert "torch/" not in text, file
            assert "ATen" not in text, file
    assert "torch" not in (ROOT / "pyproject.toml").read_text().split("build-backend")[0]


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["cpu", "off"])
def test_a_wheel_works_in_another_place(parts, tmp_path):
    """Built without isolation, so that no network is needed; unpacked where neither this tree nor a compiler is.

    Without optimisation, which takes half the time and tells nothing about what a wheel holds.
    """
    assert isinstance(CXX, Tool)
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {CXX.path} "$@" -O0\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "TSS_KERNELS_BUILD": parts, "CXX": str(compiler)}
    source = tmp_path / "a copy"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not files:
        pytest.skip("not a git checkout: no list of what to copy")
    for name in filter(None, files.split("\0")):
        if (ROOT / name).exists() and not name.startswith(("tests/", "tss/assets/")):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*wheel, str(source)], check=True, env=environment, capture_output=True)
    (file,) = tmp_path.glob("*.whl")
    assert ("none-any" in file.name) == (parts == "off")
    place = tmp_path / "place"
    unpack = [sys.executable, "-m", "zipfile", "-e", str(file), str(place)]
    subprocess.run(unpack, check=True)
    code = (  # an editable installation of this tree would answer for what the wheel lacks
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in str(f)]; "
        "import json, pathlib, torch, tss_kernels as t; b = t.explain('pack_gates', torch.randn(3, 9)).backend; "
        "built = t.backends.registry.build_record()['_native']['built']; "
        "print(json.dumps([b, str(pathlib.Path(t.__file__).parent), built]))"
    )
    python = [sys.executable, "-c", code]
    done = subprocess.run(
        python, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(place)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    backend, folder, built = json.loads(done.stdout)
    assert Path(folder).is_relative_to(place)
    assert (backend, built) == (("native", True) if parts == "cpu" else ("reference", False))


def test_the_cuda_module_imports_without_a_driver():
    if importlib.util.find_spec("tss_kernels._cuda") is None:
        pytest.skip("tss_kernels._cuda was not built: no nvcc")
    import torch

    from tss_kernels import _cuda

    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    assert not _cuda.emulated
    assert _cuda.obstacle()  # the runtime's own words

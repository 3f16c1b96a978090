"""What a build asks of its environment, and what it says where a compiler is missing or too old."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from csrc.build import toolchain
from csrc.build.install import Plan
from csrc.build.ninja_file import BuildFailed
from csrc.build.plan import gencode
from csrc.build.settings import VARIABLES, SettingError, read, table
from csrc.build.toolchain import Missing, Tool, find_cxx, find_nvcc


def program(folder: Path, name: str, prints: str) -> Path:
    """An executable that prints this, whatever it is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{prints}'\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Path:
    """A PATH of one empty folder, no toolkit in a usual place, and none of the build's variables set."""
    for name in (*VARIABLES, "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "USUAL_HOMES", ())
    folder = tmp_path / "some programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TSS_KERNELS_BUILD", "gpu", "one of auto, off, cpu, cuda but is 'gpu'"),
        ("TSS_KERNELS_ARCHITECTURES", "80 sm_90", "has 'sm_90'"),
        ("TSS_KERNELS_ARCHITECTURES", "75", "from 80 on"),
        ("MAX_JOBS", "many", "from 1 on but is 'many'"),
        ("MAX_JOBS", "0", "from 1 on"),
    ],
)
def test_a_variable_that_means_nothing_is_said(variable, value, says):
    with pytest.raises(SettingError, match=says):
        read({variable: value})


def test_variables():
    settings = read({"TSS_KERNELS_ARCHITECTURES": "80;90a 100+PTX", "MAX_JOBS": "3", "CXX": "clang++"})
    assert settings.architectures == ("80", "90a", "100+PTX")
    assert (settings.jobs, settings.cxx, settings.parts) == (3, "clang++", "auto")
    assert gencode(settings.architectures)[1::2] == (
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_100,code=compute_100",
    )
    assert all(f"`{name}`" in table() for name in VARIABLES)


def test_no_compiler_leaves_pure_python(bare):
    plan = Plan(read())
    assert plan.modules == []
    said = plan.described()
    assert said["_native"] == {
        "built": False,
        "how": "no C++ compiler was found",
        "remedy": "install g++ or clang++ (C++17), or set CXX",
    }
    assert not said["_cuda"]["built"]


def test_no_nvcc_builds_the_cpu_part(bare):
    program(bare, "g++", "g++ 12.2.0")
    plan = Plan(read())
    assert plan.modules == ["_native"]
    assert plan.described()["_native"]["how"] == "g++ 12.2.0"
    assert plan.described()["_cuda"]["how"] == "no nvcc was found"


def test_an_old_nvcc_is_said_with_both_versions(bare, tmp_path):
    program(bare, "g++", "g++ 12.2.0")
    old = program(tmp_path / "cuda 11" / "bin", "nvcc", "Cuda compilation tools, release 11.8, V11.8.89")
    found = find_nvcc(read(), {"CUDA_HOME": str(tmp_path / "cuda 11")})
    assert isinstance(found, Missing)
    assert found.reason == f"nvcc at {old} is release 11.8, older than 12.1"
    plan = Plan(read()._replace(nvcc=str(old)))
    assert plan.modules == ["_native"]
    assert plan.described()["_cuda"]["how"] == found.reason


def test_a_toolkit_without_its_runtime_is_said(bare):
    program(bare, "g++", "g++ 12.2.0")
    program(bare, "nvcc", "Cuda compilation tools, release 12.4, V12.4.1")
    assert "cuda_runtime.h" in Plan(read()).described()["_cuda"]["how"]


def test_a_named_compiler_that_does_not_run_is_said(bare):
    for found in (find_cxx(read({"CXX": "no-such-c++"})), find_nvcc(read({"TSS_KERNELS_NVCC": "no-such-nvcc"}), {})):
        assert isinstance(found, Missing)
        assert "which does not run" in found.reason


def test_nvcc_is_looked_for_where_it_is_named_first(bare, tmp_path):
    program(bare, "nvcc", "release 12.4, V")
    named = program(tmp_path / "a toolkit" / "bin", "nvcc", "release 13.0, V")
    assert find_nvcc(read(), {}) == Tool(str(bare / "nvcc"), "nvcc 12.4")
    assert find_nvcc(read(), {"CUDA_HOME": str(named.parent.parent)}) == Tool(str(named), "nvcc 13.0")
    assert find_nvcc(read({"TSS_KERNELS_NVCC": str(named)}), {}) == Tool(str(named), "nvcc 13.0")


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", None])
def test_an_nvcc_that_is_too_old_does_not_hide_a_newer_one(bare, tmp_path, monkeypatch, variable):
    """The newer one lies where a variable says, or in a usual place; the old one is found before or after it."""
    program(bare, "nvcc", "release 12.0, V12.0.140")
    newer = program(tmp_path / "cuda" / "bin", "nvcc", "release 12.8, V12.8.61")
    variables = {} if variable is None else {variable: str(tmp_path / "cuda")}
    if variable is None:
        monkeypatch.setattr(toolchain, "USUAL_HOMES", (str(tmp_path / "cuda"),))
    assert find_nvcc(read(), variables) == Tool(str(newer), "nvcc 12.8")
    swapped = program(bare, "nvcc", "release 12.8, V12.8.61")
    program(tmp_path / "cuda" / "bin", "nvcc", "release 12.0, V12.0.140")
    assert find_nvcc(read(), variables) == Tool(str(swapped), "nvcc 12.8")


def test_the_newest_of_several_toolkits_is_tried_first(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "USUAL_HOMES", (str(tmp_path / "cuda"), str(tmp_path / "cuda-*")))
    for release in ("12.4", "12.10", "9.2"):
        program(tmp_path / f"cuda-{release}" / "bin", "nvcc", f"release {release}, V")
    assert find_nvcc(read(), {}) == Tool(str(tmp_path / "cuda-12.10" / "bin" / "nvcc"), "nvcc 12.10")
    plain = program(tmp_path / "cuda" / "bin", "nvcc", "release 12.4, V")
    assert find_nvcc(read(), {}) == Tool(str(plain), "nvcc 12.4")
    program(tmp_path / "cuda" / "bin", "nvcc", "release 11.8, V")
    assert find_nvcc(read(), {}) == Tool(str(tmp_path / "cuda-12.10" / "bin" / "nvcc"), "nvcc 12.10")


@pytest.mark.parametrize("asked", ["cpu", "cuda"])
def test_a_part_that_is_demanded_and_cannot_be_built_fails(bare, asked):
    with pytest.raises(
        BuildFailed, match=rf"TSS_KERNELS_BUILD={asked} but no C\+\+ compiler was found. Remedy: install"
    ):
        Plan(read({"TSS_KERNELS_BUILD": asked}))


def test_off_builds_nothing():
    plan = Plan(read({"TSS_KERNELS_BUILD": "off"}))
    assert plan.modules == []
    assert plan.described()["_native"]["how"] == "TSS_KERNELS_BUILD is off"


def test_jobs_are_bounded_by_cores_and_memory(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(toolchain, "_free_gib", lambda: 2.0 * cores)
    assert toolchain.jobs(read({}), 2.0) == cores
    monkeypatch.setattr(toolchain, "_free_gib", lambda: 0.5)
    assert toolchain.jobs(read({}), 2.0) == 1
    assert toolchain.jobs(read({"MAX_JOBS": "7"}), 2.0) == 7

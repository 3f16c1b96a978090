"""The build as a part of a run: for which GPU, what is said without a compiler, and no stale module is measured."""

from __future__ import annotations

import json
import types

import pytest

from bench.gpu import build
from bench.gpu.__main__ import compiled_for
from bench.gpu.build import Built, architectures, obstacle
from bench.gpu.children import Finished
from bench.gpu.parts import Run, choose
from bench.gpu.result_file import ResultFile
from csrc.build import toolchain
from csrc.build.ninja_file import BuildFailed
from csrc.build.settings import read
from tss_kernels.backends.registry import INSTALLED

SUFFIX = ".made-for-this.so"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package, on a machine that has every compiler."""
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr(build, "suffix", lambda: SUFFIX)
    monkeypatch.setattr(build, "obstacle", lambda variant, settings: None)
    return tmp_path


def test_code_for_the_gpus_there_are_and_no_others():
    assert architectures(["9.0"]) == "90a"
    assert architectures(["8.6", "12.0", "8.6", "9.0"]) == "86 90a 120"
    assert read({build.VARIABLE: architectures(["9.0", "8.0"])}).architectures == ("80", "90a")


def test_the_callers_architectures_stay(monkeypatch):
    machine = {"gpus": [{"capability": "9.0"}]}
    monkeypatch.delenv(build.VARIABLE, raising=False)
    assert compiled_for(machine) == {build.VARIABLE: "90a"}
    assert compiled_for({"gpus": []}) == {}
    monkeypatch.setenv(build.VARIABLE, "80")
    assert compiled_for(machine) == {}


def test_what_is_compiled_takes_the_place_of_what_lay_there(package, monkeypatch, tmp_path):
    made = tmp_path / "made"
    made.write_text("new")
    (package / f"_cuda{SUFFIX}").write_text("old")
    monkeypatch.setattr(build, "built", lambda variant, out: made)
    assert {name: one.status for name, one in build.build().items()} == {"_native": "compiled", "_cuda": "compiled"}
    assert (package / f"_cuda{SUFFIX}").read_text() == "new"


def test_a_module_of_other_sources_does_not_survive_a_failed_build(package, monkeypatch):
    (package / f"_cuda{SUFFIX}").write_text("old")

    def failing(variant, out):
        raise BuildFailed("gates.cu(3): error")

    monkeypatch.setattr(build, "built", failing)
    assert build.build()["_cuda"] == Built("failed", "gates.cu(3): error")
    assert not (package / f"_cuda{SUFFIX}").exists()
    assert (package / f"failed-_cuda{SUFFIX}").read_text() == "old", "kept, but under a name that nothing imports"


def test_without_a_compiler_a_ready_made_module_is_taken(package, monkeypatch):
    monkeypatch.setattr(build, "obstacle", lambda variant, settings: "no nvcc was found")
    assert build.build()["_cuda"] == Built("missing", "no nvcc was found")
    (package / "_cuda.cpython-310-x86_64-linux-gnu.so").write_text("")
    other = build.build()["_cuda"]
    assert (other.status, "_cuda.cpython-310-x86_64-linux-gnu.so is not for this Python" in other.reason) == (
        "missing", True
    )  # fmt: skip
    (package / f"_cuda{SUFFIX}").write_text("carried")
    assert build.build()["_cuda"] == Built("ready", "no nvcc was found")
    assert (package / f"_cuda{SUFFIX}").read_text() == "carried"


RUNTIME = ("include/cuda_runtime.h", "lib64/libcudart_static.a")


def nvcc_of(tmp_path, release: str, codes: str, has: tuple[str, ...] = RUNTIME):
    """Settings that name the nvcc of a toolkit with these files of the runtime."""
    home = tmp_path / f"cuda-{release}-{len(has)}"
    for file in ("bin/nvcc", *has):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).touch()
    tool = home / "bin" / "nvcc"
    tool.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "release {release}, V"; else printf "{codes}"; fi\n'
    )
    tool.chmod(0o755)
    return read({"TSS_KERNELS_NVCC": str(tool), build.VARIABLE: "90a"})


def test_an_nvcc_that_is_too_old_is_no_failure(tmp_path):
    assert "older than 12.1" in str(obstacle("cuda", nvcc_of(tmp_path, "11.8", "sm_90")))
    assert "does not know sm_90a" in str(obstacle("cuda", nvcc_of(tmp_path, "12.4", "sm_80\\nsm_89\\n")))
    assert obstacle("cuda", nvcc_of(tmp_path, "12.4", "sm_80\\nsm_90\\n")) is None
    assert obstacle("native", nvcc_of(tmp_path, "11.8", "")) is None
    assert obstacle("cuda", read({"TSS_KERNELS_BUILD": "off"})) == "TSS_KERNELS_BUILD is off"


@pytest.mark.parametrize(
    ("has", "said"), [((), "no include/cuda_runtime.h beside it"), (RUNTIME[:1], "no libcudart_static.a beside it")]
)
def test_a_toolkit_without_its_runtime_leaves_a_ready_made_module(tmp_path, monkeypatch, has, said):
    settings = nvcc_of(tmp_path, "12.4", "sm_90\\n", has)
    monkeypatch.setattr(toolchain, "USUAL_HOMES", ())
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr(build, "MODULES", {"cuda": "_cuda"})
    monkeypatch.setattr(build, "read", lambda: settings)
    file = tmp_path / f"_cuda{build.suffix()}"
    file.write_text("carried")
    made = build.build()["_cuda"]
    assert (made.status, said in made.reason) == ("ready", True), made.reason
    assert file.read_text() == "carried"


def test_what_compiling_needs_is_named(monkeypatch):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert "pybind11" in str(obstacle("native", read({})))
    monkeypatch.setattr(
        build.importlib.util, "find_spec", lambda name: types.SimpleNamespace() if name == "pybind11" else None
    )
    assert "ninja" in str(obstacle("native", read({})))


@pytest.mark.parametrize(
    ("cuda", "checked", "status", "said"),
    [
        ("compiled", 0, "done", "_cuda compiled"),
        ("ready", 0, "done", "_cuda ready"),
        ("missing", 0, "skipped", "no nvcc"),
        ("failed", 0, "failed", "_cuda failed"),
        ("ready", 1, "failed", "no kernel image"),
        ("compiled", -11, "failed", "_cuda does not run here"),
        ("ready", None, "failed", "not finished in time"),
    ],
)
def test_the_part_is_done_only_if_what_lies_there_runs(package, monkeypatch, cuda, checked, status, said):
    """A module that fails is out of use for the parts that follow; the others stay."""
    modules = {"_native": {"status": "compiled", "reason": "here"}, "_cuda": {"status": cuda, "reason": "no nvcc"}}
    there = [name for name, one in modules.items() if one["status"] in ("compiled", "ready")]
    for name in there:
        (package / f"{name}{SUFFIX}").write_text(name)
    built = Finished(0, f"some warning\n{json.dumps(modules)}\n")
    run = Finished(checked, "checked _native\nno kernel image is available")
    monkeypatch.setattr(Run, "child", lambda self, command, seconds: run if "--check" in command else built)
    (part,) = choose(["build"])
    outcome = part.run(Run("cuda", ResultFile(package / "r.json"), {}, {}), 60.0)
    assert (outcome.status, said in outcome.reason) == (status, True), outcome.reason
    kept = [name for name in there if name == "_native" or checked == 0]
    assert sorted(path.stem.partition(".")[0] for path in package.glob("_*")) == sorted(kept)
    assert (package / f"failed-_cuda{SUFFIX}").exists() == (checked != 0)


def test_a_module_that_crashes_does_not_hide_what_the_next_one_does(package, monkeypatch):
    modules = {name: {"status": "compiled", "reason": "here"} for name in ("_native", "_cuda")}
    for name in modules:
        (package / f"{name}{SUFFIX}").write_text(name)
    checks = []

    def child(self, command, seconds):
        if "--check" not in command:
            return Finished(0, json.dumps(modules))
        checks.append(command[command.index("--check") + 1 :])
        return Finished(-11, "") if "_native" in command else Finished(0, "checked _cuda")

    monkeypatch.setattr(Run, "child", child)
    (part,) = choose(["build"])
    outcome = part.run(Run("cuda", ResultFile(package / "r.json"), {}, {}), 60.0)
    assert outcome.status == "failed"
    assert "_native does not run here" in outcome.reason
    assert "_cuda does not run here" not in outcome.reason
    assert checks == [["_native", "_cuda"], ["_cuda"]]
    assert sorted(path.name for path in package.glob("*.so")) == [f"_cuda{SUFFIX}", f"failed-_native{SUFFIX}"]


def test_a_module_out_of_use_is_not_found_and_named(package, monkeypatch):
    monkeypatch.setattr(build, "obstacle", lambda variant, settings: "no nvcc was found")
    (package / f"_cuda{SUFFIX}").write_text("carried")
    assert f"rename it to _cuda{SUFFIX}" in build.set_aside("_cuda")
    assert build.build()["_cuda"] == Built("missing", f"no nvcc was found; failed-_cuda{SUFFIX} failed earlier")
    assert build.set_aside("_cuda") == "the package has no such module"


def test_the_modules_of_this_machine_pass_the_check(capsys):
    build.check()
    assert capsys.readouterr().out.splitlines() == [
        f"checked _{name}" for name in ("native", "cuda") if INSTALLED[name]
    ]

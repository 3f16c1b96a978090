"""Setuptools commands that build the extension modules with ninja and write the build record into the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from csrc.build import record
from csrc.build.install import Plan
from csrc.build.ninja_file import suffix
from csrc.build.plan import ROOT

PACKAGE = "tss_kernels"


def extensions(plan: Plan) -> list[Extension]:
    """Return the modules to build as setuptools extensions; with none, the wheel is pure Python."""
    return [Extension(f"{PACKAGE}.{name}", sources=[]) for name in plan.modules]


def keep_record(package: Path, parts: dict[str, record.Part]) -> None:
    """Write the record into the package's folder; delete modules of an earlier build that it lists as not built."""
    record.write(package, parts)
    for name, part in parts.items():
        if not part["built"]:
            (package / f"{name}{suffix()}").unlink(missing_ok=True)


def commands(plan: Plan) -> dict[str, type]:
    """Return the setuptools commands that carry out a plan."""

    class BuildModules(build_ext):
        """Command that builds every planned module and copies its file to where setuptools expects it."""

        def run(self) -> None:
            self.parts = plan.described()
            super().run()
            # After super().run(): while it builds, setuptools resets `inplace`, which `_package` reads.
            keep_record(_package(self), self.parts)
            print(record.line(self.parts))

        def build_extensions(self) -> None:
            files, self.parts = plan.build(Path(self.build_temp).resolve())
            self.extensions = [extension for extension in self.extensions if extension.name.split(".")[-1] in files]
            for extension in self.extensions:
                target = Path(self.get_ext_fullpath(extension.name))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files[extension.name.split(".")[-1]], target)

    class BuildRecord(build_py):
        """Command that writes the planned record, for installations that compile nothing; a build writes it again."""

        def run(self) -> None:
            super().run()
            keep_record(_package(self), plan.described())
            if not plan.modules:
                print(record.line(plan.described()))

    def _package(command: build_ext | build_py) -> Path:
        in_place = getattr(command, "inplace", False) or command.editable_mode
        return ROOT / PACKAGE if in_place else Path(command.build_lib) / PACKAGE

    return {"build_ext": BuildModules, "build_py": BuildRecord}

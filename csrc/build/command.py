"""The setuptools commands: extension modules by ninja, and the record of what was built inside the package."""

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
    """The modules to build, as setuptools wants to hear of them; with none the wheel is one of pure Python."""
    return [Extension(f"{PACKAGE}.{name}", sources=[]) for name in plan.modules]


def keep_record(package: Path, parts: dict[str, record.Part]) -> None:
    """Writes the record into the package's folder and takes away modules of an earlier build that it denies."""
    record.write(package, parts)
    for name, part in parts.items():
        if not part["built"]:
            (package / f"{name}{suffix()}").unlink(missing_ok=True)


def commands(plan: Plan) -> dict[str, type]:
    """The commands that carry a plan out."""

    class BuildModules(build_ext):
        """Builds every planned module and puts its file where setuptools expects it."""

        def run(self) -> None:
            self.parts = plan.described()
            super().run()
            # Only now: while extensions are built, setuptools hides that they are wanted in place.
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
        """Writes what is planned, for installations that compile nothing; the build writes it again."""

        def run(self) -> None:
            super().run()
            keep_record(_package(self), plan.described())
            if not plan.modules:
                print(record.line(plan.described()))

    def _package(command: build_ext | build_py) -> Path:
        in_place = getattr(command, "inplace", False) or command.editable_mode
        return ROOT / PACKAGE if in_place else Path(command.build_lib) / PACKAGE

    return {"build_ext": BuildModules, "build_py": BuildRecord}

"""What an installation builds: decide for each module, build, and record both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from csrc.build import ninja_file, plan, record
from csrc.build.plan import Module
from csrc.build.settings import Settings, read
from csrc.build.toolchain import Missing, Tool, find_cxx, find_nvcc, jobs


class Step(NamedTuple):
    """One module; `how` gives its compilers and targets or, with `module` None, why it is not built, for the record."""

    name: str
    module: Callable[[], Module] | None
    how: str
    remedy: str = ""


def _skipped(name: str, missing: Missing) -> Step:
    return Step(name, None, missing.reason, missing.remedy)


class Plan:
    """Decisions for one environment. Raises SettingError, and BuildFailed if a module that was asked for is skipped."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = read() if settings is None else settings
        self.compilers: dict[str, str] = {}
        self.steps = self._steps()
        demanded = {"cpu": ("_native",), "cuda": ("_native", "_cuda")}.get(self.settings.parts, ())
        for step in self.steps:
            if step.name in demanded and step.module is None:
                raise ninja_file.BuildFailed(
                    f"TSS_KERNELS_BUILD={self.settings.parts} but {step.how}. Remedy: {step.remedy}."
                )

    @property
    def modules(self) -> list[str]:
        """The names of the modules to build."""
        return [step.name for step in self.steps if step.module is not None]

    def _steps(self) -> list[Step]:
        if self.settings.parts == "off":
            asked = Missing("TSS_KERNELS_BUILD is off", "unset it")
            return [_skipped("_native", asked), _skipped("_cuda", asked)]
        cxx = find_cxx(self.settings)
        if isinstance(cxx, Missing):
            return [_skipped("_native", cxx), _skipped("_cuda", cxx)]
        self.compilers["cxx"] = cxx.path
        return [Step("_native", plan.native, cxx.version), self._cuda(cxx)]

    def _cuda(self, cxx: Tool) -> Step:
        if self.settings.parts == "cpu":
            return _skipped("_cuda", Missing("TSS_KERNELS_BUILD is cpu", "set it to auto"))
        nvcc = find_nvcc(self.settings)
        if isinstance(nvcc, Missing):
            return _skipped("_cuda", nvcc)
        module = plan.cuda(self.settings, nvcc)
        if isinstance(module, Missing):
            return _skipped("_cuda", module)
        self.compilers["nvcc"] = nvcc.path
        return Step(
            "_cuda", lambda: module, f"{nvcc.version} for {' '.join(self.settings.architectures)}; {cxx.version}"
        )

    def described(self) -> dict[str, record.Part]:
        """Return the record for the case that everything planned is built."""
        return {
            step.name: {"built": step.module is not None, "how": step.how, "remedy": step.remedy} for step in self.steps
        }

    def build(self, folder: Path) -> tuple[dict[str, Path], dict[str, record.Part]]:
        """Build in the folder; return the files by module, and the record. With `auto`, modules that fail are left out.

        Raises BuildFailed if a part that was asked for by name fails.
        """
        files, parts = {}, self.described()
        for step in self.steps:
            if step.module is None:
                continue
            module = step.module()
            try:
                files[step.name] = ninja_file.build(
                    module, self.compilers, folder / step.name, jobs(self.settings, module.gib_each)
                )
            except ninja_file.BuildFailed as error:
                if self.settings.parts != "auto":
                    raise
                log = folder / f"{step.name}.log"
                log.write_text(str(error))
                print(error)
                parts[step.name] = {
                    "built": False,
                    "how": f"compiling failed, see {log.name} or pip install -v",
                    "remedy": "set TSS_KERNELS_BUILD to cpu or cuda to see the compiler's errors",
                }
        return files, parts

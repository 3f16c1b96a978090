"""`python -m csrc.build`: builds modules outside an installation, for development and for tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from csrc.build import ninja_file, plan, settings
from csrc.build.install import Plan
from csrc.build.toolchain import Missing, find_cxx, jobs

VARIANTS = ("native", "cuda", "emulated", "native-checked", "emulated-checked")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m csrc.build", description=__doc__, epilog=settings.table())
    parser.add_argument("variant", choices=VARIANTS, help="-checked: with address and undefined-behaviour sanitizers")
    parser.add_argument("--out", type=Path, default=plan.ROOT / "build", help="folder for objects and modules")
    parser.add_argument("--verbose", action="store_true", help="print every command")
    arguments = parser.parse_args()
    try:
        print(built(arguments.variant, arguments.out, arguments.verbose))
    except (ninja_file.BuildFailed, settings.SettingError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def built(variant: str, out: Path, verbose: bool = False) -> Path:
    """Builds one variant and returns its file. Raises BuildFailed, SettingError."""
    asked = settings.read()
    if variant == "cuda":
        whole = Plan(asked._replace(parts="cuda"))
        module = next(step.module for step in whole.steps if step.name == "_cuda")
        assert module is not None
        return ninja_file.build(module(), whole.compilers, out / variant, jobs(asked, plan.GIB_OF_NVCC), verbose)
    cxx = find_cxx(asked)
    if isinstance(cxx, Missing):
        raise ninja_file.BuildFailed(f"{cxx.reason}. Remedy: {cxx.remedy}.")
    name, _, checked = variant.partition("-")
    module = {"native": plan.native, "emulated": plan.emulated}[name](bool(checked))
    return ninja_file.build(module, {"cxx": cxx.path}, out / variant, jobs(asked, module.gib_each), verbose)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m csrc.build`: builds modules outside an installation, for development and for tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from csrc.build import record, settings
from csrc.build.ninja_file import BuildFailed
from csrc.build.variants import ROOT, VARIANTS, built

STATUS = "status"  # what the installation built, in one line


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m csrc.build", description=__doc__, epilog=settings.table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "variant",
        choices=[*VARIANTS, STATUS],
        help="-checked: with address and undefined-behaviour sanitizers; -counted: a program for valgrind; "
        f"{STATUS}: what the installation built",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder for objects and modules")
    parser.add_argument("--verbose", action="store_true", help="print every command")
    arguments = parser.parse_args()
    if arguments.variant == STATUS:
        print(record.line(record.read(ROOT / "tss_kernels")))
        return 0
    try:
        print(built(arguments.variant, arguments.out, arguments.verbose))
    except (BuildFailed, settings.SettingError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

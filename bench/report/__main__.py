"""`python -m bench.report update|check|table|compare`: from result files to documents and terminals."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report.results import Unreadable, load


def _update(chosen: argparse.Namespace) -> int:
    from bench.report.documents import update

    print(*update(load(chosen.file)), sep="\n")
    return 0


def _check(chosen: argparse.Namespace) -> int:
    from bench.report.documents import differing

    wrong = differing()
    print(*wrong, sep="\n", end="\n" * bool(wrong), file=sys.stderr)
    return bool(wrong)


def _table(chosen: argparse.Namespace) -> int:
    from bench.report.tables import headlines, summary_table, tables, targets_table

    results = load(chosen.file)
    said = [results.conditions(), results.ceilings(), results.busy(), targets_table(results)]
    print(
        "\n\n".join(part for part in [*said, summary_table(headlines(results)), tables(results, chosen.groups)] if part)
    )
    return bool(results.failed)


def _compare(chosen: argparse.Namespace) -> int:
    from bench.report.compare import compare

    return compare(chosen.old, chosen.new)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("update", help="write the tables of docs and their figure from one file")
    one.add_argument("file", type=Path)
    one.set_defaults(run=_update)

    one = commands.add_parser("check", help="exit with 1 if documents or figure differ from their files")
    one.set_defaults(run=_check)

    one = commands.add_parser("table", help="Markdown tables of a file")
    one.add_argument("file", type=Path)
    one.add_argument("groups", nargs="*", metavar="GROUP", help="only these")
    one.set_defaults(run=_table)

    one = commands.add_parser("compare", help="two files side by side")
    one.add_argument("old", type=Path)
    one.add_argument("new", type=Path)
    one.set_defaults(run=_compare)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 1 if something differs or failed; 2 for invalid use, an unreadable file, or nothing to compare."""
    chosen = _parser().parse_args(arguments)
    try:
        return chosen.run(chosen)
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` closed the pipe: write nothing more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())

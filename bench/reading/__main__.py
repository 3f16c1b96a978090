"""`python -m bench.reading table|figures|document|compare`: what result files hold, for readers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.reading.files import ROOT, Unreadable, load


def _table(chosen: argparse.Namespace) -> int:
    from bench.reading.tables import tables

    print(tables(load(chosen.file), chosen.group))
    return 0


def _figures(chosen: argparse.Namespace) -> int:
    from bench.reading.figures import draw

    for path in draw(load(chosen.file), chosen.out, chosen.format, chosen.group):
        print(path)
    return 0


def _document(chosen: argparse.Namespace) -> int:
    from bench.reading.documents import differing, fill, named

    documents = [chosen.readme, *(chosen.docs or [ROOT / "docs/performance.md"])]
    if not named(documents, chosen.file):
        print("no section names this file: write <!-- measured:SELECTION FILE --> where it belongs", file=sys.stderr)
        return 1
    if not chosen.check:
        print("\n".join(fill(documents, chosen.file)))
        return 0
    wrong = differing(documents, chosen.file)
    if wrong:
        print("differs from what the result file gives; run without --check:\n" + "\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


def _compare(chosen: argparse.Namespace) -> int:
    from bench.reading.compare import compare, text

    comparison = compare(load(chosen.before), load(chosen.after), chosen.group)
    print(text(comparison))
    return 1 if chosen.fail_on_slower and comparison.slower() else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.reading", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    group = {"action": "append", "default": [], "metavar": "G", "help": "only this group; may be given several times"}

    one = commands.add_parser("table", help="Markdown tables, one line a case")
    one.add_argument("file", type=Path)
    one.add_argument("--group", **group)
    one.set_defaults(run=_table)

    one = commands.add_parser("figures", help="scaling curves, and an overview of all ratios")
    one.add_argument("file", type=Path)
    one.add_argument("--out", type=Path, default=ROOT / "docs/images", help="the folder (docs/images)")
    one.add_argument("--format", choices=("svg", "png"), default="svg")
    one.add_argument("--group", **group)
    one.set_defaults(run=_figures)

    one = commands.add_parser("document", help="fills what stands between <!-- measured:... --> markers")
    one.add_argument(
        "file", type=Path, nargs="?", help="for the markers that name it or none; without it all, by theirs"
    )
    one.add_argument("--readme", type=Path, default=ROOT / "README.md")
    one.add_argument("--docs", type=Path, action="append", help="other documents (docs/performance.md)")
    one.add_argument("--check", action="store_true", help="write nothing; 1 where a document differs, with its place")
    one.set_defaults(run=_document)

    one = commands.add_parser("compare", help="two files side by side")
    one.add_argument("before", type=Path, metavar="A")
    one.add_argument("after", type=Path, metavar="B")
    one.add_argument("--group", **group)
    one.add_argument("--fail-on-slower", action="store_true", help="1 where ours got slower beyond noise, or failed")
    one.set_defaults(run=_compare)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 for documents that differ and for what got slower; 2 for a wrong call or a file that cannot be read."""
    chosen = _parser().parse_args(arguments)
    try:
        return chosen.run(chosen)
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough; nothing more may be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())

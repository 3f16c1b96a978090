"""Make a data folder to choose settings on: a quarter of each task's training examples stands in for its test examples.

python scripts/hold_out.py DATA --to FOLDER

Test examples are left alone, so that settings chosen on FOLDER were not chosen on them.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path


def main() -> None:
    """Write train, validation and held-out examples of every task in DATA."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of <family>/<task>/*.jsonl")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    for path in sorted(arguments.data.glob("*/*/train.jsonl")):
        task = path.parent.relative_to(arguments.data)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        random.Random(str(task)).shuffle(lines)
        held = len(lines) // 4
        folder = arguments.to / task
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.jsonl").write_text("".join(lines[:held]), encoding="utf-8")
        (folder / "train.jsonl").write_text("".join(lines[held:]), encoding="utf-8")
        shutil.copyfile(path.with_name("validation.jsonl"), folder / "validation.jsonl")


if __name__ == "__main__":
    main()

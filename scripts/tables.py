#!/usr/bin/env python3
"""Rerun the tables of scores in the README: several seeds of a preset by several methods, mean and deviation.

    python scripts/tables.py demo --seeds 2021 2022 2023 2024 2025
    python scripts/tables.py mixed.quick --data DIR --seeds 2021 2022 2023
    python scripts/tables.py mixed.quick --data DIR --set backbone=DIR --name minilm

Each cell is one `tss run` in a folder below --out; finished ones are kept, an interrupted one goes on where it stopped.
The table is Markdown on standard output, computed from the run folders alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2021, 2022, 2023])
    parser.add_argument("--methods", nargs="+", default=["tss", "ncl"])
    parser.add_argument("--data")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the configuration")
    parser.add_argument("--name", help="folder below --out; the preset's name if left out")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"))
    parser.add_argument("--table-only", action="store_true", help="run nothing; print what is there")
    options = parser.parse_args()
    root = options.out / (options.name or options.preset)
    if not options.table_only:
        for seed in options.seeds:
            for method in options.methods:
                run(options, method, seed, root / f"{method}-{seed}")
    print(table(root, options.methods, options.seeds))
    return 0


def run(options: argparse.Namespace, method: str, seed: int, folder: Path) -> None:
    """One cell, unless it is finished."""
    if (folder / "matrix.json").exists() and json.loads((folder / "matrix.json").read_text())["summary"]["average"]:
        return
    command = [sys.executable, "-m", "tss.cli.main", "run", options.preset, "--method", method, "--out", str(folder)]
    command += ["--data", options.data] if options.data else []
    command += [f"seed={seed}", *options.set]
    command += ["--resume"] if (folder / "state").exists() else []
    print(" ".join(command[3:]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def table(root: Path, methods: list[str], seeds: list[int]) -> str:
    """Rows: method and what it reached, mean ± deviation over the seeds that are finished."""
    lines = ["| method | seeds | when learned | at the end | forgetting | minutes | by family, when learned |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|")
    for method in methods:
        cells = [read(root / f"{method}-{seed}") for seed in seeds if (root / f"{method}-{seed}/matrix.json").exists()]
        if not cells:
            continue
        families = {name: spread([cell["families"][name] for cell in cells]) for name in cells[0]["families"]}
        values = [spread([cell[key] for cell in cells]) for key in ("learning", "average", "forgetting", "minutes")]
        by_family = ", ".join(f"{name} {value}" for name, value in families.items())
        lines.append(f"| {method} | {len(cells)} | {' | '.join(values)} | {by_family} |")
    return "\n".join(lines)


def read(folder: Path) -> dict[str, Any]:
    """What a finished run reached."""
    content = json.loads((folder / "matrix.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    own: dict[str, list[float]] = {}
    for i, task in enumerate(content["tasks"]):
        own.setdefault(task.split("/")[0], []).append(content["matrix"][i][i])
    return {
        **{key: content["summary"][key] for key in ("learning", "average", "forgetting")},
        "families": {name: statistics.mean(values) for name, values in own.items()},
        "minutes": next(e["seconds"] for e in reversed(events) if e["event"] == "run_end") / 60,
    }


def spread(values: list[float]) -> str:
    """Mean, and the deviation of a sample where there is one."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    sys.exit(main())

"""Attack runs and commands from outside: kills, full disks, two starts at once, damaged files, hostile inputs.

`python -m scripts.attack FOLDER` (Linux, a C compiler) takes an hour or so on one core and writes FOLDER/attack.json;
each part can be asked for alone, and smaller.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.attack import damage, hostile, interruptions
from scripts.attack.scene import Scene

PARTS = ("operations", "kills", "disks", "real-disks", "starts", "hostile", "damage")


def main() -> int:
    """Run the requested parts; return 1 if any attack succeeded."""
    parser = argparse.ArgumentParser(prog="python -m scripts.attack", description=__doc__)
    parser.add_argument("folder", type=Path, help="for everything; it is emptied first")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--every", type=int, default=1, help="kill at every so many operations on files")
    parser.add_argument("--first", type=int, default=1, help="operation to start at")
    parser.add_argument("--kills", type=int, default=100, help="random kills")
    parser.add_argument("--disks", type=int, default=20, help="full disks, and real ones of so many sizes")
    parser.add_argument("--damages", type=int, default=200, help="damaged files")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with Scene(args.folder) as scene:
        expected, operations, seconds = interruptions.reference(scene)
        places = range(1, operations + 1)
        spread = places[:: max(1, operations // args.disks)][: args.disks]
        chosen = places[args.first - 1 :: args.every]
        attacks: dict[str, Callable[[], tuple[Any, ...]]] = {
            "operations": lambda: interruptions.kill_at_operations(scene, expected, chosen),
            "kills": lambda: interruptions.kill_at_random(scene, expected, args.kills, seconds, args.seed),
            "disks": lambda: interruptions.fill_disks(scene, expected, spread),
            "real-disks": lambda: interruptions.fill_real_disks(scene, expected, args.disks),
            "starts": lambda: interruptions.two_starts(scene, expected, [1, 2, 3, *places[8 :: operations // 7]]),
            "hostile": lambda: hostile.hostile_inputs(scene),
            "damage": lambda: damage.damage_files(scene, args.damages, args.seed),
        }
        for part in args.parts:
            started = time.monotonic()
            try:
                *counts, failures = attacks[part]()
            except interruptions.Unmountable as error:
                found[part] = {"skipped": str(error), "failures": []}
                print(f"{part}: skipped, {error}", flush=True)
                continue
            found[part] = {"counts": counts, "seconds": round(time.monotonic() - started), "failures": failures}
            print(f"{part}: {counts}, {len(failures)} failures, {found[part]['seconds']} s", flush=True)
            for failure in failures:
                print(f"  {failure}", flush=True)
            (scene.folder / "attack.json").write_text(json.dumps({"operations": operations, **found}, indent=1))
    return int(any(part["failures"] for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())

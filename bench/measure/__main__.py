"""`python -m bench.measure GROUP ...`: checks and times groups of operations, and writes every piece at once."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.measure.case import COMPARED
from bench.measure.cases import GROUPS, MODELS
from bench.measure.cases.sizes import Sizes, published, tiny
from bench.measure.ceilings import measure_ceilings, read_ceilings
from bench.measure.proposals import lines, proposal
from bench.measure.report import Report, records_of, table
from bench.measure.runner import Budget, DeviceLost, run_cases
from bench.measure.session import PART, seconds_for
from bench.measure.timing import Timer, timer_for
from tss_kernels.backends.registry import INSTALLED, why_not

NAMES = ("ceilings", *GROUPS)
MISSING, LOST = 3, 4  # exit codes


class Missing(RuntimeError):
    """Something that a group needs is not on this machine."""


def _measure_group(name: str, sizes: Sizes, timer: Timer, budget: Budget, report: Report, go_on: bool) -> None:
    part = PART.format(name)
    if name == "ceilings":
        report.update(part, result=measure_ceilings(timer, sizes.tiny))
        return
    if name in MODELS and importlib.util.find_spec("transformers") is None:
        raise Missing("the package transformers is not installed: pip install transformers")
    ceilings = read_ceilings(report.part(PART.format("ceilings")).get("result"))
    if name == "dispatch":
        _check_backends(timer.device)
    budget = budget._replace(per_variant=seconds_for(name, sizes))

    def keep(records: list[dict[str, Any]]) -> None:
        report.update(part, result={"cases": records})

    known = (report.part(part).get("result") or {}).get("cases", []) if go_on else []
    records = run_cases(list(GROUPS[name](sizes)), timer, budget, ceilings, keep, known)
    if name == "dispatch":
        proposed = proposal(list(records_of(report.read())), timer.device, _basis(timer.device))
        report.update(part, result={"cases": records, "proposal": proposed, "said": lines(proposed)})


def _basis(device: torch.device) -> str:
    """On what, when and with which versions something was measured."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, for tests"
    found: dict[str, str] = {"torch": str(torch.__version__)}
    if INSTALLED["triton"]:
        found["triton"] = importlib.metadata.version("triton")
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return f"on {kind}, {date.today()}, {versions}"


def _check_backends(device: torch.device) -> None:
    obstacles = [why_not(backend, "gated_linear", device, torch.float32) for backend in COMPARED]
    if all(obstacle is not None for obstacle in obstacles):
        raise Missing("; ".join(f"{obstacle.reason}; {obstacle.remedy}" for obstacle in obstacles if obstacle))


def plan(names: Sequence[str], sizes: Sizes) -> list[str]:
    """What would be measured, one line a case; nothing is drawn or compiled."""
    planned = []
    for name in names:
        if name == "ceilings":
            planned.append("measure.ceilings: copy bandwidth, products in three dtypes, smallest kernel")
        else:
            for case in GROUPS[name](sizes):
                planned.append(f"measure.{name}: {case}: {', '.join(variant.name for variant in case.variants)}")
    return planned


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.measure", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(NAMES)}; all if none is named")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=600.0, help="start nothing more after so many seconds")
    parser.add_argument("--out", type=Path, default=None, help="the JSON file (made, or added to)")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="only what the file does not have yet")
    parser.add_argument("--list", action="store_true", help="say what would be measured")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.groups if name not in NAMES]
    if unknown:
        parser.error(f"no group {', '.join(unknown)}: there are {', '.join(NAMES)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """0; MISSING where a group lacks something, which is said; LOST where another process has to go on."""
    start, chosen = time.monotonic(), _arguments(arguments)
    names, device = chosen.groups or NAMES, torch.device(chosen.device)
    sizes = tiny(device) if chosen.tiny else published(device)
    if chosen.list:
        print("\n".join(plan(names, sizes)))
        return 0
    report = Report(chosen.out or Path(f"bench/results/measured-{date.today()}.json"))
    budget = Budget(0.0, start + chosen.seconds)
    timer, missing = timer_for(device), False
    for name in names:
        try:
            _measure_group(name, sizes, timer, budget, report, chosen.go_on)
        except Missing as error:
            print(f"measure.{name}: {error}", file=sys.stderr)
            missing = True
            continue
        except DeviceLost as error:
            print(f"measure.{name}: {error}", file=sys.stderr)
            return LOST
        cases = report.part(PART.format(name)).get("result", {}).get("cases", [])
        print(f"measure.{name}\n{table(cases)}" if cases else f"measure.{name}: done", flush=True)
    return MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(main())

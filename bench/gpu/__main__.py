"""`scripts/gpu.sh`: everything that needs a GPU, the most important first, each part within its time.

Two calls of seven minutes do all of it: the second one, with --resume, does what the file does not have yet of the same
sources. Without a GPU it says what it would do; if there is one that torch cannot use, it says why and fails. Results
go to one JSON file, written anew after every part.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from bench.core.machine import ROOT, gpu_state, listed_gpus, sources_digest
from bench.gpu.build import VARIABLE, architectures
from bench.gpu.parts import PARTS, Outcome, Part, Run, choose
from bench.gpu.predicted import predictions
from bench.gpu.result_file import ResultFile

LIMIT = 400  # seconds of one call: with the time to stop its last part, it ends within seven minutes
FINISHED = ("done", "failed", "skipped")
READY_MADE = """\
Where the part build cannot compile (no nvcc, or one that is too old), it uses a module that was built elsewhere. On a
machine with nvcc and the same Python (3.12, say), from the same sources:
  TSS_KERNELS_ARCHITECTURES=90a python3.12 -m csrc.build cuda    (prints the file; needs pybind11 and ninja)
Copy the file it prints to tss_kernels/ under the same name, _cuda.cpython-312-x86_64-linux-gnu.so. The part tries it on
this machine's GPUs before anything is measured, and renames it if it fails there. TSS_KERNELS_BUILD=off uses it even
where there is an nvcc.
"""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts: " + " ".join(part.name for part in PARTS) + f"\n\n{READY_MADE}",
    )  # fmt: skip
    parser.add_argument("--parts", default="", metavar="A,B", help="run only these; a group's name means all of it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to add to (bench/results/<gpu>-<date>.json)")
    parser.add_argument("--resume", action="store_true", help="skip parts that the file has for these sources")
    parser.add_argument("--seconds", type=float, default=LIMIT, help=f"time limit for everything ({LIMIT})")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: check that it runs, at tiny sizes"
    )
    chosen = parser.parse_args(arguments)
    try:
        chosen.parts = choose([name for name in chosen.parts.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    return chosen


def _probe() -> dict[str, Any]:
    """Return the output of `bench.core.machine`, run as a separate process: this one never touches the GPU."""
    command = [sys.executable, "-m", "bench.core.machine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"the machine cannot be described:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compiled_for(machine: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable to compile only for this machine's GPUs; empty if the environment sets it already."""
    found = architectures(gpu["capability"] for gpu in machine["gpus"])
    return {VARIABLE: found} if found and VARIABLE not in os.environ else {}


def _describe(machine: Mapping[str, Any]) -> str:
    packages, tools = machine["packages"], machine["tools"]
    gpus = [f"{gpu['name']} ({gpu['memory'] / 2**30:.0f} GiB)" for gpu in machine["gpus"]]
    missing = [name for name, found in packages.items() if found is None]
    return "\n".join([
        f"python {machine['python']}, torch {packages['torch']} (CUDA {machine['cuda']}), triton {packages['triton']}",
        f"GPU: {', '.join(gpus) or 'none: ' + str(machine['why_no_gpu'])}",
        *([f"nvidia-smi: {line}" for line in (gpu_state() or "").splitlines()[1:]]),
        *(f"{tool}: {place or 'not found'}" for tool, place in tools.items()),
        f"not installed: {', '.join(missing) or 'nothing that is looked for'}",
    ])  # fmt: skip


def plan(parts: Sequence[Part], device: str) -> str:
    """Describe what would run: parts with their limits, then every case for this device with its competitors."""
    lines = [f"{'part':<22}{'seconds':>8}  does"]
    lines += [f"{part.name:<22}{part.seconds:>8}  {part.does}" for part in parts]
    if importlib.util.find_spec("torch") is None:
        return "\n".join([*lines, "", "torch is not installed here, so cases cannot be listed"])
    import torch

    from bench.cases import GROUPS
    from bench.cases.sizes import published, tiny

    sizes = published(torch.device(device)) if device == "cuda" else tiny(torch.device(device))
    for group in (group for part in parts for group in part.groups):
        lines.append("")
        for case in GROUPS[group](sizes):
            lines.append(f"{group}: {case}: {' | '.join(variant.name for variant in case.variants)}")
    return "\n".join(lines)


def _run_part(part: Part, run: Run, seconds: float, stamp: Mapping[str, Any]) -> Outcome:
    """Run one part and save its outcome, whatever ends it."""
    start, began = time.monotonic(), datetime.now().isoformat(timespec="seconds")

    def keep(status: str, reason: str) -> None:
        spent = round(time.monotonic() - start, 1)
        run.results.set_part(part.name, status=status, reason=reason, started=began, seconds=spent, **stamp)

    keep("running", "")
    try:
        outcome = part.run(run, seconds)
    except (KeyboardInterrupt, SystemExit):
        keep("stopped", "interrupted")
        raise
    except Exception as error:  # an error in this part's own code must not stop the others
        outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    keep(*outcome)
    return outcome


def _is_kept(part: Part, run: Run, stamp: Mapping[str, Any]) -> bool:
    """Return whether the file has the part's results for the same sources."""
    before = run.results.part(part.name)
    return not part.always and before.get("status") in FINISHED and before.get("sources") == stamp["sources"]


def run_parts(parts: Sequence[Part], run: Run, end: float, resume: bool, stamp: Mapping[str, Any]) -> list[str]:
    """Run parts until `end` (time.monotonic); return the names of those that failed. stamp: saved with every part.

    Time that earlier parts did not use goes to the next part, if all later ones still get theirs.
    """
    failed, begun = [], False
    left_out = [part for part in parts if resume and _is_kept(part, run, stamp)]
    for part in left_out:
        status, reason = (run.results.part(part.name)[name] for name in ("status", "reason"))
        print(f"{part.name:<22}kept     {status}: {reason.partition(chr(10))[0]}", flush=True)
        failed += [part.name] if status == "failed" else []
    todo = [part for part in parts if part not in left_out]
    for place, part in enumerate(todo):
        left = end - time.monotonic()
        if left < part.seconds and begun:  # a part that might not finish is left to the next call
            if not run.results.part(part.name):
                run.results.set_part(part.name, status="not run", reason="the time was up", **stamp)
            print(f"{part.name:<22}not run  needs up to {part.seconds} s: call again with --resume", flush=True)
            continue
        spare = left - sum(later.seconds for later in todo[place:])
        limit, begun = min(left, part.seconds + max(0.0, spare)), begun or not part.always
        print(f"{part.name:<22}...      {part.does} (at most {limit:.0f} s)", flush=True)
        start = time.monotonic()
        outcome = _run_part(part, run, limit, stamp)
        print(f"{part.name:<22}{outcome.status:<8} {time.monotonic() - start:.0f} s: {outcome.reason}", flush=True)
        failed += [part.name] if outcome.status == "failed" else []
    return failed


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _out(machine: Mapping[str, Any], device: str) -> Path:
    """Return the file for this machine's results of today."""
    name = machine["gpus"][0]["name"] if device == "cuda" else f"{machine['processor']}-tiny"
    return ROOT / "bench" / "results" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date.today()}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if nothing failed, 1 if something did or torch cannot use the GPU that is there, 2 for invalid use."""
    start, chosen = time.monotonic(), _arguments(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    machine = _probe()
    print(_describe(machine), flush=True)
    if chosen.dry_run or (chosen.device == "cuda" and not machine["gpus"]):
        print(f"\nNothing is run{'' if chosen.dry_run else ': there is no GPU to use'}. Otherwise it would be:\n")
        print(plan(chosen.parts, chosen.device))
        unused = listed_gpus() if chosen.device == "cuda" and not machine["gpus"] else []
        if unused:
            said = f"nvidia-smi lists {', '.join(unused)}, but torch can use none: {machine['why_no_gpu']}"
            print(f"\n{'' if chosen.dry_run else 'FAILED: '}{said}")
        return 1 if unused and not chosen.dry_run else 0
    try:
        results = ResultFile(chosen.out or _out(machine, chosen.device))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.device == "cuda":
        results.content["predicted"] = predictions(f"sm_{machine['gpus'][0]['capability'].replace('.', '')}")
    run = Run(chosen.device, results, machine, compiled_for(machine))
    stamp = {"sources": sources_digest()}
    print(f"results: {results.path}\n", flush=True)
    failed = run_parts(chosen.parts, run, start + chosen.seconds, chosen.resume, stamp)
    print(f"\n{time.monotonic() - start:.0f} s; results: {results.path} (python -m bench.report table FILE), output of "
          f"the parts: {results.path.with_suffix('.log')}")  # fmt: skip
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

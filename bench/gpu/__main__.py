"""`scripts/gpu.sh`: everything that needs a GPU, each part within its time, every result kept at once.

Without a GPU it says what it would do. Results go to one JSON file, to which later calls add.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from bench.gpu.build import VARIABLE, architectures
from bench.gpu.context import Context, Outcome
from bench.gpu.parts import PARTS, Part, choose
from bench.gpu.processes import run_child
from bench.measure.environment import file_name
from bench.measure.report import FINISHED, Report, failures_of, records_of, table
from bench.measure.revision import ROOT, revision, sources

LIMIT = 530  # seconds of a whole run, so that it ends well within ten minutes
LEAST = 5.0  # seconds: with less left, no part begins
SYMBOLS = {"done": "ok", "failed": "FAILED", "skipped": "skipped", "stopped": "stopped", "not run": "not run"}


READY_MADE = """\
Where the part build cannot compile (no nvcc, or one that is too old), it takes a module that was carried ready-made. On
a machine with nvcc and the same Python (3.12, say), from the same sources:
  TSS_KERNELS_ARCHITECTURES=90a python3.12 -m csrc.build cuda    (prints the file; needs pybind11 and ninja)
Put the file it prints into tss_kernels/ under the name it has, _cuda.cpython-312-x86_64-linux-gnu.so. The part tries it
on this machine's GPUs before anything is measured. TSS_KERNELS_BUILD=off takes it even where nvcc is.
"""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts: env " + " ".join(part.name for part in PARTS) + f"\n\n{READY_MADE}",
    )  # fmt: skip
    parser.add_argument("--parts", default="", metavar="A,B", help="these alone; a group's name means all of it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="of the JSON file")
    parser.add_argument("--resume", action="store_true", help="leave out parts that the file has of these sources")
    parser.add_argument("--seconds", type=float, default=LIMIT, help=f"for everything ({LIMIT})")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="a folder of wheels to use, installed nowhere")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: see that it runs, at tiny sizes"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, whose times mean nothing")
    chosen = parser.parse_args(arguments)
    chosen.tiny = chosen.tiny or chosen.device == "cpu"
    try:
        chosen.parts = choose([name for name in chosen.parts.split(",") if name] if chosen.parts != "env" else ["env"])
    except ValueError as error:
        parser.error(str(error))
    return chosen


def _probe(python: str, site: Path | None) -> dict[str, Any]:
    """What `bench.measure.environment` says, in a process of its own: this one never touches the GPU."""
    empty = Context(python, "cuda", False, Report(Path("unused")), {}, site)
    done = subprocess.run(
        [python, "-m", "bench.measure.environment"],
        capture_output=True,
        text=True,
        timeout=120,
        env=empty.environment(),
    )
    if done.returncode != 0:
        raise RuntimeError(f"the environment cannot be read:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _unpack_wheels(python: str, wheels: Path, into: Path, log: Path) -> str | None:
    """Puts the wheels of a folder into another, without a network; returns what went wrong."""
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        return f"no wheels in {wheels}"
    command = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target"]
    done = run_child([*command, str(into), *files], 60, Context(python, "", False, Report(log), {}).environment(), log)
    return None if done.code == 0 else f"pip ended with {done.code}: {done.tail(3)}"


def _compiled_for(machine: Mapping[str, Any]) -> dict[str, str]:
    """What the parts' environment says of compiling: for this machine's GPUs alone, unless the caller's says it."""
    found = architectures(gpu["capability"] for gpu in machine["gpus"])
    return {VARIABLE: found} if found and VARIABLE not in os.environ else {}


def _describe(machine: Mapping[str, Any]) -> str:
    packages = machine["packages"]
    missing = [name for name, found in packages.items() if found is None]
    gpus = [f"{gpu['name']} ({gpu['memory'] / 2**30:.0f} GiB)" for gpu in machine["gpus"]]
    lines = [
        f"python {machine['python']}, torch {packages['torch']} (CUDA {machine['cuda']}), triton {packages['triton']}",
        f"GPU: {', '.join(gpus) or 'none: ' + str(machine['why_no_gpu'])}",
        *([f"nvidia-smi: {line}" for line in (machine["nvidia_smi"] or "").splitlines()[1:]]),
        *(f"{tool}: {machine['tools'][tool] or 'not found'}" for tool in ("compute-sanitizer", "nvcc")),
        f"not installed: {', '.join(missing) or 'nothing that is looked for'}",
    ]
    return "\n".join(lines)


def _plan(chosen: argparse.Namespace, machine: Mapping[str, Any]) -> str:
    """What would be done: parts with their limits, then every shape and every rival."""
    lines = [f"{'part':<22}{'seconds':>8}  does", f"{'env':<22}{'':>8}  what this machine has"]
    lines += [f"{part.name:<22}{part.seconds:>8}  {part.does}" for part in chosen.parts]
    groups = [part.name.removeprefix("measure.") for part in chosen.parts if part.name.startswith("measure.")]
    if groups and machine["packages"]["torch"] is not None:
        context = Context(sys.executable, "cpu", False, Report(Path("unused")), machine)
        listed = subprocess.run(
            [sys.executable, "-m", "bench.measure", "--list", *groups], capture_output=True, text=True,
            env=context.environment(),
        )  # fmt: skip
        lines += ["", listed.stdout.strip() or listed.stderr.strip()]
    tests = sorted((ROOT / "tests" / "kernels" / "gpu").glob("test_*.py"))
    if any(part.name == "tests.gpu" for part in chosen.parts):
        lines += ["", *(f"tests.gpu: {path.relative_to(ROOT)}" for path in tests)]
    return "\n".join(lines)


def _limit(part: Part, later: Sequence[Part], left: float) -> float:
    """Seconds for a part: its own, and what is left over once the later ones have theirs."""
    spare = left - part.seconds - sum(other.seconds for other in later)
    return min(left, part.seconds + max(0.0, spare))


def _run_part(part: Part, context: Context, seconds: float, stamp: Mapping[str, Any]) -> Outcome:
    """Runs one part and keeps its outcome, whatever ends it."""
    start, report = time.monotonic(), context.report
    began = {"status": "running", "started": datetime.now().isoformat(timespec="seconds"), **stamp}
    report.replace(part.name, began)
    try:
        outcome = part.run(context, seconds)
    except (KeyboardInterrupt, SystemExit):
        report.update(part.name, status="stopped", reason="interrupted", seconds=round(time.monotonic() - start, 1))
        raise
    except Exception as error:  # a fault in this part's own code must not cost the others
        outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    values = {} if outcome.result is None else {"result": outcome.result}
    report.update(
        part.name, status=outcome.status, reason=outcome.reason, seconds=round(time.monotonic() - start, 1), **values
    )
    return outcome


def run_parts(
    parts: Sequence[Part], context: Context, end: float, resume: bool = False, stamp: Mapping[str, Any] | None = None
) -> list[str]:
    """Runs parts until `end` (time.monotonic); returns the names of those that failed. stamp: kept with every part."""
    stamp, failed = dict(stamp or {}), []
    for position, part in enumerate(parts):
        before = context.report.part(part.name)
        finished = before.get("status") in FINISHED and before.get("sources") == stamp.get("sources")
        if resume and finished and not part.always:
            print(f"{part.name:<22}kept     {before['status']}: {before['reason'].splitlines()[0]}", flush=True)
            failed += [part.name] if before["status"] == "failed" else []
            continue
        left = end - time.monotonic()
        if left < LEAST:
            if not before:
                context.report.replace(part.name, {"status": "not run", "reason": "the time was up", **stamp})
            print(f"{part.name:<22}not run  the time was up: call again with --resume", flush=True)
            continue
        limit = _limit(part, parts[position + 1 :], left)
        print(f"{part.name:<22}...      {part.does} (at most {limit:.0f} s)", flush=True)
        outcome = _run_part(part, context, limit, stamp)
        seconds = context.report.part(part.name)["seconds"]
        print(f"{part.name:<22}{SYMBOLS[outcome.status]:<8} {seconds:.0f} s: {outcome.reason}", flush=True)
        if outcome.status == "failed":
            failed.append(part.name)
    return failed


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _closing(report: Report) -> str:
    """The table of all measurements in the file, after what makes them doubtful."""
    content = report.read()
    lines = [""]
    for name, part in content["parts"].items():
        for test, reason in (part.get("result") or {}).get("failed", {}).items():
            lines.append(f"{name} FAILED {test}: {reason.splitlines()[0] if reason else ''}"[:200])
    lines += [f"check FAILED, no time: {line}"[:200] for line in failures_of(content)]
    records = list(records_of(content))
    measured = [record for record in records if not record["operation"].startswith("dispatch")]
    if measured:
        lines.append(table(measured))
    return "\n".join(lines + ((content["parts"].get("measure.dispatch", {}).get("result") or {}).get("said") or []))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where nothing failed, 1 where something did, 2 for a wrong call."""
    start, chosen = time.monotonic(), _arguments(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    scratch = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    try:
        site, problem = None, None
        if chosen.wheels is not None:
            site = scratch / "site"
            problem = _unpack_wheels(sys.executable, chosen.wheels, site, scratch / "wheels.log")
            site = site if site.exists() else None
        machine = _probe(sys.executable, site)
        print(_describe(machine), flush=True)
        if problem is not None:
            print(f"wheels: {problem}")
        if chosen.dry_run or (chosen.device == "cuda" and not machine["gpus"]):
            print(f"\nNothing is run{'' if chosen.dry_run else ': there is no GPU to use'}. On a GPU it would be:\n")
            print(_plan(chosen, machine))
            return 0
        report = Report(chosen.out / file_name(machine, chosen.device, chosen.tiny))
        commit, changed = revision()
        stamp = {
            "revision": commit, "uncommitted_changes": changed, "sources": sources(), "tiny": chosen.tiny,
            **{name: machine["packages"][name] for name in ("torch", "triton")},
        }  # fmt: skip
        report.set_machine({**machine, "device": chosen.device})
        context = Context(sys.executable, chosen.device, chosen.tiny, report, machine, site, _compiled_for(machine))
        print(f"results: {report.path}\n", flush=True)
        failed = run_parts(chosen.parts, context, start + chosen.seconds, chosen.resume, stamp)
        print(_closing(report))
        print(f"\n{time.monotonic() - start:.0f} s; results: {report.path}, output of the parts: {context.log}")
        if failed:
            print(f"FAILED: {', '.join(failed)}")
        return 1 if failed else 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

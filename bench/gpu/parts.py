"""The parts of a run, in order of importance; a new one is one more line in `PARTS`."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.gpu import suite
from bench.gpu.context import Context, Outcome
from bench.gpu.progress import VARIABLE
from bench.measure.revision import ROOT

KERNEL_TESTS = ROOT / "tests" / "kernels"
GPU_TESTS = KERNEL_TESTS / "gpu"
MISSING, LOST = 3, 4  # exit codes of bench.measure, which cannot be imported without torch
SANITIZER_FOUND = 86  # compute-sanitizer's exit code for a finding, which nothing else here uses


@dataclass(frozen=True)
class Part:
    """One piece of a run: its name, its time limit in seconds (longer where others leave time over), what it does, and
    the function that does it within so many seconds. always: what it makes is not in the results' file, so a run that
    goes on does it again. named: it runs only where its name is given, since all parts together have nine minutes."""

    name: str
    seconds: int
    does: str
    run: Callable[[Context, float], Outcome]
    always: bool = False
    named: bool = False


def _build(context: Context, seconds: float) -> Outcome:
    if context.device != "cuda":
        return Outcome("skipped", "compiled for the GPU of the machine; on a CPU the installation compiles")
    start = time.monotonic()
    finished = context.run([context.python, "-m", "bench.gpu.build"], seconds)
    if finished.code is None:
        return Outcome("stopped", "stopped at its time limit; a further call compiles what is left: --resume")
    if finished.code != 0:
        return Outcome("failed", f"ended with {finished.code}\n{finished.tail()}")
    modules = json.loads(finished.output.splitlines()[-1])
    said = "; ".join(f"{name} {one['status']} ({one['reason'].splitlines()[0]})" for name, one in modules.items())
    numbers = {"modules": modules, "kernels": None}
    errors = [one["reason"] for one in modules.values() if one["status"] == "failed"]
    if errors:
        return Outcome("failed", "\n".join([said, *errors])[:8000], numbers)
    checked = context.run([context.python, "-m", "bench.gpu.build", "--check"], seconds - (time.monotonic() - start))
    if checked.code != 0:
        why = "not finished in time" if checked.code is None else checked.tail()
        return Outcome("failed", f"{said}; but what lies in tss_kernels does not run here: {why}", numbers)
    numbers["kernels"] = context.run([context.python, "-m", "tss_kernels"], 30).output
    return Outcome("skipped" if modules["_cuda"]["status"] == "missing" else "done", said, numbers)


def _tests(folder: Path, context: Context, seconds: float) -> Outcome:
    if context.device != "cuda":
        return Outcome("skipped", "the tests of the kernels run here as they do everywhere: pytest tests/kernels")
    if suite.version("pytest") is None and not (context.site and (context.site / "pytest").exists()):
        return Outcome("skipped", "the package pytest is not installed; carry its wheel and name its folder: --wheels")
    search = [str(context.site)] if context.site else []
    missing = suite.cannot_run(folder, search)
    ignored = list(missing)
    if folder == KERNEL_TESTS:
        ignored.append(GPU_TESTS)  # a part of its own
        missing = {file: name for file, name in missing.items() if GPU_TESTS not in file.parents}
    command = suite.command(context.python, folder, ignored, parallel=folder != GPU_TESTS)
    with TemporaryDirectory() as scratch:
        progress = Path(scratch) / "progress.jsonl"
        finished = context.run(command, seconds, **{VARIABLE: str(progress)})
        status, reason, numbers = suite.result(progress, finished, missing)
    return Outcome(status, reason, numbers)  # type: ignore[arg-type]


def _sanitize(tool: str, context: Context, seconds: float) -> Outcome:
    if context.device != "cuda":
        return Outcome("skipped", "compute-sanitizer watches GPUs")
    sanitizer = context.machine["tools"]["compute-sanitizer"]
    if sanitizer is None:
        return Outcome("skipped", "compute-sanitizer was not found, on the PATH or in CUDA's folders")
    command = [
        sanitizer, "--tool", tool, "--error-exitcode", str(SANITIZER_FOUND), "--report-api-errors", "no",
        "--print-limit", "20", context.python, "-m", "bench.gpu.each_op",
    ]  # fmt: skip
    # Every tensor an allocation of its own: inside a cached block an access past a tensor's end is not noticed.
    finished = context.run(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    ran = re.search(r"^(\d+) calls ran$", finished.output, re.MULTILINE)
    summary = re.search(r"(ERROR|RACECHECK) SUMMARY: .*", finished.output)
    # Whose kernels were found at fault: ours, or those of PyTorch and its libraries.
    kernels = Counter(name.strip()[:200] for name in re.findall(r"^=+ +at (.+?)(?:\+0x\w+.*)?$", finished.output, re.M))
    numbers = {
        "calls": int(ran[1]) if ran else None, "summary": summary[0] if summary else None, "exit": finished.code,
        "kernels": dict(kernels.most_common(20)),
        "backends": re.findall(r"^(?:triton|cuda): .*", finished.output, re.MULTILINE),
    }  # fmt: skip
    if finished.code is None and not kernels:
        after = "; ".join(["nothing found", *numbers["backends"]])
        return Outcome("stopped", f"stopped at its time limit; until then {after}", numbers)
    if finished.code == 0 and ran and summary:
        return Outcome("done", f"{summary[0]} in {ran[1]} calls", numbers)
    reason = summary[0] if summary else f"ended with {finished.code}"
    named = "".join(f"\n{count} in {name}" for name, count in kernels.most_common(5))
    return Outcome("failed", f"{reason}{named}\n{finished.tail()}", numbers | {"output": finished.output[:20000]})


def _measure(group: str, context: Context, seconds: float) -> Outcome:
    command = [
        context.python, "-m", "bench.measure", group, "--device", context.device,
        "--seconds", str(max(seconds - 8, 1)), "--out", str(context.report.path), *(["--tiny"] if context.tiny else []),
    ]  # fmt: skip
    end = time.monotonic() + seconds
    finished = context.run(command, seconds)
    while finished.code == LOST and end - time.monotonic() > 20:  # the failed variant is in the file: after it
        finished = context.run([*command, "--continue"], end - time.monotonic())
    cases = (context.report.part(f"measure.{group}").get("result") or {}).get("cases", [])
    variants = [variant for case in cases for variant in case["variants"].values()]
    timed = sum("median_us" in variant for variant in variants)
    said = f"{timed} of {len(variants)} timings" if cases else "measured"
    if finished.code is None:
        return Outcome("stopped", f"{said}; stopped at its time limit")
    if finished.code == MISSING:
        return Outcome("skipped", finished.tail(1))
    wrong = sum("failed" in variant for variant in variants)
    if finished.code != 0 or wrong:
        return Outcome("failed", f"{said}, {wrong} failed" + (f"\n{finished.tail()}" if finished.code else ""))
    if any(variant.get("skipped") == "the time was up" for variant in variants):
        return Outcome("stopped", f"{said}; the time was up")
    return Outcome("done", said)


def _measured(group: str, seconds: int, does: str, *, named: bool = False) -> Part:
    return Part(f"measure.{group}", seconds, does, partial(_measure, group), named=named)


PARTS: tuple[Part, ...] = (
    Part("build", 90, "compiles csrc for this GPU alone, or tries what was carried ready-made", _build, always=True),
    Part("tests.gpu", 70, "tests/kernels/gpu: what only a GPU can show", partial(_tests, GPU_TESTS)),
    Part("tests.kernels", 60, "tests/kernels, every backend there is", partial(_tests, KERNEL_TESTS)),
    _measured("ceilings", 10, "copy bandwidth, matrix rates and the smallest kernel of this machine"),
    _measured("gated_linear", 45, "forward, dX, dS, forward and backward"),
    _measured("layers", 15, "GatedAdapterLinear in training and in inference"),
    _measured("adamw", 25, "soft_masked_adamw_ at 3 M and 100 M scores"),
    _measured("gated_adapter", 40, "forward, forward and backward"),
    _measured("step", 40, "a BART-Large training step"),
    Part("sanitize.memcheck", 30, "compute-sanitizer: accesses out of bounds", partial(_sanitize, "memcheck")),
    Part("sanitize.racecheck", 20, "compute-sanitizer: races in shared memory", partial(_sanitize, "racecheck")),
    Part("sanitize.initcheck", 15, "compute-sanitizer: reads of memory never written", partial(_sanitize, "initcheck")),
    _measured("packed_linear", 15, "the forward pass of sealed tasks"),
    _measured("gates", 10, "pack_gates, unpack_gates"),
    _measured("importance", 10, "normalize_importance, accumulate_importance_"),
    _measured("dispatch", 35, "every strategy and tiling at every class of shapes; proposes the tables' entries"),
    _measured("epoch", 40, "the importance pass against a training epoch", named=True),
    _measured("scaling", 150, "curves along rows, features, bottleneck and number of tensors", named=True),
    _measured("tasks", 150, "switching, learning, saving and loading, up to 1,000 tasks", named=True),
    _measured("calls", 20, "operations on tiny tensors: the way to the arithmetic", named=True),
    _measured("start", 90, "imports and first calls", named=True),
)


def choose(names: Sequence[str], parts: Sequence[Part] = PARTS) -> list[Part]:
    """The parts of these names or groups of names ("measure", "measure.adamw"; "adamw" for short), in their order.

    Raises ValueError for a name that is none.
    """

    def matches(name: str, part: Part) -> bool:
        return part.name == name or part.name.startswith(f"{name}.") or part.name.endswith(f".{name}")

    for name in names:
        if name != "env" and not any(matches(name, part) for part in parts):
            raise ValueError(f"no part {name!r}: there are env, {', '.join(part.name for part in parts)}")
    if not names:
        return [part for part in parts if not part.named]
    return [part for part in parts if any(matches(name, part) for name in names)]

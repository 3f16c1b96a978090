"""The parts of a run, in order of importance; to add one, add a line to `PARTS`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from bench.core.machine import ROOT
from bench.gpu.build import PASSED, set_aside
from bench.gpu.children import Finished, run_child
from bench.gpu.result_file import ResultFile

KERNEL_TESTS = ROOT / "tests" / "kernels"
GPU_TESTS = KERNEL_TESTS / "gpu"
# Tests that compile or count without a GPU: they take minutes, and give the same results on any machine.
ANYWHERE = (
    "test_bank_conflicts", "test_cuda_architectures", "test_cuda_compile", "test_cuda_loops",
    "test_cuda_planted_faults", "test_cute_layouts", "test_instruction_counts", "test_native_guard_pages",
    "test_planted_faults", "test_release_check", "test_triton_compile", "test_triton_guard_pages",
)  # fmt: skip
SANITIZER_FOUND = 86  # compute-sanitizer's exit code for a finding, which nothing else here uses
LAST = 10.0  # seconds to finish the current case after no further one may begin, and to write the file
WORKERS = 8
# done, failed: ran to its end; skipped: cannot run here; stopped: reached its time limit
Status = Literal["done", "failed", "skipped", "stopped"]


class Outcome(NamedTuple):
    """How a part ended, and the reason in a sentence."""

    status: Status
    reason: str


@dataclass(frozen=True)
class Run:
    """State shared by all parts of a run; device: "cuda", or "cpu" to check at tiny sizes that everything runs."""

    device: str
    results: ResultFile
    machine: Mapping[str, Any]
    environment: Mapping[str, str]

    def child(self, command: Sequence[str], seconds: float, **environment: str) -> Finished:
        """Run a child process of this run."""
        log = self.results.path.with_suffix(".log")
        return run_child(command, seconds, log, **{**self.environment, **environment})


@dataclass(frozen=True)
class Part:
    """One part of a run: its name, its time limit in seconds, what it does, and the function that does it.

    always: its results are not in the result file, so a resumed run repeats it. named: it runs only if its name is
    given. groups: its benchmark groups.
    """

    name: str
    seconds: int
    does: str
    run: Callable[[Run, float], Outcome]
    always: bool = False
    named: bool = False
    groups: tuple[str, ...] = ()


def _build(run: Run, seconds: float) -> Outcome:
    if run.device != "cuda":
        return Outcome("skipped", "compiled for the GPU of the machine; on a CPU the installation compiles")
    end = time.monotonic() + seconds
    finished = run.child([sys.executable, "-m", "bench.gpu.build"], seconds)
    if finished.code is None:
        return Outcome("stopped", "stopped at its time limit; a further call compiles what is left: --resume")
    if finished.code != 0:
        return Outcome("failed", f"ended with {finished.code}\n{finished.tail()}")
    modules = json.loads(finished.output.splitlines()[-1])
    said = "; ".join(f"{name} {one['status']} ({one['reason'].splitlines()[0]})" for name, one in modules.items())
    errors = [one["reason"] for one in modules.values() if one["status"] == "failed"]
    errors += _wrong_modules(
        [name for name, one in modules.items() if one["status"] in ("compiled", "ready")], run, end
    )
    if errors:
        return Outcome("failed", "\n".join([said, *errors])[:8000])
    return Outcome("skipped" if modules["_cuda"]["status"] == "missing" else "done", said)


def _wrong_modules(names: Sequence[str], run: Run, end: float) -> list[str]:
    """Run the package's modules until `end` (time.monotonic); take those that fail out of use, and return why."""
    wrong = []
    while names:
        # A module that crashes ends the process: those after it are run in another one.
        checked = run.child([sys.executable, "-m", "bench.gpu.build", "--check", *names], end - time.monotonic())
        if checked.code == 0:
            break
        passed = [name for name in names if PASSED.format(name) in checked.output.splitlines()]
        name, *names = names[len(passed) :] or names[-1:]  # one that fails as the process ends is among the passed
        why = "not finished in time" if checked.code is None else f"ended with {checked.code}\n{checked.tail()}"
        wrong.append(f"{name} does not run here, and {set_aside(name)}. Its check: {why}")
    return wrong


def _tests(folder: Path, run: Run, seconds: float) -> Outcome:
    if run.device != "cuda":
        return Outcome("skipped", "the tests of the kernels run here as they do everywhere: pytest tests/kernels")
    if importlib.util.find_spec("pytest") is None:
        return Outcome("skipped", "the package pytest is not installed")
    command = [
        sys.executable, "-m", "pytest", str(folder), "-p", "no:cacheprovider", "-rfE", "--continue-on-collection-errors"
    ]  # fmt: skip
    if folder == KERNEL_TESTS:
        command += [f"--ignore={path}" for path in (GPU_TESTS, *(KERNEL_TESTS / f"{name}.py" for name in ANYWHERE))]
        workers = min(WORKERS, os.cpu_count() or 1)
        command += ["-n", str(workers)] if importlib.util.find_spec("xdist") else []
    return outcome_of_tests(run.child(command, max(seconds - 15, 1)))


def outcome_of_tests(finished: Finished) -> Outcome:
    """Return the outcome by pytest's output."""
    lines = finished.output.splitlines()
    counts = [line for line in lines if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    said = counts[-1].strip("= ") if counts else f"ended with {finished.code}: {finished.tail(3)}"
    wrong = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if wrong:
        return Outcome("failed", "\n".join([said, *wrong[:50]]))
    if finished.code is None:
        return Outcome("stopped", f"stopped at its time limit: {said}")
    return Outcome("done" if finished.code == 0 and counts else "failed", said)


def _sanitize(tool: str, run: Run, seconds: float) -> Outcome:
    if run.device != "cuda":
        return Outcome("skipped", "compute-sanitizer watches GPUs")
    sanitizer = run.machine["tools"]["compute-sanitizer"]
    if sanitizer is None:
        return Outcome("skipped", "compute-sanitizer was not found, on the PATH or in CUDA's folders")
    command = [
        sanitizer, "--tool", tool, "--error-exitcode", str(SANITIZER_FOUND), "--report-api-errors", "no",
        "--print-limit", "20", sys.executable, "-m", "tests.kernels.inspectors.each_op",
    ]  # fmt: skip
    # Every tensor gets its own allocation: within a cached block, an access past a tensor's end is not detected.
    return outcome_of_sanitizer(run.child(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))


def outcome_of_sanitizer(finished: Finished) -> Outcome:
    """Return done only if everything ran and was checked; a finding names the kernels: ours, or those of PyTorch."""
    ran = re.search(r"^(\d+) calls ran$", finished.output, re.MULTILINE)
    summary = re.search(r"(ERROR|RACECHECK) SUMMARY: .*", finished.output)
    kernels = Counter(name.strip()[:200] for name in re.findall(r"^=+ +at (.+?)(?:\+0x\w+.*)?$", finished.output, re.M))
    if finished.code is None and not kernels:
        return Outcome("stopped", "stopped at its time limit; until then nothing found")
    if finished.code == 0 and ran and summary:
        return Outcome("done", f"{summary[0]} in {ran[1]} calls")
    reason = summary[0] if summary else f"ended with {finished.code}"
    named = "".join(f"\n{count} in {name}" for name, count in kernels.most_common(5))
    return Outcome("failed", f"{reason}{named}\n{finished.tail()}")


def _measure(groups: tuple[str, ...], run: Run, seconds: float) -> Outcome:
    """Measure the cases of whole groups; losing the device only costs the rest of this part."""
    with TemporaryDirectory(prefix="bench-gpu-") as scratch:
        file = Path(scratch) / "measured.json"
        command = [
            sys.executable, "-m", "pytest", "bench/", "--benchmark", "--benchmark-device", run.device,
            "-k", " or ".join(f"[{group}:" for group in groups), f"--benchmark-json={file}", "--benchmark-quiet",
            "--benchmark-stop-after", str(max(seconds - LAST, 1.0)), "-p", "no:cacheprovider", "-p", "no:xdist",
            *(["--benchmark-tiny"] if run.device == "cpu" else []),
        ]  # fmt: skip
        finished = run.child(command, seconds)
        if not file.exists():
            return Outcome("failed", f"ended with {finished.code}\n{finished.tail()}")
        measured = json.loads(file.read_text())
    run.results.merge(measured)
    failed = measured["tss"]["failed"]
    late = [line for line in measured["tss"]["skipped"] if line.endswith("the time was up")]
    said = f"{len({entry['group'] for entry in measured['benchmarks']})} cases timed"
    if failed:
        return Outcome("failed", "\n".join([f"{said}, {len(failed)} checks failed", *failed])[:8000])
    if late or finished.code is None:
        return Outcome("stopped", f"{said}, {len(late)} not begun; the time was up")
    return Outcome("done" if finished.code == 0 else "failed", said if finished.code == 0 else finished.tail())


def _measured(name: str, seconds: int, does: str, *groups: str, named: bool = False) -> Part:
    chosen = groups or (name,)
    return Part(f"measure.{name}", seconds, does, partial(_measure, chosen), named=named, groups=chosen)


# The first parts fit in one call of seven minutes, the rest in a second one with --resume.
PARTS: tuple[Part, ...] = (
    Part("build", 90, "compiles csrc for this GPU only, or tries a module built elsewhere", _build, always=True),
    Part("tests.gpu", 70, "tests/kernels/gpu: what only a GPU can show", partial(_tests, GPU_TESTS)),
    Part("tests.kernels", 90, "tests/kernels, every available backend", partial(_tests, KERNEL_TESTS)),
    _measured("shapes", 100, "each backend against the floor at the sizes that decide"),
    Part("sanitize.memcheck", 30, "compute-sanitizer: accesses out of bounds", partial(_sanitize, "memcheck")),
    Part("sanitize.racecheck", 30, "compute-sanitizer: races in shared memory", partial(_sanitize, "racecheck")),
    Part("sanitize.initcheck", 15, "compute-sanitizer: reads of memory never written", partial(_sanitize, "initcheck")),
    _measured("step", 55, "a training step of BART-Large's shape"),
    _measured("adamw", 30, "soft_masked_adamw_ at 3 M and 100 M scores"),
    _measured("layers", 30, "GatedAdapterLinear in training and with packed gates"),
    _measured("gated_adapter", 40, "forward, forward and backward"),
    _measured("gated_linear", 50, "forward, dX, dS, forward and backward"),
    _measured("rest", 30, "packed_linear, gates, importance", "packed_linear", "gates", "importance"),
    _measured("multi_task", 60, "batches of many tasks against one call for each task", named=True),
    _measured("importance_pass", 60, "the importance pass against a training epoch", named=True),
    _measured("scaling", 180, "along rows, features, bottleneck and number of tensors", named=True),
    _measured("tasks", 180, "switching, learning, saving and loading, up to 1,000 tasks", named=True),
    _measured("calls", 45, "operations on tiny tensors: call overhead", named=True),
    _measured("start", 110, "imports and first calls", named=True),
)


def choose(names: Sequence[str], parts: Sequence[Part] = PARTS) -> list[Part]:
    """Return the parts of these names or groups of names ("measure", "measure.adamw"; "adamw" for short), in order.

    Raises ValueError for an unknown name.
    """

    def matches(name: str, part: Part) -> bool:
        return part.name == name or part.name.startswith(f"{name}.") or part.name.endswith(f".{name}")

    for name in names:
        if not any(matches(name, part) for part in parts):
            raise ValueError(f"no part {name!r}: there are {', '.join(part.name for part in parts)}")
    if not names:
        return [part for part in parts if not part.named]
    return [part for part in parts if any(matches(name, part) for name in names)]

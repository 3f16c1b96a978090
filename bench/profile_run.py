"""Where the time of a run and of one training step goes, on this machine:

    python bench/profile_run.py demo [--method tss] [key=value ...]    # a whole run by phases, as `tss run demo`
    python bench/profile_run.py step [--precision bfloat16]        # one step of each kind of task, by operations

`demo` measures each phase by itself: what runs inside another phase is taken off that one. Wall time, and the processor
time of all threads beside it, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTED = time.perf_counter(), time.process_time()

Namer = Callable[..., str]
# (module, attribute) -> phase, or a function of the call's arguments that names it
POINTS: list[tuple[str, str, str | Namer]] = [
    ("tss.run.prepare", "load_tasks", "data"),
    ("tss.run.prepare", "checked_backbone", "backbone"),
    ("tss.run.prepare", "attach", "adapters attached"),
    ("tss.run.prepare", "encode_split", "tokenising"),
    ("tss.run.sequence", "encode_split", "tokenising"),
    ("tss.run.sequence", "keep_below", "states below the adapters"),
    ("tss.run.loop", "collate", "collating, training"),
    ("tss.run.evaluate", "collate", "collating, evaluation"),
    ("tss.run.loop", "backward", "step: forward"),
    ("torch", "Tensor.backward", "step: backward"),
    ("tss_kernels", "SoftMaskedAdamW.step", "step: optimizer"),
    ("tss.run.loop", "finish_epoch", "validation"),
    ("tss.methods.tss", "Tss.end_task", "importance and sealing"),
    ("tss.run.sequence", "verify_tasks", "verification"),
    ("tss.run.sequence", "logits_hash", "verification"),
    ("tss.run.sequence", "evaluate_task", lambda run, task: f"evaluation, {task.kind.kind}"),
    ("tss.tasks.classification", "Classification.score", "scoring"),
    ("tss.tasks.extraction", "Extraction.score", "scoring"),
    ("tss.tasks.generation", "Generation.score", "scoring"),
    ("tss.run.sequence", "save_checkpoint", "files and events"),
    ("tss.run.sequence", "write_tensors", "files and events"),
    ("tss.run.sequence", "write_text", "files and events"),
    ("tss.run.prepare", "Run.save_state", "files and events"),
    ("tss.run.events", "EventLog.emit", "files and events"),
]


class Phases:
    """Wall and processor seconds by phase; a phase inside another takes its time from that one."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._stack = ["other"]
        self._last = STARTED

    def _lap(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.wall[self._stack[-1]] += now[0] - self._last[0]
        self.cpu[self._stack[-1]] += now[1] - self._last[1]
        self._last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent here goes to `name`."""
        self._lap()
        self._stack.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._lap()
            self._stack.pop()

    def wrap(self, module: str, attribute: str, name: str | Namer) -> None:
        """Time every call of a function or method, found by its name."""
        owner: Any = importlib.import_module(module)
        *path, last = attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        original = getattr(owner, last)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name(*args, **kwargs)):
                return original(*args, **kwargs)

        setattr(owner, last, timed)

    def lines(self) -> list[str]:
        """A Markdown table, the longest first."""
        self._lap()
        total, cpu = sum(self.wall.values()), sum(self.cpu.values())
        rows = sorted(self.wall.items(), key=lambda row: -row[1])
        head = ["| phase | wall s | share | processor s | calls |", "|---|---:|---:|---:|---:|"]
        body = [f"| {n} | {s:.2f} | {s / total:.1%} | {self.cpu[n]:.2f} | {self.calls[n] or ''} |" for n, s in rows]
        return [*head, *body, f"| **all** | **{total:.2f}** | | **{cpu:.2f}** | |"]


class Tokens:
    """Real and padded tokens of the batches that are trained on."""

    def __init__(self) -> None:
        self.real: Counter[str] = Counter()
        self.all: Counter[str] = Counter()

    def watch(self) -> None:
        """Count what `collate` gives the training loop."""
        loop: Any = importlib.import_module("tss.run.loop")
        original = loop.collate

        def counted(split: Any, rows: Any, kind: Any, *args: Any) -> Any:
            batch = original(split, rows, kind, *args)
            self.real[kind.kind] += int(batch["attention_mask"].sum())
            self.all[kind.kind] += batch["attention_mask"].numel()
            if kind.kind == "generation":
                self.real["generation, targets"] += int((batch["labels"] != -100).sum())
                self.all["generation, targets"] += batch["labels"].numel()
            return batch

        loop.collate = counted

    def lines(self) -> list[str]:
        """One line for each kind of task."""
        return [
            f"| {kind} | {self.real[kind]:,} | {self.all[kind]:,} | {1 - self.real[kind] / count:.1%} |"
            for kind, count in self.all.items()
        ]


def profile_demo(method: str, overrides: list[str], folder: Path) -> None:
    """Run the demo's configuration and print the time of each phase."""
    phases, tokens = Phases(), Tokens()
    with phases.phase("imports"):
        from tss.report import build
        from tss.run.config import load_config
        from tss.run.sequence import run_sequence

        for point in POINTS:
            importlib.import_module(point[0])
    tokens.watch()
    for point in POINTS:
        phases.wrap(*point)
    config = load_config("demo", [f"method={method}", *overrides])
    result = run_sequence(config, folder)
    with phases.phase("report"):
        build([folder], folder)
    lines = phases.lines()
    print(f"tss run demo --method {method} {' '.join(overrides)}: {conditions()}\n")
    print("\n".join(lines))
    print("\n| tokens trained on | real | with padding | padding |\n|---|---:|---:|---:|")
    print("\n".join(tokens.lines()))
    rows = [[None if cell is None else round(cell, 2) for cell in row] for row in result.matrix]
    print(f"\nlast row of the matrix {rows[-1]}, diagonal {[rows[i][i] for i in range(len(rows))]}")


def conditions() -> str:
    """Threads, versions and load."""
    import torch

    load = os.getloadavg()[0]
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"torch {torch.__version__}, {threads}, load {load:.1f} at the end"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "step"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--method", default="tss")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (default: as it chooses)")
    parser.add_argument("--repeats", type=int, default=20, help="step: timed steps of each variant")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="step: of the products")
    args = parser.parse_args()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "demo":
            profile_demo(args.method, args.overrides, Path(folder) / "run")
            return
        from profile_step import profile_step  # beside this script

        profile_step(args.precision, args.overrides, args.repeats, Path(folder) / "run")
        print(f"\n{args.precision}: {conditions()}")


if __name__ == "__main__":
    main()

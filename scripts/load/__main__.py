"""Load on `tss serve` from another process here: python -m scripts.load gives the figures of docs/serving.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.load import parts, random_tasks
from scripts.load.wire import Server


def main() -> None:
    """Run all parts, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="embedded", help='as of `tss serve`; "tiny": a BART of width 16')
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000, help="of each row of the table of throughput")
    parser.add_argument("--memory-requests", type=int, default=20_000)
    parser.add_argument("--overload-seconds", type=float, default=20)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", help="names of parts")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads; load average {os.getloadavg()[0]:.1f} before")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        kinds = random_tasks.kinds(args.tasks)
        if args.backbone == "tiny":
            args.backbone = str(random_tasks.tiny_backbone(Path(folder) / "backbone"))
        saved = random_tasks.save_random_tasks(Path(folder) / "tasks", kinds, args.backbone)
        run(args, list(kinds), lambda *options: Server(saved, args.backbone, *options))
    print(f"load average {os.getloadavg()[0]:.1f} after")


def run(args: argparse.Namespace, tasks: list[str], serve: Callable[..., Server]) -> None:
    """Run the selected parts on servers that `serve` starts."""
    labelled = [task for task in tasks if task.startswith("asc")]

    def wanted(name: str) -> bool:
        return not args.only or name in args.only

    rate = 0.0
    with serve() as server:
        known = parts.known_answers(server, tasks)
        if wanted("throughput") or wanted("overload"):
            print("\n| tasks | requests | per second | p50 / p95 / p99 in ms |\n|---|---:|---:|---:|")
            for name, chosen in {
                "one, classification": labelled[:1],
                f"{len(labelled)}, classification": labelled,
                "one, generation": [task for task in tasks if task.startswith("drg")][:1],
                f"{len(tasks)} of three kinds": tasks,
            }.items():
                rate, row = parts.throughput(server, name, chosen, args.requests, args.clients)
                print("| " + " | ".join(row) + " |", flush=True)
        if wanted("slow"):
            alone, beside = parts.slow_clients(server, labelled[0], 200, 200)
            print(f"\none client: {alone} ms; beside 200 slow ones: {beside} ms", flush=True)
        if wanted("fuzz"):
            print(f"\n{args.fuzz} hostile requests: {parts.fuzz(server, tasks, args.fuzz, 16)}", flush=True)
            parts.check_known(server, known)
            print("every known answer is what it was, memory", f"{server.megabytes():.0f} MB", flush=True)
        if wanted("stop"):
            ends, code = parts.interrupted(server, known, signal.SIGTERM, args.clients, 3)
            assert not ends["wrong"]
            assert not ends["connection closed, sent before the signal"], ends
            print(f"\nSIGTERM under load: {dict(ends)}, exit code {code}", flush=True)
    if wanted("kill"):
        with serve() as server:
            ends, code = parts.interrupted(server, known, signal.SIGKILL, args.clients, 3)
            assert not ends["wrong"]
            print(f"SIGKILL under load: {dict(ends)}, exit code {code}", flush=True)
        with serve() as server:
            parts.check_known(server, known)
            print("started again: every known answer is what it was", flush=True)
    if wanted("overload"):
        with serve("--max-queue", "128") as server:
            parts.check_known(server, known)
            told = parts.overload(server, tasks, 4 * rate, args.overload_seconds)
            print(f"\nat 4 times that rate: {json.dumps(told)}", flush=True)
            parts.check_known(server, known)
    if wanted("memory"):
        with serve() as server:
            parts.check_known(server, known)
            seen = parts.memory(server, tasks, args.memory_requests, args.clients)
            print(f"\nmemory in MB over {args.memory_requests} requests: {', '.join(seen)}", flush=True)


if __name__ == "__main__":
    main()

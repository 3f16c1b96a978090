"""Result files made up from a seed, for what reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

MACHINE = {
    "name": "Test Processor, 2 threads", "python": "3.11.4", "platform": "Linux", "cpus": 2, "gpus": [],
    "packages": {"torch": "2.13.0", "triton": "3.9.0"},
}  # fmt: skip
LINEAR = {"tss": 1.0, "ungated": 0.9, "materialise": 1.1, "eager": 1.5}
STEP = {"tss": 1.0, "tss, triton": None, "adapters removed": 0.97, "eager": 1.2}
ADAMW = {"tss": 1.0, "AdamW fused, no mask": 0.8, "AdamW fused + multiply": 1.3}
FLOORS = {"ungated", "adapters removed", "AdamW fused, no mask"}


def timed(role: str, median: float, ratio: float | None = None, spread: float = 0.05, **more: Any) -> dict[str, Any]:
    """A variant with a time, and its ratio to ours; 10th and 90th percentile lie `spread` beside the median."""
    made: dict[str, Any] = {
        "role": role, "median_us": median, "low_us": median * (1 - spread), "high_us": median * (1 + spread),
        "host_us": median / 10, "repeats": 20, "peak_bytes": None,
        "checked": "not checked: it computes less" if role == "floor" else "float64",
    }  # fmt: skip
    if ratio is not None:
        made["ratio"] = {"median": ratio, "low": ratio * (1 - spread), "high": ratio * (1 + spread)}
    return made | more


def role_of(name: str) -> str:
    """A variant's role, by its name."""
    return "ours" if name.startswith("tss") else "floor" if name in FLOORS else "rival"


def case(
    operation: str, shape: dict[str, int], factors: dict[str, float | None], us: float, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """A record whose variants take `factors` times `us`, and a little noise; a factor of None was skipped."""
    noise = random.Random(f"{seed} {operation} {shape}")
    variants = {}
    for name, factor in factors.items():
        drawn = noise.uniform(0.98, 1.02)
        if factor is None:
            variants[name] = {"role": role_of(name), "skipped": "no GPU here"}
        else:
            ratio = None if name == "tss" else factor * drawn
            variants[name] = timed(role_of(name), us * factor * drawn, ratio, noise.uniform(0.01, 0.1))
    variants["tss"]["roofline_share"] = 0.42
    return {
        "operation": operation, "shape": shape, "dtype": "float32", "bytes": 1000, "flops": 2000, "threads": 2,
        "curve": None, "variants": variants,
    } | more  # fmt: skip


def content(seed: int = 0) -> dict[str, Any]:
    """A whole file: tables, curves, a step, candidates of dispatch, ceilings."""
    linear = [
        case(f"gated_linear {what}", {"rows": rows, "in": 1024, "out": out}, LINEAR, rows * out / 50, seed)
        for rows in (512, 2048) for out in (64, 1024) for what in ("forward", "forward+backward")
    ]  # fmt: skip
    adamw = [
        case(f"soft_masked_adamw_ update, {name}", {"tensors": n, "scores": 3 * 2**20}, ADAMW, 7000, seed)
        for name, n in (("3 M scores in 48 tensors", 48), ("3 M scores in 1 tensor", 1))
    ]
    both, tensors = "gated_linear forward+backward", "soft_masked_adamw_ update, scores in tensors"
    scaling = [
        *(case(both, {"rows": rows, "in": 1024, "out": 64}, LINEAR, 300 + rows * 5.8, seed, curve="rows")
          for rows in (32, 128, 512, 2048, 8192)),
        *(case(both, {"rows": 512, "in": size, "out": 64}, LINEAR, 200 + size * 2.7, seed, curve="in")
          for size in (64, 256, 1024, 4096)),
        *(case(both, {"rows": 512, "in": 1024, "out": size}, LINEAR, 200 + size * 30, seed, curve="out")
          for size in (64, 256, 1024, 4096)),
        *(case(tensors, {"tensors": n, "scores": 3 * 2**20}, ADAMW, 6000 + 5 * n, seed, curve="tensors")
          for n in (1, 4, 16, 48, 192, 768)),
    ]  # fmt: skip
    step = [case("training step, embedded", {"batch": 16, "source": 64}, STEP, 160_000, seed)]
    dispatch = [case("dispatch: gated_linear", {"rows": 512}, {"tss": 1.0, "eager": 1.0}, 1.0, seed)]
    groups = {"gated_linear": linear, "adamw": adamw, "scaling": scaling, "step": step, "dispatch": dispatch}
    parts: dict[str, Any] = {
        f"measure.{name}": {"status": "done", "revision": "0123456789abcdef", "result": {"cases": cases}}
        for name, cases in groups.items()
    }
    ceilings = {"bytes_per_second": 20e9, "flops_per_second": {"float32": 1.5e11}}
    parts |= {"env": {}, "measure.ceilings": {"result": ceilings}, "tests": {"status": "failed", "result": None}}
    return {"format": 1, "machine": MACHINE, "parts": parts}


def cases_of(made: dict[str, Any], group: str) -> list[dict[str, Any]]:
    """The records of a group, to be changed in place."""
    return made["parts"][f"measure.{group}"]["result"]["cases"]


def written(folder: Path, made: dict[str, Any] | None = None, name: str = "cpu-2026-01-31.json") -> Path:
    """The file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content() if made is None else made))
    return path

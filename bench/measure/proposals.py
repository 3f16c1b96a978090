"""From measured cases to entries of the tables in `tss_kernels/configs`: proposed and printed, never taken by itself.

`python -m bench.gpu.adopt RESULT.json` writes what somebody has read and agrees with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from bench.measure.case import COMPARED
from bench.measure.cases import dispatch, dispatch_adapter
from tss_kernels.backends.tables import table_for
from tss_kernels.backends.tables.cuda import cuda_table, has_warpgroups, tiling_for
from tss_kernels.backends.tables.cuda_adapter import tile_for
from tss_kernels.backends.tables.table import Table, bound_of, kind_of

Record = dict[str, Any]
Point = tuple[int, float]  # rows, fused over the other strategy
# The same products as the dispatch cases, by the tables as they are: only the whole choice is told by these.
BY_TABLES = ("gated_linear forward", "gated_linear dX", "gated_linear forward+backward")


def crossover(points: Sequence[Point]) -> float | None:
    """The most rows up to which fused is not slower anywhere; None for always."""
    slower = [rows for rows, ratio in points if ratio > 1]
    if not slower:
        return None
    return max((rows for rows, _ in points if rows < min(slower)), default=0)


def _time(record: Record, name: str) -> float | None:
    return record["variants"].get(name, {}).get("median_us")


def _even(record: Record) -> bool:
    return all(record["shape"][name] % 16 == 0 for name in ("in", "out"))


def _tiling(record: Record, device: torch.device) -> str:
    """The tiling that the table gives this product."""
    shape, dtype = record["shape"], getattr(torch, record["dtype"])
    features = shape["out" if record["operation"].endswith("forward") else "in"]
    return tiling_for(dtype, shape["rows"], features, _even(record), has_warpgroups(device)).name


def _products(records: Iterable[Record]) -> Iterator[Record]:
    return (record for record in records if record["operation"] in dispatch.OPERATIONS)


def crossovers(records: Sequence[Record], device: torch.device, basis: str) -> list[dict[str, Any]]:
    """Entries in the form of a table's `crossovers`, by backend; rows None stands for `ALWAYS`.

    A class has an entry only if both strategies were measured for it; where one failed its check, nothing is proposed.
    """
    entries = []
    for backend in COMPARED:
        table = table_for(device) if backend == "triton" else cuda_table(device)
        points: dict[tuple[Any, ...], list[Point]] = {}
        for record in _products(records):
            fused = _time(record, f"{backend} {'fused' if backend == 'triton' else _tiling(record, device)}")
            other = _time(record, f"{backend} {dispatch.MATERIALISE}")
            if fused is not None and other is not None:
                points.setdefault(_class_of(record, table), []).append((record["shape"]["rows"], fused / other))
        entries += [
            _entry(backend, table, key, found, f"measured {basis}") for key, found in sorted(points.items())
        ]  # fmt: skip
    return entries


def _class_of(record: Record, table: Table) -> tuple[str, str, bool, str]:
    product, kind = record["operation"].removeprefix("dispatch "), kind_of(getattr(torch, record["dtype"]))
    return product, kind, _even(record), bound_of(table, record["shape"]["in"], record["shape"]["out"])


def _entry(backend: str, table: Table, key: tuple[Any, ...], points: list[Point], basis: str) -> dict[str, Any]:
    present = table.crossovers.get(key)  # type: ignore[arg-type]
    return {
        "backend": backend, "table": table.name, **dict(zip(("product", "kind", "even", "bound"), key, strict=True)),
        "rows": crossover(points), "basis": basis, "points": sorted(points),
        "present": None if present is None else {
            "rows": None if math.isinf(present.rows) else present.rows, "basis": present.basis
        },
    }  # fmt: skip


def tilings(records: Sequence[Record], device: torch.device) -> list[dict[str, Any]]:
    """Where another tiling of the C++ products was faster than the one that the table gives, and how many times."""
    found = []
    for record in _products(records):
        names = [one.name for one in dispatch.tilings(getattr(torch, record["dtype"]), _even(record), device)]
        times = {name: time for name in names if (time := _time(record, f"cuda {name}")) is not None}
        chosen = _tiling(record, device)
        if chosen in times and (fastest := min(times, key=times.__getitem__)) != chosen:
            found.append({
                "operation": record["operation"], "dtype": record["dtype"], "shape": record["shape"], "chosen": chosen,
                "fastest": fastest, "times": round(times[chosen] / times[fastest], 3),
            })  # fmt: skip
    return found


def adapters(records: Sequence[Record], basis: str) -> list[dict[str, Any]]:
    """Up to how many rows one kernel runs, by backend, dtype, width and bottleneck; None for any number."""
    points: dict[tuple[str, str, int, int], list[Point]] = {}
    for record in records:
        if record["operation"] != dispatch_adapter.OPERATION:
            continue
        shape, dtype = record["shape"], getattr(torch, record["dtype"])
        tile, _ = tile_for(dtype, dtype, shape["rows"], shape["hidden"], shape["bottleneck"], True)
        for backend, one in (("triton", dispatch_adapter.ONE), ("cuda", tile.name if tile else "")):
            fused = _time(record, f"{backend} {one}")
            two = _time(record, f"{backend} {dispatch_adapter.TWO}")
            if fused is not None and two is not None:
                key = (backend, record["dtype"], shape["hidden"], shape["bottleneck"])
                points.setdefault(key, []).append((shape["rows"], fused / two))
    return [
        {
            **dict(zip(("backend", "dtype", "hidden", "bottleneck"), key, strict=True)),
            "rows": crossover(found), "basis": f"measured {basis}", "points": sorted(found),
        }
        for key, found in points.items()
    ]  # fmt: skip


def _needed(variant: Record) -> float | None:
    """What a program that does nothing else waits for: the device, or the processor that hands the call over."""
    return None if "median_us" not in variant else max(variant["median_us"], variant["host_us"])


def _by_backend(record: Record) -> dict[str, float]:
    """The least time of each backend in a case, over whatever strategies it was measured with."""
    times: dict[str, float] = {}
    for variant in record["variants"].values():
        needed = _needed(variant)
        if variant.get("op") is not None and needed is not None:
            times[variant["backend"]] = min(needed, times.get(variant["backend"], math.inf))
    return times


def backends(records: Sequence[Record], basis: str) -> list[dict[str, Any]]:
    """Which of two backends each operation should prefer: the one with the smaller geometric mean of times.

    Nothing is proposed for an operation of which a variant failed its check.
    """
    points: dict[str, list[dict[str, Any]]] = {}
    failed: set[str] = set()
    for record in records:
        ours = [variant for variant in record["variants"].values() if variant.get("op") is not None]
        failed |= {variant["op"] for variant in ours if "failed" in variant}
        times = _by_backend(record)
        if record["operation"] not in BY_TABLES and all(name in times for name in COMPARED):
            case = {name: record[name] for name in ("operation", "dtype", "shape")}
            points.setdefault(ours[0]["op"], []).append(case | {"cuda_over_triton": times["cuda"] / times["triton"]})
    return [_preferred(op, found, basis) for op, found in sorted(points.items()) if op not in failed]


def _preferred(op: str, points: list[dict[str, Any]], basis: str) -> dict[str, Any]:
    ratios = [point["cuda_over_triton"] for point in points]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    first, other = ("cuda", "triton") if mean < 1 else ("triton", "cuda")
    if first == "triton":
        ratios, mean = [1 / ratio for ratio in ratios], 1 / mean
    said = f"{min(ratios):.2f} to {max(ratios):.2f} times {other}'s time in {len(ratios)} cases, {mean:.2f} in the mean"
    return {"op": op, "backends": [first, other], "basis": f"measured {basis}: {said}", "points": points}


def proposal(records: Sequence[Record], device: torch.device, basis: str) -> dict[str, Any]:
    """Everything that measured cases propose, in plain values."""
    return {
        "crossovers": crossovers(records, device, basis), "tilings": tilings(records, device),
        "gated_adapter": adapters(records, basis), "preferences": backends(records, basis),
    }  # fmt: skip


def _rows(most: float | None) -> str:
    return "any number of rows" if most is None else f"{most:.0f} rows"


def lines(proposed: dict[str, Any]) -> list[str]:
    """A proposal for the terminal, one line an entry."""
    said = []
    for entry in proposed.get("crossovers", []):
        even, present = "even" if entry["even"] else "uneven", (entry["present"] or {}).get("rows")
        said.append(
            f"dispatch {entry['backend']} {entry['product']} {entry['kind']} {even} {entry['bound']}: fused up to "
            f"{_rows(entry['rows'])} (table: {_rows(present)})"
        )
    for entry in proposed.get("tilings", []):
        size = " ".join(f"{name}={value}" for name, value in entry["shape"].items())
        said.append(
            f"{entry['operation']} {entry['dtype']} {size}: tiling {entry['fastest']}, {entry['times']:.2f} times as "
            f"fast as {entry['chosen']}"
        )
    for entry in proposed.get("gated_adapter", []):
        size = f"{entry['backend']} {entry['dtype']} {entry['hidden']} -> {entry['bottleneck']}"
        said.append(f"dispatch gated_adapter {size}: one kernel up to {_rows(entry['rows'])}")
    said += [f"prefer {e['op']}: {', '.join(e['backends'])} ({e['basis']})" for e in proposed.get("preferences", [])]
    return said

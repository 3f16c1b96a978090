"""What every CUDA C++ operation executes, counted while its kernels run compiled for the CPU (csrc/emulator).

    python -m tests.kernels.inspectors.cuda_counts                   # print the table
    python -m tests.kernels.inspectors.cuda_counts --write FOLDER    # write it to FOLDER/emulated-cuda.md

Counts are of a shape and a tiling alone: no compiler, device or chance is in them. Run from a checkout: csrc/build
compiles the kernels, unless TSS_KERNELS_EMULATED_CUDA names them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from tests.kernels.inspectors.resource_table import Rows, as_markdown, differences, from_text, numbered
from tss_kernels.adamw import cuda as adamw
from tss_kernels.backends.cuda import kernels
from tss_kernels.backends.registry import EMULATED
from tss_kernels.backends.tables.cuda import FLOAT32, TILINGS
from tss_kernels.backends.tables.cuda_adapter import TILES
from tss_kernels.gated_adapter import cuda as adapter
from tss_kernels.gated_linear import cuda as linear
from tss_kernels.gates import cuda as gates
from tss_kernels.importance import cuda as importance

MODULE = "tests.kernels.inspectors.cuda_counts"
FILE = "emulated-cuda.md"
CPU = torch.device("cpu")
# Sizes of the table: neither rows nor features fill the tiles of any tiling.
ROWS, IN, OUT = 200, 352, 72
FEW_ROWS, MANY_ROWS = 20, 600  # scores compared within the product; rows that are summed in two ranges
ADAMW_SHAPES = ((64, 48), (48, 64), (33, 21), (72,), (3, 1024))
# Where single elements are moved, each access is counted, unless sanitizers count theirs.
BYTES, SINGLE = ("read_bytes", "written_bytes"), "global memory"
HYPER = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "site": "update"}


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Counts what emulated kernels execute inside, by the table's columns; the dictionary is filled at the end."""
    module, counts = kernels(CPU), {}
    module.take_counts()
    yield counts
    counts.update(module.take_counts())


def executed(call: Callable[[], object]) -> dict[str, int]:
    """What one call executes."""
    with counting() as counts:
        call()
    return counts


class Layer(NamedTuple):
    """Operands of a gated linear map of this size; their values change no count."""

    x: torch.Tensor
    dy: torch.Tensor
    weight: torch.Tensor
    scores: torch.Tensor
    packed: torch.Tensor


def layer(rows: int, in_features: int, out_features: int, dtype: torch.dtype) -> Layer:
    """A layer of zeros whose gates are all on."""
    x, dy = torch.zeros(rows, in_features, dtype=dtype), torch.zeros(rows, out_features, dtype=dtype)
    scores = torch.zeros(out_features, in_features)
    packed = torch.zeros((out_features, -(-in_features // 8)), dtype=torch.uint8)
    return Layer(x, dy, scores.to(dtype), scores, packed)


def adamw_lists(dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    """Parameters, gradients, moments and importances of ADAMW_SHAPES."""
    return [[torch.zeros(shape, dtype=dtype) for shape in ADAMW_SHAPES] for _ in range(5)]


Calls = Iterator[tuple[str, str, Callable[[], object]]]


def _products() -> Calls:
    for dtype, tilings in ((torch.bfloat16, TILINGS), (torch.float32, (FLOAT32,))):
        name, one = str(dtype).removeprefix("torch."), layer(ROWS, IN, OUT, dtype)
        for tiling in tilings:
            launch = f"{name}, {tiling.name}"
            yield (
                "forward",
                launch,
                lambda o=one, t=tiling: linear.packed_linear(o.x, o.weight, o.packed, None, t, False),
            )
            yield "input_grad", launch, lambda o=one, t=tiling: linear.input_grad(o.dy, o.weight, o.packed, t, False)
        yield "scores_grad", f"{name}, {ROWS} rows", lambda o=one: linear.scores_grad(o.dy, o.x, o.weight, o.scores)
        many = layer(MANY_ROWS, IN, OUT, dtype)
        yield (
            "scores_grad",
            f"{name}, {MANY_ROWS} rows",
            lambda o=many: linear.scores_grad(o.dy, o.x, o.weight, o.scores),
        )
    many = layer(MANY_ROWS, OUT, IN, torch.bfloat16)
    yield "scores_grad", "bfloat16, more outputs", lambda: linear.scores_grad(many.dy, many.x, many.weight, None)
    for rows in (FEW_ROWS, ROWS):
        one = layer(rows, IN, OUT, torch.bfloat16)
        yield "forward from scores", f"{rows} rows", lambda o=one: linear.forward(o.x, o.weight, o.scores, None, 0.0)


def _adapters() -> Calls:
    for tile in TILES:
        down, up = layer(ROWS, IN, tile.hidden - 8, torch.bfloat16), layer(ROWS, tile.hidden - 8, IN, torch.bfloat16)
        weights = down.weight, down.packed, up.weight, up.packed
        yield "adapter", tile.name, lambda x=down.x, w=weights, t=tile: adapter.forward(x, *w, None, None, "relu", t)
        yield (
            "adapter input_grad",
            tile.name,
            lambda x=down.x, h=down.dy, w=weights, t=tile: adapter.input_grad(x, h, *w, "relu", True, t),
        )


def _gates() -> Calls:
    one = layer(ROWS, IN, OUT, torch.bfloat16)
    yield "pack_gates", "float32", lambda: gates.pack_gates(one.scores, 0.0)
    yield "pack_gates", "bfloat16", lambda: gates.pack_gates(one.weight, 0.0)
    yield "pack_gates_pair", "float32", lambda: gates.pack_gates_pair(one.scores, one.scores.T.contiguous(), 0.0)
    yield "unpack_gates", "", lambda: gates.unpack_gates(one.packed, IN)
    yield "masked weight", "by scores", lambda: linear.masked_weight(one.weight, one.packed, one.scores)
    yield "masked weight", "by gates", lambda: linear.masked_weight(one.weight, one.packed)


def _adamw() -> Calls:
    wide, narrow, count = adamw_lists(), adamw_lists(torch.bfloat16), len(ADAMW_SHAPES)
    mixed = [[*one[:2], *other[2:]] for one, other in zip(wide, narrow, strict=True)]
    one_step = {"step": 1, "lr": 1e-3} | HYPER
    for launch, lists in (("float32", wide), ("bfloat16", narrow), ("both", mixed)):
        yield "adamw", launch, lambda v=lists: adamw.soft_masked_adamw_(*v, **one_step)  # type: ignore[arg-type]
    matrices = [[tensor for tensor in some if tensor.dim() == 2] for some in adamw_lists()]
    packed = [torch.zeros((len(p), -(-p.shape[1] // 8)), dtype=torch.uint8) for p in matrices[0]]
    options = {
        "packed": packed,
        "thresholds": [0.0] * len(packed),
        "flips": torch.zeros(len(packed), dtype=torch.int64),
    }

    def turn_off() -> None:
        for param, grad in zip(*matrices[:2], strict=True):
            param.zero_()  # at the threshold, and below it afterwards
            grad.fill_(1)
        adamw.soft_masked_adamw_(*matrices, **one_step, **options)  # type: ignore[arg-type]

    yield "adamw", "gates, all of which flip", turn_off
    steps, lr = [torch.ones(()) for _ in range(count)], torch.tensor(1e-3)
    yield (
        "adamw",
        "step on the device",
        lambda: adamw.soft_masked_adamw_capturable_(*wide, steps=steps, lr=lr, **HYPER),  # type: ignore[arg-type]
    )


def _importance() -> Calls:
    raw, total = torch.zeros(6, 2500), torch.zeros(6, 2500)
    for per in ("tensor", "row"):
        yield "normalize_importance", f"per {per}", lambda per=per: importance.normalize_importance(raw, per)
        yield "update_importance_", f"per {per}", lambda per=per: importance.update_importance_(total, raw, per)
    yield "accumulate_importance_", "", lambda: importance.accumulate_importance_(total, raw)


def rows_of() -> Rows:
    """The lines of the table: every operation at its fixed sizes."""
    lines, single = [], []
    for part in (_products, _adapters, _gates, _adamw, _importance):
        for kernel, launch, call in part():
            cells = {"kernel": kernel, "launch": launch}
            counts = {name: str(number) for name, number in executed(call).items()}
            bytes_ = {name: counts.pop(name) for name in BYTES}
            lines.append((("instructions", kernel, launch), cells | counts))
            if part in (_gates, _adamw, _importance) and kernels(CPU).traced:
                single.append(((SINGLE, kernel, launch), cells | bytes_))
    return numbered(lines + single)


def to_text(rows: Rows) -> str:
    """The table as Markdown."""
    title = f"What every CUDA C++ operation executes: {ROWS} rows {IN} -> {OUT} where nothing else is said"
    how = "Counted on a CPU."
    return as_markdown(rows, title, f"python -m {MODULE} --write", "tests/kernels/test_cuda_counts.py", how)


def main() -> int:
    """The command line; see this file's beginning."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"write the table to {FILE} there")
    options = parser.parse_args()
    if EMULATED not in os.environ:
        from csrc.build.variants import ROOT, built  # of a checkout, not of an installation

        os.environ[EMULATED] = str(built("emulated", ROOT / "build"))
    rows = rows_of()
    if options.write is None:
        print(to_text(rows))
        return 0
    path = options.write / FILE
    moved = differences(from_text(path.read_text()) if path.exists() else {}, rows)
    path.write_text(to_text(rows))
    print(*moved, f"wrote {path}: {len(rows)} launches, {len(moved)} moved", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

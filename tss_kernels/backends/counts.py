"""Costs per k tile of the kernels of 16-bit products, the input of `bounds.py`: only data, for sm_90.

Counted: instructions of a warp for one k tile. For CUDA C++ they are those in
tests/kernels/resources/nvcc-13.0-loops.md (`launch` is the line there, and tests/kernels/test_bounds.py compares). For
Triton they are all instructions of the innermost loops with tensor-core instructions, as compiled by Triton 3.9.0
(`loops` in tests/kernels/inspectors/machine_code.py, on launches as triton_cases.py makes them), and `outside` is the
rest of the kernel without its padding. Also counted: programs per multiprocessor at a time, by registers and shared
memory.

Modelled: bytes through the shared-memory port: asynchronous copies in, operands out as the instructions read them (a
warpgroup's B once for each 64 features, a warp's pieces once for each warp beside it), results staged for wide stores.

Guessed: what a CUDA C++ program executes outside its loop, assumed equal to Triton's program of the same tile.
"""

from __future__ import annotations

from typing import NamedTuple

STEP = 64  # k per turn of a loop
_LINE = 2 * STEP  # bytes of one row of a k tile
_GATES = STEP // 8
_WEIGHT = 64 * _LINE  # a k tile of 64 features
_LOAD = 128  # bytes of one warp load from shared memory


class Counts(NamedTuple):
    """One kernel in one tiling.

    features, rows: size of the result that a program computes in one turn of its loop, or in all; warps: per program.
    loop: instructions of a warp in one turn, of both loops if there are two; outside: in the rest.
    port, staged: bytes through the shared-memory port in one turn, and outside the loop.
    resident: programs that run on a multiprocessor at a time. launch: its name in the resource tables.
    """

    features: int
    rows: int
    warps: int
    loop: int
    outside: int
    port: int
    staged: int
    resident: int
    launch: str


def _triton(
    features: int, rows: int, warps: int, loop: int, outside: int, loads: int, resident: int, launch: str
) -> Counts:
    """Count a Triton product: W goes from shared memory to registers once, gates and numbers in `loads` of a warp."""
    weight, x = features * _LINE, rows * _LINE
    port = weight + features * _GATES + x + weight + loads * _LOAD * warps + features // 64 * x
    return Counts(features, rows, warps, loop, outside, port, 4 * features * rows, resident, launch)


# In descending order of rows, as in tables/sm_90.py.
TRITON_NARROW = (
    _triton(64, 128, 4, 255, 584, 9, 3, "bfloat16 65536 x 1024 -> 64"),
    _triton(64, 64, 4, 245, 403, 9, 4, "bfloat16 8192 x 1024 -> 64"),
    _triton(64, 32, 4, 238, 326, 9, 5, "bfloat16 128 x 1024 -> 64, packed"),
)
TRITON_WIDE = (
    _triton(128, 128, 8, 257, 521, 13, 1, "bfloat16 512 x 1024 -> 8192, packed"),
    _triton(128, 64, 8, 227, 367, 13, 1, "bfloat16 256 x 1024 -> 4096, packed"),
    _triton(128, 32, 8, 233, 308, 13, 2, "bfloat16 128 x 1024 -> 1024, packed"),
)


def _short(rows: int, loop: int, outside: int, resident: int, launch: str) -> Counts:
    """Count Triton's product over at most 64 features: a turn is one tile of the result, stored via shared memory."""
    x = rows * _LINE
    port = 2 * _WEIGHT + 64 * _GATES + 11 * _LOAD * 4 + 3 * x
    return Counts(64, rows, 4, loop, outside, port, x, resident, launch)


SHORT_TILES = 4  # most tiles of the result per program: enough to load ahead
TRITON_SHORT = (
    _short(128, 371, 424, 3, "bfloat16 65536 x 64 -> 1024"),
    _short(64, 290, 352, 4, ""),  # compiled only for this count, at 4,096 x 64 -> 1024
    _short(32, 250, 325, 5, ""),  # and at 2,048
)


def _triton_adapter(
    rows: int, warps: int, loops: tuple[int, int], outside: int, weight_passes: int, loads: int, resident: int,
    launch: str,
) -> Counts:  # fmt: skip
    """Count both loops of one turn: the residual and the result go into and out of shared memory."""
    x = rows * _LINE
    first = _WEIGHT + 64 * _GATES + x + weight_passes * _WEIGHT + loads * _LOAD * warps + x
    second = _WEIGHT + 64 * _GATES + weight_passes * _WEIGHT + loads * _LOAD * warps + x + 4 * x
    return Counts(64, rows, warps, sum(loops), outside, first + second, 2 * x, resident, launch)


# With 8 warps two groups share the rows of W: it is loaded, masked, stored, and loaded by each.
TRITON_ADAPTER = (
    _triton_adapter(128, 8, (195, 335), 1657, 4, 11, 2, "bfloat16 65536 x 1024, 64 hidden, gelu"),
    _triton_adapter(64, 4, (233, 400), 1711, 1, 9, 3, "bfloat16 8448 x 1024, 64 hidden, gelu"),
    _triton_adapter(32, 4, (225, 311), 1030, 1, 9, 4, "bfloat16 512 x 1024, 64 hidden, gelu"),
)


def _cuda(
    features: int, rows: int, warps: tuple[int, int], loop: int, outside: int, resident: int, launch: str
) -> Counts:
    """Count a CUDA product: `warps` along features and along rows; those of a warpgroup are all along features."""
    weight, x, gates = features * _LINE, rows * _LINE, features * _GATES
    along_features, along_rows = warps
    x_reads = features // 64 if along_rows == 1 else along_features
    port = weight + x + gates + along_rows * (weight + gates) + x_reads * x
    return Counts(
        features, rows, along_features * along_rows, loop, outside, port, 4 * features * rows, resident, launch
    )


CUDA_SMALL = _cuda(64, 32, (2, 2), 230, 326, 5, "ProductTile<64, 32, 2, 2, 3, false>, false, false, true")
CUDA_NARROW = _cuda(64, 128, (4, 1), 177, 584, 3, "ProductTile<64, 128, 4, 1, 3, true>, false, false, true")
CUDA_WIDE = _cuda(128, 128, (8, 1), 164, 521, 2, "ProductTile<128, 128, 8, 1, 3, true>, false, false, true")
CUDA_PRODUCTS = (CUDA_WIDE, CUDA_NARROW, CUDA_SMALL)


def _cuda_adapter(
    rows: int, first: tuple[int, int], second: tuple[int, int], loops: tuple[int, int], outside: int, resident: int,
    launch: str,
) -> Counts:  # fmt: skip
    """Count both loops of one turn, each with its warps along features and rows; hidden units stay in registers."""
    x, gates = rows * _LINE, 64 * _GATES
    port_first = _WEIGHT + x + gates + first[1] * (_WEIGHT + gates) + first[0] * x
    port_second = _WEIGHT + x + gates + second[1] * (_WEIGHT + gates) + 3 * x
    staged = 6 * 64 * rows  # sums in float32, written and read, and the results made from them
    warps = first[0] * first[1]
    return Counts(64, rows, warps, sum(loops), outside, port_first + port_second, staged, resident, launch)


# In descending order of rows; `launch` names the lines of both products.
CUDA_ADAPTER = (
    _cuda_adapter(128, (2, 4), (2, 4), (244, 381), 1657, 2, "bfloat16, AdapterTile<64, 128, 2, 4, 2, 4, 3>, false"),
    _cuda_adapter(64, (2, 4), (2, 4), (273, 323), 1711, 2, "bfloat16, AdapterTile<64, 64, 2, 4, 2, 4, 4>, false"),
    _cuda_adapter(32, (4, 2), (4, 2), (212, 220), 1030, 3, "bfloat16, AdapterTile<64, 32, 4, 2, 4, 2, 4>, false"),
)


def _vendor(features: int, rows: int) -> Counts:
    """Count a product without masks, both operands from shared memory: only bytes; instructions are no bound."""
    weight, x = features * _LINE, rows * _LINE
    return Counts(features, rows, 8, 0, 0, 2 * weight + x + -(-features // 64) * x, 0, 1, "")


# Guessed: the library uses the best of these for a shape.
VENDOR = (_vendor(128, 256), _vendor(128, 128), _vendor(64, 128), _vendor(64, 64))

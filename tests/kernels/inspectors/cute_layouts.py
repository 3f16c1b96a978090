"""What CuTe says each lane holds of a tensor-core instruction and where shared memory has it: an independent account.

The texts are printed by CUTLASS 4.2.0 itself, `print` of the named traits' layouts: shape:stride, nested.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator

# (thread, value) -> number of the element, rows first. MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN> (float16: alike),
# MMA_Traits<SM90::GMMA::MMA_64x128x16_F32BF16BF16_RS<Major::K, Major::K>>.
FRAGMENTS = {
    "mma_a": (16, "((4,8),(2,2,2)):((32,1),(16,8,128))"),
    "mma_b": (8, "((4,8),(2,2)):((16,1),(8,64))"),
    "mma_c": (16, "((4,8),(2,2)):((32,1),(16,8))"),
    "wgmma_a": (64, "((4,8,4),(2,2,2)):((128,1,16),(64,8,512))"),
    "wgmma_c": (64, "((4,8,4),(2,2,16)):((128,1,16),(64,8,512))"),
}
# (thread, bit of its registers) -> bit among those of all rows, 128 a row, each at one lane's address.
# Copy_Traits<SM75_U32x4_LDSM_N>, <SM75_U16x8_LDSM_T> and <SM90_U16x8_STSM_T>.
MATRICES = {
    "ldmatrix": "(32,(32,4)):(32,(1,1024))",
    "ldmatrix_transposed": "((4,8),(16,2,4)):((256,16),(1,128,1024))",
    "stmatrix_transposed": "((4,8),(16,2,4)):((256,16),(1,128,1024))",
}
# (row, column) -> element of 16 bits, before Swizzle<3, 3, 3>: tile_to_shape(Layout_K_SW128_Atom<bfloat16_t>, shape).
SHARED = {"tile_128x64": "((8,16),(64,1)):((64,512),(1,0))", "tile_64x128": "((8,8),(64,2)):((64,512),(1,4096))"}
# make_gmma_desc of such a tile at address 0: rows of 128 bytes swizzled, eight of them after another 1,024 bytes on.
DESCRIPTOR = 0x4000004000010000

Nested = int | tuple["Nested", ...]


def _index(coordinate: int, shape: Nested, stride: Nested) -> int:
    """Where a coordinate lies; one number counts through a nested shape, its first part fastest."""
    if isinstance(shape, int) or isinstance(stride, int):
        assert isinstance(shape, int)
        assert isinstance(stride, int)
        return coordinate % shape * stride
    found = 0
    for one, step in zip(shape, stride, strict=True):
        found += _index(coordinate, one, step)
        coordinate //= _size(one)
    return found


def _size(shape: Nested) -> int:
    if isinstance(shape, int):
        return shape
    size = 1
    for one in shape:
        size *= _size(one)
    return size


def table(layout: str) -> list[list[int]]:
    """The numbers of a layout of two modes."""
    (rows, columns), (row_stride, column_stride) = (ast.literal_eval(part) for part in layout.split(":"))
    return [
        [_index(i, rows, row_stride) + _index(j, columns, column_stride) for j in range(_size(columns))]
        for i in range(_size(rows))
    ]


def _array(name: str, values: list[list[tuple[int, ...]]] | list[list[int]]) -> str:
    depth = "[2]" if isinstance(values[0][0], tuple) else ""
    numbers = str(values).translate(str.maketrans("[]()", "{}{}"))  # Python's lists as C++ writes them
    return f"static const int {name}[{len(values)}][{len(values[0])}]{depth} = {numbers};"


def _arrays() -> Iterator[str]:
    for name, (rows, layout) in FRAGMENTS.items():
        yield _array(name, [[(i % rows, i // rows) for i in row] for row in table(layout)])
    for name, layout in MATRICES.items():  # of each half of a lane's registers: whose address, and which half there
        yield _array(name, [[divmod(bit // 16, 8) for bit in row[::16]] for row in table(layout)])
    for name, layout in SHARED.items():
        yield _array(name, [[2 * (i ^ i >> 3 & 0o70) for i in row] for row in table(layout)])
    yield f"static const unsigned long long descriptor = 0x{DESCRIPTOR:x};"


def header() -> str:
    """All of it as C++ arrays: fragments as (row, column), rows of matrices as (lane, half), shared memory in bytes."""
    return "\n".join(itertools.chain(["#pragma once"], _arrays())) + "\n"

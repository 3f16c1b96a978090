"""Exact checks that what an operation writes in place shares no memory with itself or with its other arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import add, attrgetter, le
from typing import NamedTuple, NoReturn

import torch

Named = Mapping[str, torch.Tensor] | Sequence[tuple[str, torch.Tensor]]
Term = tuple[int, int, int]  # a step, and the first and last integer that it is multiplied by
_nbytes, _data_ptr, _is_contiguous = attrgetter("nbytes"), torch.Tensor.data_ptr, torch.Tensor.is_contiguous


def check_no_overlap(written: Named, read: Named = (), *, elementwise: bool = True) -> None:
    """Check that no two elements written in place share a byte, and that none shares one with an element that is read.

    written, read: strided tensors by name. elementwise: each result depends only on the elements at its own position,
    so a read tensor is allowed if each of its elements is the written element at the same position. Raises ValueError.
    """
    names, tensors = _taken_apart(written)
    other_names, others = _taken_apart(read)
    found = find_overlap(tensors, others, elementwise=elementwise)
    if found is not None:
        all_names = [*names, *other_names]
        refuse_overlap(*(all_names[index] for index in found))


def refuse_overlap(written: str, other: str) -> NoReturn:
    """Raise the ValueError that these two share memory, or one with itself if the names are equal."""
    if written == other:
        raise ValueError(
            f"{written} is written in place, but several of its elements lie at one address: pass a tensor that was "
            f"not expanded, for example {written}.clone()"
        )
    raise ValueError(
        f"{written} is written in place, but shares memory with {other}: pass tensors apart, for example one of them "
        f"as .clone()"
    )


def find_overlap(
    written: Sequence[torch.Tensor], read: Sequence[torch.Tensor] = (), *, elementwise: bool = True
) -> tuple[int, int] | None:
    """Return two indices into `[*written, *read]`, at least one written, of tensors that share memory, or None.

    The same index twice means a tensor whose own elements share memory. Contiguous tensors cost a sort of their
    addresses; if address ranges overlap, strides decide. Tensors without memory (meta, fake, transformed) share none.
    """
    memory = Memory.of([*written, *read])
    return None if memory is None else memory.overlap(len(written), elementwise)


class Memory(NamedTuple):
    """Memory of strided tensors: start addresses, bytes from there to the end, and whether all are contiguous."""

    tensors: Sequence[torch.Tensor]
    starts: list[int]
    sizes: list[int]
    contiguous: bool

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> Memory | None:
        """Return the memory, or None if tensors have none of their own, or under a compiler, which handles aliasing."""
        if torch.compiler.is_compiling() or any(map(_has_its_own_way, set(map(type, tensors)))):
            return None
        try:
            starts = list(map(_data_ptr, tensors))
        except RuntimeError:  # raised under a transform
            return None
        if all(map(_is_contiguous, tensors)):
            return Memory(tensors, starts, list(map(_nbytes, tensors)), True)
        return Memory(tensors, starts, list(map(_extent, tensors)), False)

    def overlap(self, written: int, elementwise: bool) -> tuple[int, int] | None:
        """Return what `find_overlap` returns; the first `written` tensors are the written ones."""
        if not self.contiguous:
            for index, tensor in enumerate(self.tensors[:written]):
                if _overlaps_itself(tensor):
                    return index, index
        ranges = sorted(zip(self.starts, self.sizes, range(len(self.tensors)), strict=True))
        starts, sizes, _ = zip(*ranges, strict=True) if ranges else ((), (), ())
        # The usual case, in few Python steps: each range ends before the next one starts.
        apart = all(map(le, map(add, starts, sizes), starts[1:]))
        return None if apart else _first_shared(self.tensors, ranges, written, elementwise)


def _has_its_own_way(kind: type[torch.Tensor]) -> bool:
    """Return whether a tensor class has its own `__torch_dispatch__`, as fake tensors and wrappers do."""
    return kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def _taken_apart(named: Named) -> tuple[list[str], list[torch.Tensor]]:
    pairs = list(named.items() if isinstance(named, Mapping) else named)
    return [name for name, _ in pairs], [tensor for _, tensor in pairs]


def _first_shared(
    tensors: Sequence[torch.Tensor], ranges: Iterable[tuple[int, int, int]], written: int, elementwise: bool
) -> tuple[int, int] | None:
    open_ones: list[tuple[int, int]] = []  # ends and indices of earlier tensors that may reach the next one
    for start, size, index in ranges:
        if not size or not start:
            continue
        open_ones = [(end, other) for end, other in open_ones if end > start]
        for _, other in open_ones:
            first, second = min(index, other), max(index, other)
            if first >= written or (elementwise and second >= written and _same(tensors[first], tensors[second])):
                continue
            if _share_memory(tensors[first], tensors[second]):
                return first, second
        open_ones.append((start + size, index))
    return None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether elements at the same position have the same address."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.itemsize == other.itemsize
        and all(a == b or n == 1 for a, b, n in zip(one.stride(), other.stride(), one.shape, strict=True))
    )


def _extent(tensor: torch.Tensor) -> int:
    """Return the bytes from the start of the first element to the end of the last one."""
    if tensor.numel() == 0:
        return 0
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (last + 1) * tensor.itemsize


def _dimensions(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Return stride in bytes and size of each dimension with more than one element, longest strides first."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted(((stride * tensor.itemsize, size) for stride, size in pairs if size > 1), reverse=True)


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    if tensor.is_contiguous():  # also if it is empty
        return False
    dimensions = _dimensions(tensor)
    if dimensions and dimensions[-1][0] == 0:
        return True
    beyond = 0  # how far the shorter strides reach: usually not as far as the next one
    for stride, size in reversed(dimensions):
        if stride <= beyond:
            break
        beyond += stride * (size - 1)
    else:
        return False
    # Two elements at one address differ by steps that sum to 0; the first that is not 0 may be taken as positive.
    for place, (stride, size) in enumerate(dimensions):
        rest = [(step, 1 - count, count - 1) for step, count in dimensions[place + 1 :]]
        if _reaches([(stride, 1, size - 1), *rest], 0, 0):
            return True
    return False


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether an element of one tensor shares a byte with an element of the other."""
    if one.device != other.device:
        return False
    bounds: dict[int, tuple[int, int]] = {}
    for tensor, sign in ((one, 1), (other, -1)):
        for stride, size in _dimensions(tensor):
            if stride:
                first, last = bounds.get(stride, (0, 0))
                reach = sign * (size - 1)
                bounds[stride] = first + min(reach, 0), last + max(reach, 0)
    terms = [(step, *bounds[step]) for step in sorted(bounds, reverse=True)]
    apart = other.data_ptr() - one.data_ptr()
    return _reaches(terms, apart - one.itemsize + 1, apart + other.itemsize - 1)


def _reaches(terms: Sequence[Term], low: int, high: int) -> bool:
    """Return whether some sum of step * integer, with each integer within its term's bounds, is between low and high.

    The longest steps come first: given what the remaining terms can reach, few integers are left to try for each.
    """
    low = max(low, sum(step * first for step, first, _ in terms))
    high = min(high, sum(step * last for step, _, last in terms))
    if low > high:
        return False
    if not terms:
        return True
    divisor = math.gcd(*(step for step, _, _ in terms))
    if high // divisor * divisor < low:
        return False
    (step, first, last), rest = terms[0], terms[1:]
    least, most = sum(each * start for each, start, _ in rest), sum(each * end for each, _, end in rest)
    first, last = max(first, -((most - low) // step)), min(last, (high - least) // step)
    return any(_reaches(rest, low - step * t, high - step * t) for t in range(first, last + 1))

"""Memory that is written in place: against the very set of bytes that every element has."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tss_kernels.overlap import check_no_overlap, find_overlap

DTYPES = (torch.uint8, torch.float16, torch.float32, torch.float64)
BYTES = 480


def element_addresses(tensor: torch.Tensor) -> list[int]:
    """Where each element starts, in the order of the elements."""
    places = itertools.product(*map(range, tensor.shape))
    return [
        tensor.data_ptr() + tensor.itemsize * sum(i * s for i, s in zip(place, tensor.stride(), strict=True))
        for place in places
    ]


def each_byte(tensor: torch.Tensor) -> list[int]:
    return [start + byte for start in element_addresses(tensor) for byte in range(tensor.itemsize)]


def shares(written: list[torch.Tensor], read: list[torch.Tensor], elementwise: bool) -> set[tuple[int, int]]:
    """Every pair of places that must be found, by sets of addresses."""
    tensors = [*written, *read]
    found = set()
    for i, one in enumerate(written):
        if len(set(each_byte(one))) < len(each_byte(one)):
            found.add((i, i))
        for j in range(i + 1, len(tensors)):
            other = tensors[j]
            same = (
                elementwise
                and j >= len(written)
                and one.shape == other.shape
                and one.itemsize == other.itemsize
                and element_addresses(one) == element_addresses(other)
            )
            if not same and set(each_byte(one)) & set(each_byte(other)):
                found.add((i, j))
    return found


@st.composite
def views(draw) -> tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]:
    """Where a view starts in one memory, its dtype, sizes and strides."""
    dtype = draw(st.sampled_from(DTYPES))
    sizes = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    strides = tuple(draw(st.integers(0, 9)) for _ in sizes)
    room = BYTES // dtype.itemsize - 1 - sum(s * max(n - 1, 0) for s, n in zip(strides, sizes, strict=True))
    if room < 0:
        strides, room = (1,) * len(sizes), BYTES // dtype.itemsize - 16
    return draw(st.integers(0, min(room, 40))), dtype, sizes, strides


@settings(max_examples=1500, deadline=None)
@given(st.lists(views(), min_size=1, max_size=3), st.lists(views(), max_size=2), st.booleans())
def test_exactly_what_the_sets_of_addresses_say(written, read, elementwise):
    memory = torch.zeros(BYTES, dtype=torch.uint8)
    tensors = [
        memory.view(dtype).as_strided(sizes, strides, start) for start, dtype, sizes, strides in (*written, *read)
    ]
    changed, others = tensors[: len(written)], tensors[len(written) :]
    expected = shares(changed, others, elementwise)
    found = find_overlap(changed, others, elementwise=elementwise)
    assert (found in expected) if expected else found is None


def test_an_address_twice_in_three_dimensions():
    """Strides of which none divides another: 6 a = 10 b + 15 c has solutions within some sizes alone."""
    memory = torch.zeros(1000)
    for sizes in itertools.product(range(1, 7), repeat=3):
        tensor = memory.as_strided(sizes, (6, 10, 15))
        assert (find_overlap([tensor]) is not None) == ((0, 0) in shares([tensor], [], True)), sizes


M = torch.zeros(6, 8)
APART = {
    "two columns": ([M[:, 0], M[:, 1]], [M[:, 2:]]),
    "halves of columns": ([M[:, ::2]], [M[:, 1::2]]),
    "blocks of one matrix": ([M[:3, :4], M[:3, 4:]], [M[3:, :5], M[3:, 5:]]),
    "a transposed one": ([M.T], [torch.ones(1).expand(8, 6)]),
    "read twice": ([M], [torch.ones(1).expand(6, 8)] * 2),
    "the same to read": ([M[1:].T], [M[1:].T]),
    "nothing": ([M[:0], M[:, :0], torch.zeros(0).expand(3, 0)], [M]),
    "on no device": ([torch.zeros(3, device="meta"), torch.zeros(3, device="meta")], []),
}
SHARED = {
    "expanded": ([torch.zeros(1).expand(4)], [], "first is written in place, but several of its elements lie at one"),
    "windows": ([torch.zeros(9).unfold(0, 3, 1)], [], "several of its elements"),
    "twice": ([M, M], [], "first is written in place, but shares memory with second"),
    "rows that meet": ([M[:3], M[2:]], [], "shares memory with second"),
    "a row and a column": ([M[2], M[:, 3]], [], "shares memory with second"),
    "read beside": ([M[:, 1:]], [M[:, :-1]], "first is written in place, but shares memory with third: .*clone"),
    "read in another order": ([M.view(8, 6)], [M.T], "shares memory with third"),
    "of another dtype": ([M], [M.view(torch.int16)[:, 1::2]], "shares memory with third"),
}


@pytest.mark.parametrize("case", APART)
def test_what_lies_apart_is_taken(case):
    written, read = APART[case]
    check_no_overlap(list(zip("abc", written, strict=False)), list(zip("xy", read, strict=False)))


@pytest.mark.parametrize("case", SHARED)
def test_what_shares_memory_is_named(case):
    written, read, says = SHARED[case]
    with pytest.raises(ValueError, match=says):
        check_no_overlap(dict(zip(("first", "second"), written, strict=False)), [("third", one) for one in read])


def test_the_same_memory_is_refused_where_results_depend_on_other_places():
    check_no_overlap({"total": M}, {"new": M})
    with pytest.raises(ValueError, match="total is written in place, but shares memory with raw"):
        check_no_overlap({"total": M}, {"raw": M}, elementwise=False)


def test_large_matrices_are_decided_by_their_strides():
    """No list of addresses is made: these have a million elements each, side by side."""
    matrix = torch.empty(1000, 4000)
    parts = [matrix[:, start::4] for start in range(4)]
    assert find_overlap(parts[:3], parts[3:]) is None
    assert find_overlap(parts[:3], [matrix[:, 3::3]]) is not None


@pytest.mark.filterwarnings("error")
def test_tensors_that_have_no_memory_yet():
    with torch._subclasses.FakeTensorMode():
        assert find_overlap([torch.zeros(3)], [torch.zeros(3)]) is None


def test_inside_a_transform():
    def total_of(total, new):
        assert find_overlap([total], [new]) is None
        return torch.maximum(total, new)

    assert torch.equal(torch.vmap(total_of)(M, M), M)

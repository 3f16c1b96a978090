"""Batches are a pure function of lengths, batch size, seed, task and epoch."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tss.data import batches
from tss.seeding import stream

LENGTHS = st.lists(st.integers(1, 200), max_size=400)
SIZE = st.integers(1, 40)
KEYS = {"seed": 7, "task": "asc/a", "epoch": 0}


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, size=SIZE, seed=st.integers(0, 2**40), task=st.text(), epoch=st.integers(0, 99))
def test_every_example_exactly_once(lengths, size, seed, task, epoch):
    found = batches(lengths, size, seed=seed, task=task, epoch=epoch)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    short = [len(batch) for batch in found if len(batch) != size]
    assert len(short) <= 1
    assert all(0 < count < size for count in short)


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, size=SIZE)
def test_same_arguments_same_batches(lengths, size):
    first = batches(lengths, size, **KEYS)
    random.seed(0)
    assert batches(tuple(lengths), size, **KEYS) == first


@pytest.mark.parametrize("change", [{"seed": 8}, {"task": "asc/b"}, {"epoch": 1}])
def test_seed_task_and_epoch_each_matter(change):
    assert batches([5] * 100, 8, **KEYS) != batches([5] * 100, 8, **{**KEYS, **change})


def test_the_stream_is_the_same_in_every_process_and_version():
    # Were this list to change, a run that is resumed would see other batches than the run it goes on from.
    assert batches([3, 1, 2] * 3, 4, **KEYS) == [[1, 7, 4, 2], [0], [8, 5, 3, 6]]


def padding(lengths, found):
    return sum(max(lengths[i] for i in batch) * len(batch) for batch in found) / sum(lengths) - 1


def test_batches_hold_neighbours_in_length_and_yet_come_in_random_order():
    rng = random.Random(0)
    lengths = [rng.randint(5, 120) for _ in range(2000)]
    found = batches(lengths, 16, **KEYS)
    shuffled = rng.sample(range(2000), 2000)
    assert padding(lengths, found) < 0.1 < padding(lengths, [shuffled[i : i + 16] for i in range(0, 2000, 16)])
    longest = [max(lengths[i] for i in batch) for batch in found]
    rises = sum(a < b for a, b in itertools.pairwise(longest)) / len(longest)
    assert 0.35 < rises < 0.65


def test_companions_change_from_epoch_to_epoch():
    lengths = [random.Random(1).randint(5, 120) for _ in range(1000)]
    sets = [{frozenset(b) for b in batches(lengths, 8, **{**KEYS, "epoch": epoch})} for epoch in (0, 1)]
    assert not sets[0] & sets[1]


def test_a_batch_holds_at_least_one():
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        batches([1], 0, **KEYS)


def test_streams_keep_their_parts_apart():
    assert stream("a", "bc").random() != stream("ab", "c").random()
    assert stream("a", 1).random() == stream("a", 1).random()

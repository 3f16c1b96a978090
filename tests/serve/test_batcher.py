"""The thread that runs what waits: batches of one key, the oldest first, bounded in time and number."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tss.serve.batcher import Batcher, Closed, QueueFull

from .conftest import until


class Held:
    """A batcher whose first item, of a key of its own, is held so that others gather behind it."""

    def __init__(self, **settings) -> None:
        self.batches: list[list[object]] = []
        self.reached, self.go = threading.Event(), threading.Event()
        known = {"max_batch": 4, "max_wait": 0.0, "max_queue": 100}
        self.batcher = Batcher(self.run, **(known | settings))
        self.first = self.batcher.submit([("held", "held")])
        assert self.reached.wait(60)

    def run(self, items):
        if items == ["held"]:
            self.reached.set()
            assert self.go.wait(60)
        else:
            self.batches.append(list(items))
        return [ValueError(item) if item == "bad" else (item, "done") for item in items]


@pytest.fixture
def held():
    made = []

    def make(**settings):
        made.append(Held(**settings))
        return made[-1]

    yield make
    for one in made:
        one.go.set()
        one.batcher.close()


def test_the_oldest_goes_first_and_takes_those_of_its_key_with_it(held):
    one = held()
    futures = one.batcher.submit([(key, f"{key}{i}") for i, key in enumerate("abacaabbaa")])
    one.go.set()
    assert [future.result(60) for future in futures] == [(f"{key}{i}", "done") for i, key in enumerate("abacaabbaa")]
    assert one.batches == [["a0", "a2", "a4", "a5"], ["b1", "b6", "b7"], ["c3"], ["a8", "a9"]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=30), st.integers(1, 5))
def test_everything_is_answered_once_in_batches_of_one_key(items, most):
    batches = []

    def run(batch):
        batches.append(batch)
        return batch

    batcher = Batcher(run, max_batch=most, max_wait=0.0, max_queue=30)
    futures = batcher.submit([(key, (key, value)) for key, value in items])
    batcher.close()
    assert [future.result(0) for future in futures] == items
    assert all(len(batch) <= most and len({key for key, _ in batch}) == 1 for batch in batches)
    for key in "abc":  # in their order
        assert [one for batch in batches for one in batch if one[0] == key] == [one for one in items if one[0] == key]


def test_a_full_batch_starts_at_once():
    batcher = Batcher(lambda items: items, max_batch=2, max_wait=1000, max_queue=9)
    assert [future.result(60) for future in batcher.submit([("a", 1), ("a", 2)])] == [1, 2]
    batcher.close()


def test_one_that_is_alone_waits_as_long_as_it_may():
    started = []
    batcher = Batcher(lambda items: started.append(time.monotonic()) or items, max_batch=2, max_wait=0.1, max_queue=9)
    begin = time.monotonic()
    (alone,) = batcher.submit([("a", 3)])
    assert alone.result(60) == 3
    assert started[0] - begin >= 0.1
    batcher.close()


def test_what_has_no_room_is_refused_whole(held):
    one = held(max_queue=3)
    futures = one.batcher.submit([("a", 1), ("a", 2)])
    with pytest.raises(QueueFull, match="2 inputs are waiting, and 2 more would exceed the limit of 3") as refused:
        one.batcher.submit([("a", 3), ("a", 4)])
    assert refused.value.retry_after >= 1
    futures += one.batcher.submit([("a", 5)])
    one.go.set()
    assert [future.result(60)[0] for future in futures] == [1, 2, 5]


def test_what_is_cancelled_leaves_room_and_is_not_run(held):
    one = held(max_queue=2)
    futures = one.batcher.submit([("a", 1), ("a", 2)])
    one.batcher.cancel([futures[0], *one.first])  # the first has begun
    (third,) = one.batcher.submit([("a", 3)])
    one.go.set()
    assert third.result(60) == (3, "done")
    assert one.first[0].result(60) == ("held", "done")
    assert one.batches == [[2, 3]]
    assert futures[0].cancelled()


def test_an_error_is_its_own_items_or_the_whole_batchs():
    def run(items):
        if "fault" in items:
            raise KeyError("fault")
        return [ValueError(item) if item == "bad" else item for item in items]

    batcher = Batcher(run, max_batch=4, max_wait=0.05, max_queue=9)
    good, bad = batcher.submit([("a", "good"), ("a", "bad")])
    assert (good.result(60), type(bad.exception(60))) == ("good", ValueError)
    for future in batcher.submit([("a", "fault"), ("a", "good")]):
        assert isinstance(future.exception(60), KeyError)
    assert batcher.ready
    assert batcher.submit([("a", "good")])[0].result(60) == "good"
    batcher.close()


def test_closing_answers_what_was_taken_and_takes_nothing_more(held):
    one = held()
    futures = one.batcher.submit([("a", 1), ("b", 2)])
    asked = one.batcher.call(lambda: "called")
    closing = threading.Thread(target=one.batcher.close)
    closing.start()
    until(lambda: not one.batcher.ready)
    with pytest.raises(Closed):
        one.batcher.submit([("a", 3)])
    with pytest.raises(Closed):
        one.batcher.call(lambda: None)
    one.go.set()
    closing.join(60)
    assert [future.result(0) for future in futures] == [(1, "done"), (2, "done")]
    assert asked.result(0) == "called"


def test_closing_waits_for_no_companions():
    batcher = Batcher(lambda items: items, max_batch=2, max_wait=1000, max_queue=9)
    (future,) = batcher.submit([("a", 1)])
    batcher.close()
    assert future.result(0) == 1


def test_calls_run_between_batches_and_their_errors_are_theirs(held):
    one = held()
    (future,) = one.batcher.submit([("a", 1)])
    seen = one.batcher.call(lambda: (threading.current_thread().name, list(one.batches)))
    failed = one.batcher.call(lambda: 1 / 0)
    one.go.set()
    assert seen.result(60) == ("tss-model", [])
    assert isinstance(failed.exception(60), ZeroDivisionError)
    assert future.result(60) == (1, "done")

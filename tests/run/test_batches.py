"""How a run cuts its batches, and how wide they are."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tss.adapters import AdapterConfig, attach
from tss.run.backbone import load_backbone
from tss.run.config import load_config
from tss.run.examples import Split, by_length, cache_prefix, cheapest_cuts, collate
from tss.run.runtime import Runtime
from tss.run.sequence import run_sequence
from tss.tasks import Generation

from .conftest import tiny_values

CPU = Runtime(torch.device("cpu"), "float32")


def cost(lengths, edges, batch_cost):
    return sum((end - start) * lengths[start] + batch_cost for start, end in itertools.pairwise(edges))


def every_cut(count, most):
    for inner in itertools.product([False, True], repeat=count - 1):
        edges = [0, *(i for i, cut in enumerate(inner, start=1) if cut), count]
        if all(end - start <= most for start, end in itertools.pairwise(edges)):
            yield edges


@pytest.mark.parametrize(("most", "batch_cost"), [(1, 5), (3, 0), (3, 5), (8, 5), (8, 1000)])
def test_cuts_are_the_cheapest_of_all(most, batch_cost):
    rng = random.Random(most + batch_cost)
    lengths = sorted((rng.randrange(1, 20) for _ in range(8)), reverse=True)
    edges = cheapest_cuts(lengths, most, batch_cost)
    assert edges in list(every_cut(8, most))
    assert cost(lengths, edges, batch_cost) == min(cost(lengths, other, batch_cost) for other in every_cut(8, most))


@pytest.mark.parametrize("batch_cost", [None, 0, 7])
def test_every_row_is_in_one_batch_longest_first(batch_cost):
    lengths = [3, 9, 4, 9, 2, 6, 5]
    split = Split([{}] * 7, [{"input_ids": [5] * n} for n in lengths])
    batches = by_length(split, 3, batch_cost)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(7))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    assert max(map(len, batches)) <= 3


def test_no_split_no_batch():
    assert by_length(Split([], []), 3, 7) == by_length(Split([], []), 3) == []


def test_on_a_processor_nothing_is_padded_beyond_the_longest_row(tiny_tokenizer):
    encoded = [{"input_ids": [0, 5, 2], "labels": [6, 2]}, {"input_ids": [0, 5, 6, 7, 2], "labels": [2]}]
    batch = collate(Split([{}, {}], encoded), [0, 1], Generation(), tiny_tokenizer, CPU)
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (2, 5),
        "attention_mask": (2, 5),
        "labels": (2, 2),
    }
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert Runtime(torch.device("cuda"), "bfloat16").pad_multiple == 8


def test_states_below_the_adapters_follow_their_rows(plain_backbone, tiny_tokenizer):
    model = load_backbone(str(plain_backbone)).model
    handle = attach(model, AdapterConfig(bottleneck=4)).tss
    encoded = [{"input_ids": [0, *range(5, 5 + n), 2], "labels": [6, 2]} for n in (3, 1, 6, 2)]
    split = Split([{}] * 4, encoded)
    kept = cache_prefix(split, Generation(), tiny_tokenizer, CPU, handle, 2)
    batch = collate(kept, [2, 1], Generation(), tiny_tokenizer, CPU)
    below = batch.pop("prefix_states")
    assert below.shape == (2, 8, 16)
    assert not below[1, 3:].any()
    for row, states in zip((2, 1), below, strict=True):
        alone = collate(split, [row], Generation(), tiny_tokenizer, CPU)
        count = alone["input_ids"].shape[1]
        torch.testing.assert_close(states[:count], handle.frozen_prefix.compute(alone)[0])
    assert cache_prefix(split, Generation(), tiny_tokenizer, CPU, handle, 2, most=100).prefix_states is None
    assert cache_prefix(Split([], []), Generation(), tiny_tokenizer, CPU, handle, 2).prefix_states is None


def test_a_method_that_runs_batches_itself_goes_with_states_that_are_kept(plain_backbone, tiny_data, tmp_path):
    values = tiny_values(plain_backbone, tiny_data)
    assert run_sequence(load_config({**values, "method": "lwf"}), tmp_path / "run").matrix[-1][0] is not None

"""Time to switch tasks: measured at the end of a run, without any effect on it."""

from __future__ import annotations

import pytest
import torch

from tests.methods.conftest import learn, make_batches, start
from tss.run.sequence import run_sequence
from tss.run.switching import ROUNDS, time_to_switch

from .conftest import events


@pytest.mark.parametrize("name", ["tss", "one", "ewc"])
def test_every_task_is_selected_in_turn_and_nothing_else_changes(name, tiny_bart, monkeypatch):
    method, handle = start(tiny_bart, name)
    for seed in (1, 2):
        learn(handle, method, f"asc/{seed}", make_batches(seed))
    handle.use("asc/1")
    selected, use = [], handle.use
    monkeypatch.setattr(handle, "use", lambda task: (selected.append(task), use(task)))
    before = torch.get_rng_state()
    assert 0 < time_to_switch(handle, ["asc/1", "asc/2"], torch.device("cpu")) < 1
    assert selected == ROUNDS * ["asc/1", "asc/2"]
    assert torch.get_rng_state().equal(before)
    assert handle.active == "asc/1"


def test_a_run_of_several_tasks_logs_it_and_a_run_of_one_does_not(tiny_config, tmp_path):
    words = ["training.epochs=1", "training.warmup_ratio=0", "limits={train: 4, validation: 2, test: 2}"]
    for name, tasks in (("two", "tasks=[asc/phones, ner/people]"), ("one", "tasks=[asc/phones]")):
        run_sequence(tiny_config(*words, tasks), tmp_path / name)
    (two,), (one,) = (events(tmp_path / name, "run_end") for name in ("two", "one"))
    assert 0 < two["switch_seconds"] < 1
    assert one["switch_seconds"] is None

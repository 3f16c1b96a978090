"""State on disk: atomic, self-checking, and plain about what is wrong."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from tss.errors import StateError
from tss.io import safe_name, write_text
from tss.run.checkpoint import (
    Checkpoint,
    TaskProgress,
    flatten_optimizer,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
    unflatten_optimizer,
)
from tss.run.events import EventLog, Written
from tss.run.run_state import RunState, SealedTask, check_same, check_same_config, load_state
from tss.run.runtime import disk_errors


def make_state() -> RunState:
    sealed = [SealedTask("asc/a", "e" * 64, "d" * 64)]
    return RunState(
        "f" * 32, {"seed": 1}, {"asc/a": "x"}, {"torch": "2"}, "c" * 64, {}, sealed, rows=[{"asc/a": {"f1": 1 / 3}}]
    )


def test_state_round_trip(tmp_path):
    state = make_state()
    state.save(tmp_path / "run.json")
    assert load_state(tmp_path / "run.json") == state


def test_truncated_and_edited_state_is_named(tmp_path):
    path = tmp_path / "run.json"
    make_state().save(path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(StateError, match=r"run\.json: not a complete state file"):
        load_state(path)
    path.write_text(whole.replace("asc/a", "asc/b"))
    with pytest.raises(StateError, match=r"run\.json: its content has SHA-256 .*, expected .* edited"):
        load_state(path)
    content = json.loads(whole)
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(StateError, match="sha256"):
        load_state(path)


def test_another_configuration_is_refused_with_the_difference():
    saved = {"seed": 1, "training": {"epochs": 3, "batch_size": 4}, "tasks": ["a"], "log_seconds": 1.0}
    check_same_config(saved, saved | {"log_seconds": 9.0})
    with pytest.raises(StateError) as caught:
        check_same_config(saved, {**saved, "training": {"epochs": 5, "batch_size": 4}, "label": "x"})
    message = str(caught.value)
    assert "training.epochs: 3 in the run, 5 now" in message
    assert "label: '(absent)' in the run, 'x' now" in message
    assert "batch_size" not in message


def test_other_data_is_refused():
    check_same("data of {}", {"asc/a": "1"}, {"asc/a": "1"})
    with pytest.raises(StateError, match="data of asc/a and asc/c is not what the run began with"):
        check_same("data of {}", {"asc/a": "1", "asc/b": "2", "asc/c": "3"}, {"asc/a": "2", "asc/b": "2"})


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "matrix.json"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"No space left on device.*--resume"), disk_errors(tmp_path):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["matrix.json"]


def test_events_are_cut_back_throttled_and_told(tmp_path):
    path, told = tmp_path / "events.jsonl", []
    log = EventLog(path, step_seconds=1000, listener=told.append)
    log.emit("task_begin", task="a")
    written = log.written()
    for step in range(5):
        log.emit("step", step=step)
    log.close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in kept] == ["task_begin", "step"]
    assert [event["event"] for event in told] == ["task_begin", *["step"] * 5]
    again = EventLog(path, written=written)
    again.emit("epoch", task="a")
    again.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["task_begin", "epoch"]
    with pytest.raises(StateError, match=r"events\.jsonl: .* bytes found, at least 9999 expected"):
        EventLog(path, written=Written(9999, written.sha256))
    path.write_text(path.read_text().replace("task_begin", "task_ended"))
    with pytest.raises(StateError, match=r"events\.jsonl: its first \d+ bytes have SHA-256 .*, expected .* edited"):
        EventLog(path, written=written)


def test_a_checkpoint_gives_back_the_optimizer_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1)

    def step(parameters, optimizer):
        for i, weight in enumerate(parameters):
            weight.grad = torch.full_like(weight, 0.1 + i) * weight.detach()
        optimizer.step()

    step(weights, optimizer)
    progress = TaskProgress(epoch=2, step=1, loss_sum=0.1 + 0.2, best_epoch=1, best_value=-1 / 3, stale=1)
    progress.best = {"scores": torch.arange(6.0).reshape(2, 3)}
    learning = {str(i): weight for i, weight in enumerate(weights)}
    path = tmp_path / "learning.safetensors"
    save_checkpoint(path, Checkpoint("run", "a", 1, Written(17, "e"), progress, learning), optimizer)
    saved = read_checkpoint(path)
    assert (saved.run, saved.task, saved.index, saved.written) == ("run", "a", 1, Written(17, "e"))
    assert saved.progress.numbers() == progress.numbers()
    assert torch.equal(saved.progress.best["scores"], progress.best["scores"])
    copies = [torch.nn.Parameter(saved.learning[str(i)].clone()) for i in range(2)]
    fresh = torch.optim.AdamW(copies, lr=0.1)
    restore_optimizer(fresh, saved.optimizer)
    step(weights, optimizer)
    step(copies, fresh)
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
    assert unflatten_optimizer(*flatten_optimizer(fresh)).keys() == {0, 1}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateError, match=r"learning\.safetensors.*delete this file"):
        read_checkpoint(path)


def test_slugs_are_file_names():
    assert safe_name("asc/ding9_ipod") == "asc-ding9_ipod"
    assert safe_name("../x y") == "x-y"

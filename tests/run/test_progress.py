"""What a run tells: plain lines in a pipe, and an honest estimate of the time left."""

from __future__ import annotations

import io

import pytest
from safetensors.torch import load_file

from tss.run.progress import Console, TimeLeft, format_seconds
from tss.run.sequence import run_sequence
from tss.study.execute import Event, Progress
from tss.study.progress import Console as StudyConsole

from .conftest import events

BEGIN = {"event": "run_begin", "tasks": ["a", "b"], "steps": {"a": 10, "b": 20}, "method": "tss", "backbone": "x"}


def step(task: str, seconds: float) -> dict[str, object]:
    return {"event": "step", "task": task, "seconds": seconds, "loss": 1.0}


def test_time_left_follows_steps_and_evaluations():
    left = TimeLeft()
    left.see(BEGIN)
    assert left.seconds() is None
    for _ in range(5):
        left.see(step("a", 2.0))
    assert left.fraction("a") == 0.5
    assert left.seconds() == (5 + 20) * 2.0
    left.see({"event": "task_end", "task": "a"})  # stopped early
    assert left.seconds() == 20 * 2.0
    left.see({"event": "evaluated", "seconds": 3.0})
    assert left.seconds() == 20 * 2.0 + 2 * 3.0


def test_time_left_after_a_resume_counts_what_was_done():
    left = TimeLeft()
    left.see({"event": "resumed", "tasks": ["a", "b"], "steps": {"a": 10, "b": 20}, "done": {"a": 10}, "cells": 1})
    left.see(step("b", 1.0))
    assert left.seconds() == 19


def test_a_pipe_gets_plain_lines(tiny_config, tmp_path):
    stream = io.StringIO()
    config = tiny_config("tasks=[asc/phones, drg/trips]", "training.epochs=1")
    run_sequence(config, tmp_path / "run", progress=Console(stream, every=0))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0].startswith("2 tasks by tss on ")
    assert "[1] asc/phones (classification): 20 training, 6 validation, 6 test examples, 5 steps" in lines
    assert sum("of the steps, loss" in line for line in lines) == 10
    assert "  verified: 2 sealed tasks unchanged, bit for bit" in lines
    assert "  drg/trips: bleu" in text


@pytest.mark.parametrize("console", [Console, StudyConsole])
def test_a_reader_that_leaves_does_not_stop_the_training(console):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    shown = console(Gone(), every=0)
    for _ in range(2):
        if console is Console:
            shown({"event": "warning", "text": "a line"})
        else:
            shown(Event(None, None, Progress({}, finished=0, capacity=1)))
    shown.close()


def test_the_share_of_flipped_gates_is_of_the_adapters_that_the_task_uses(tiny_config, tmp_path):
    stream, folder = io.StringIO(), tmp_path / "run"
    keys = ["tasks=[asc/phones, drg/trips]", "training.epochs=1", "overrides.asc/phones.features=encoder_mean"]
    run_sequence(tiny_config(*keys), folder, progress=Console(stream, every=0))
    encoder_only, whole = events(folder, "epoch")
    (end, _) = events(folder, "task_end")
    assert end["unused"]
    assert all("decoder" in name for name in end["unused"])
    assert set(encoder_only["flipped"]) == set(encoder_only["density"]) == set(end["flipped"]) - set(end["unused"])
    assert set(whole["flipped"]) == set(end["flipped"])
    share = sum(encoder_only["flipped"].values()) / len(encoder_only["flipped"])
    assert share > 0
    assert f", {share:.2%} of the gates flipped" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (44.6, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3599.7, "1 h 00 min")],
)
def test_seconds_are_readable(seconds, text):
    assert format_seconds(seconds) == text


def test_the_movement_of_scores_is_that_from_the_start_of_the_task_to_what_it_kept(tiny_config, tmp_path):
    def ran(*tasks: str):
        folder = tmp_path / str(len(tasks))
        run_sequence(tiny_config(f"tasks=[{', '.join(tasks)}]", "training.epochs=1"), folder)
        (path,) = folder.glob("adapters/shared-*.safetensors")
        tensors = {key.partition("scores.")[2]: x for key, x in load_file(path).items() if "scores." in key}
        return tensors, events(folder, "task_end")

    before, _ = ran("asc/phones")
    after, (first, second) = ran("asc/phones", "drg/trips")
    assert second["moved"] == {x: pytest.approx((after[x] - before[x]).abs().mean().item()) for x in before}
    for end in (first, second):  # the first task starts from scores that were drawn for it
        assert all((value == 0) == (layer in end["unused"]) for layer, value in end["moved"].items())
        assert 0 < max(end["moved"].values()) < 1

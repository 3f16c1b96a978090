"""What is not finite stops a task at once, with the place, the remedy and the last good state; it is never sealed."""

from __future__ import annotations

import pytest
import torch

from tss.errors import StateError, TssError
from tss.run import loop
from tss.run.sequence import run_sequence
from tss_kernels import SoftMaskedAdamW

from .conftest import events

ONE = "tasks=[asc/phones]"


def spoil(monkeypatch, value, at, group):
    """Make one gradient of a group `value` at the step of this number, after a loss that is finite."""
    step, steps = SoftMaskedAdamW.step, []

    def spoiled(self, closure=None):
        if len(steps) == at:
            self.param_groups[group]["params"][0].grad.view(-1)[0] = value
        steps.append(1)
        return step(self, closure)

    monkeypatch.setattr(SoftMaskedAdamW, "step", spoiled)


@pytest.mark.parametrize("method", ["tss", "ncl"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("group", [0, 1])
def test_one_gradient_stops_the_task(tiny_config, tmp_path, monkeypatch, method, value, group):
    spoil(monkeypatch, value, at=3, group=group)
    config = tiny_config(ONE, f"method={method}", "checkpoint_steps=2", "training.epochs=1")
    with pytest.raises(TssError) as caught:
        run_sequence(config, tmp_path / "run")
    message = str(caught.value)
    assert "task asc/phones: a gradient, a score or a weight is not finite at epoch 0, step 3" in message
    assert "last good state of this one (epoch 0, step 2, in " in message
    assert ("score_lr" if method == "tss" else "adapter_lr") in message
    assert not events(tmp_path / "run", "task_end")
    monkeypatch.undo()
    assert run_sequence(config, tmp_path / "run", resume=True).matrix[0][0] is not None


def test_a_validation_that_is_not_finite_stops_the_task(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda job: (float("nan"), float("nan"), "loss"))
    with pytest.raises(TssError, match="task asc/phones: the validation loss is nan at epoch 0"):
        run_sequence(tiny_config(ONE), tmp_path / "run")


def test_what_is_not_finite_is_not_sealed(tiny_config, tmp_path, monkeypatch):
    learn = loop.learn

    def spoil_after(job, save, place):
        done = learn(job, save, place)
        with torch.no_grad():
            job.handle.trainable_parameters()["head"][0].view(-1)[0] = float("inf")
        return done

    monkeypatch.setattr("tss.run.sequence.learn", spoil_after)
    with pytest.raises(StateError, match=r"task 'asc/phones': head\..* not finite; it is still being trained"):
        run_sequence(tiny_config(ONE, "training.epochs=1"), tmp_path / "run")
    assert not (tmp_path / "run" / "tss.json").exists()

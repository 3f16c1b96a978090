"""Curves of runs for TensorBoard and Weights & Biases."""

from __future__ import annotations

import sys
import types

import pytest

from tss.cli.main import main
from tss.report.export import scalars, to_tensorboard, to_wandb
from tss.report.reading import read_run
from tss.run.config import load_config
from tss.run.sequence import run_sequence

from .conftest import tiny_values


@pytest.fixture(scope="module")
def folder(tiny_backbone, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_sequence(load_config({**tiny_values(tiny_backbone, tiny_data), "log_seconds": 0.0}), folder)
    return folder


def test_curves_are_drawn_against_the_steps_of_the_whole_run(folder):
    run = read_run(folder)
    points = list(scalars(run))
    places = [step for step, _ in points]
    assert places == sorted(places)
    losses = [step for step, values in points if "train/loss" in values]
    assert losses == list(range(1, len(losses) + 1))
    assert losses[-1] == sum(event["steps"] for event in run.of("task_begin"))
    tested = [(step, values) for step, values in points if any(name.startswith("test/") for name in values)]
    assert len(tested) == len(run.of("evaluated"))
    assert tested[-1][0] == losses[-1]
    ends = {step for step, values in points if f"validation/{run.tasks[0]}" in values}
    first = run.of("task_begin")[0]
    assert ends == {(epoch + 1) * first["steps"] // first["epochs"] for epoch in range(first["epochs"])}


class Recorder:
    """What takes the place of a writer or of wandb's run."""

    def __init__(self, *args, **kwargs):
        self.made, self.scalars, self.summary, self.closed = (args, kwargs), [], {}, False
        self.url, self.dir = "https://example.com/run", "offline"

    def add_scalar(self, name, value, step):
        self.scalars.append((step, {name: value}))

    def log(self, values, step):
        self.scalars.append((step, values))

    def close(self):
        self.closed = True

    finish = close


def test_tensorboard_gets_every_point(folder, tmp_path, monkeypatch):
    made = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda path: made.append(Recorder(path)) or made[-1]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run = read_run(folder)
    run.label = "a/b"
    assert to_tensorboard(run, tmp_path) == tmp_path / "a-b"
    (writer,) = made
    assert writer.made == ((str(tmp_path / "a-b"),), {})
    assert writer.scalars == [(step, {name: v}) for step, values in scalars(run) for name, v in values.items()]
    assert writer.closed


def test_tensorboard_reads_what_was_exported(folder, tmp_path, capsys):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["report", str(folder), "--out", str(tmp_path / "out"), "--tensorboard", str(tmp_path / "logs")]) == 0
    run = read_run(folder)
    written = tmp_path / "logs" / run.label
    assert capsys.readouterr().out.splitlines()[-1] == str(written)
    read = events.EventAccumulator(str(written), size_guidance={events.SCALARS: 0}).Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for step, values in scalars(run):
        for name, value in values.items():
            expected.setdefault(name, []).append((step, pytest.approx(value)))
    assert set(read.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        assert [(point.step, point.value) for point in read.Scalars(name)] == points


def test_wandb_gets_configuration_curves_and_summary(folder, monkeypatch, capsys, tmp_path):
    made = []
    module = types.ModuleType("wandb")
    module.init = lambda **settings: made.append(Recorder(**settings)) or made[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert main(["report", str(folder), "--out", str(tmp_path), "--wandb", "continual"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://example.com/run"
    (run,), read = made, read_run(folder)
    assert run.made[1]["project"] == "continual"
    assert run.made[1]["config"] == read.config
    assert run.scalars == list(scalars(read))
    assert run.summary["average"] == read.own_summary["average"]
    assert run.closed


@pytest.mark.parametrize(
    ("package", "export"),
    [("tensorboard", lambda run, path: to_tensorboard(run, path)), ("wandb", lambda run, path: to_wandb(run, "p"))],
)
def test_a_package_that_is_missing_is_named(folder, tmp_path, monkeypatch, package, export):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    from tss.errors import ConfigError

    with pytest.raises(ConfigError, match=f"--{package} needs the package {package}: pip install {package}"):
        export(read_run(folder), tmp_path)

"""MTL: one training for all tasks, each with a head of its own."""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter

import pytest
import torch

from tests.methods.conftest import KINDS, RATES, changed, learn, logits, make_batches, start, weights
from tests.run.conftest import TASKS, events, examples, read
from tss.errors import StateError
from tss.report import build
from tss.report.reading import read_run
from tss.run.config import load_config
from tss.run.joint import rounds
from tss.run.sequence import run_sequence


@pytest.fixture
def config(tiny_backbone, tmp_path):
    """A function of overrides and of the task whose labels are turned: its configuration, with data of its own."""

    def make(*overrides: str, turned: str | None = None):
        root = tmp_path / f"data-{(turned or 'as-is').replace('/', '-')}"
        for task in TASKS:
            (root / task).mkdir(parents=True, exist_ok=True)
            for split, count, offset in (("train", 20, 0), ("validation", 6, 20), ("test", 6, 26)):
                rows = examples(task, count, offset)
                if task == turned and split == "train":
                    labels = [row["label"] for row in rows]
                    rows = [{**row, "label": label} for row, label in zip(rows, [*labels[1:], labels[0]], strict=True)]
                (root / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "method": "mtl",
            "backbone": str(tiny_backbone),
            "data": str(root),
            "tasks": TASKS,
            "adapters": {"bottleneck": 4},
            "training": {"epochs": 3, "batch_size": 4, "source_length": 24, "target_length": 16},
            "generation": {"num_beams": 1, "min_new_tokens": 1, "max_new_tokens": 4},
            "precision": "float32",
            "device": "cpu",
            "log_seconds": 0,
        }
        return load_config(values, list(overrides))

    return make


def test_a_run_makes_the_steps_of_the_sequence_by_turns_and_fills_the_last_row_alone(config, tmp_path):
    settings = ["families.ner.epochs=1", "families.drg.adapter_lr=3e-3"]
    result = run_sequence(config(*settings), tmp_path / "mtl")
    run_sequence(config(*settings, "method=ncl"), tmp_path / "ncl")
    steps = {name: events(tmp_path / name, "step") for name in ("mtl", "ncl")}
    places = {name: {(e["task"], e["epoch"], e["step"]) for e in found} for name, found in steps.items()}
    assert places["mtl"] == places["ncl"]
    assert len(steps["mtl"]) == len(places["mtl"]) == 5 * (3 + 1 + 3)
    rates = {(e["task"], e["epoch"], e["step"]): e["score_lr"] for e in steps["ncl"]}
    assert all(e["score_lr"] == rates[e["task"], e["epoch"], e["step"]] for e in steps["mtl"])
    for half in (steps["mtl"][:17], steps["mtl"][18:]):  # in proportion to its steps, wherever one looks
        counts = Counter(e["task"] for e in half)
        assert {task: round(count / 17 * 7) for task, count in counts.items()} == dict(
            zip(TASKS, (3, 1, 3), strict=True)
        )

    assert result.matrix[:2] == [[None] * 3] * 2
    assert None not in result.matrix[2]
    assert result.summary["average"] == pytest.approx(sum(result.matrix[2]) / 3)
    assert (result.summary["learning"], result.summary["forgetting"]) == (None, None)
    told = read_run(tmp_path / "mtl")
    assert (told.learned, told.complete, told.damage, told.notes) == (3, True, [], [])
    page = build([tmp_path / "mtl", tmp_path / "ncl"], tmp_path / "page")
    assert page.damage == []
    with (tmp_path / "page" / "tables" / "tasks-1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["final"]) for row in rows] == pytest.approx(result.matrix[2])
    assert not {"learned", "adapters used"} & set(rows[0])  # neither is known of each task
    assert len(events(tmp_path / "mtl", "evaluated")) == 3
    assert len(list((tmp_path / "mtl" / "predictions").iterdir())) == 3
    ends = events(tmp_path / "mtl", "task_end")
    assert sum(e["seconds"] for e in ends) == pytest.approx(events(tmp_path / "mtl", "run_end")[0]["seconds"], rel=0.5)


def test_it_sees_every_task(config, tmp_path):
    """Other labels of the first task change what the second and the third have learned."""
    for turned in (None, TASKS[0]):
        run_sequence(config("training.epochs=1", turned=turned), tmp_path / str(turned).replace("/", "-"))
    first, second = (tmp_path / "None"), (tmp_path / TASKS[0].replace("/", "-"))
    assert read(first, "tss.json") != read(second, "tss.json")
    losses = [{e["task"]: e["validation_loss"] for e in events(folder, "epoch")} for folder in (first, second)]
    assert set(losses[0]) == set(TASKS)
    assert all(losses[0][task] != losses[1][task] for task in TASKS)


def test_every_task_moves_the_shared_weights_and_its_own_head_alone(calm_bart):
    method, handle = start(calm_bart, "mtl")
    kinds = {f"asc/{kind}": KINDS[kind] for kind in KINDS}
    method.begin_tasks(handle, kinds)
    assert handle.store.learners == tuple(kinds)
    optimizer = method.make_optimizer(handle, RATES)
    for name, kind in kinds.items():
        before = weights(handle)
        with handle.using(name):
            handle.loss(**make_batches(1, kind.kind)[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = changed(before, weights(handle))
        heads = {key for key in moved if key.startswith("learning.")}
        assert any(key.startswith("adapters.") for key in moved)
        assert not any(key.startswith("backbone.") for key in moved)
        assert bool(heads) == bool(handle.head_parameters(name))
        assert all(f"task-asc/{kind.kind}".replace("/", "%2F") in key for key in heads)
    for name in kinds:
        method.end_task(handle, name, [])
    assert handle.trainable is None
    assert all(record.state == "sealed" for record in handle.tasks.values())
    assert not any(p.requires_grad for p in handle.model.parameters())


def test_tasks_learned_together_answer_when_sealed_as_they_did_before(calm_bart):
    method, handle = start(calm_bart, "mtl")
    method.begin_tasks(handle, {"asc/a": KINDS["classification"], "ner/b": KINDS["extraction"]})
    batches = {"asc/a": make_batches(1)[0], "ner/b": make_batches(2, "extraction")[0]}
    before = {name: logits(handle, name, batch) for name, batch in batches.items()}
    state = {name: tensor.clone() for name, tensor in handle.learning_state().items()}
    with pytest.raises(StateError, match="cannot seal a task: the task being trained is asc/a or ner/b"):
        handle.seal_task()
    with pytest.raises(StateError, match="trained together, which a save cannot contain"):
        handle.saved()
    with torch.no_grad():
        for parameters in handle.trainable_parameters().values():
            for parameter in parameters:
                parameter.add_(1.0)
    handle.load_learning_state(state)
    for name in ("ner/b", "asc/a"):
        assert name in handle.store.learners
        with pytest.warns(UserWarning, match=f"'{name}' is sealed with its initial weights and head"):
            handle.seal_task(name=name)
    for name, batch in batches.items():
        assert torch.equal(logits(handle, name, batch), before[name])


def test_a_task_that_no_step_was_for_is_told_when_it_is_sealed_and_no_other(tiny_bart):
    method, handle = start(tiny_bart, "mtl")
    method.begin_tasks(handle, dict.fromkeys(("asc/a", "asc/b"), KINDS["classification"]))
    optimizer = method.make_optimizer(handle, RATES)
    handle.loss(**make_batches(1)[0]).backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle.seal_task(name="asc/a")
    with pytest.warns(UserWarning, match="'asc/b' is sealed with its initial head"):
        handle.seal_task(name="asc/b")


@pytest.mark.filterwarnings("ignore:task .* is sealed with its initial weights")
@pytest.mark.parametrize("of", ["asc/a", "asc/b", "all"])
def test_optimizers_of_tasks_learned_together_go_on_for_the_others_and_no_later_one(tiny_bart, of):
    method, handle = start(tiny_bart, "mtl")
    method.begin_tasks(handle, dict.fromkeys(("asc/a", "asc/b"), KINDS["classification"]))
    every = [p for group in handle.trainable_parameters().values() for p in group]
    optimizer = torch.optim.SGD(every if of == "all" else handle.head_parameters(of), lr=0.1)
    loss = handle.loss(**make_batches(1)[0])
    loss.backward()
    optimizer.step()
    handle.seal_task(name="asc/a")
    with handle.using("asc/b"):
        handle.loss(**make_batches(1)[0]).backward()
    optimizer.step()
    handle.seal_task()
    handle.add_task("asc/c", KINDS["classification"])
    handle.train_task("asc/c")
    with pytest.raises(StateError, match="created before training of task 'asc/c' started"):
        optimizer.step()


def test_what_cannot_be_learned_together_is_refused(tiny_bart):
    for name in ("tss", "one", "lora", "hat"):
        method, handle = start(tiny_bart, name)
        for task in ("asc/a", "asc/b"):
            handle.add_task(task, KINDS["classification"])
        with pytest.raises(ValueError, match="2 tasks cannot be trained together on these adapters"):
            handle.train_tasks(["asc/a", "asc/b"])
        assert handle.trainable is None
        handle.detach()
    method, handle = start(tiny_bart, "mtl")
    learn(handle, method, "asc/old", make_batches(1))
    for task in ("asc/a", "asc/b"):
        handle.add_task(task, KINDS["classification"])
    for names in ([], ["asc/a", "asc/a"]):
        with pytest.raises(ValueError, match="expected at least one task name and no name twice"):
            handle.train_tasks(names)
    with pytest.raises(StateError, match="'asc/old' is sealed"):
        handle.train_tasks(["asc/a", "asc/old"])
    handle.train_tasks(["asc/a", "asc/b"])
    with pytest.raises(StateError, match="'asc/a', 'asc/b' is being trained; seal it"):
        handle.train_task("asc/a")
    shared = {name: tensor.clone() for name, tensor in handle.shared_state().items()}
    with torch.no_grad():
        for parameter in handle.trainable_parameters()["scores"]:
            parameter.add_(1.0)
    handle.abandon()
    assert [handle.tasks[task].state for task in ("asc/a", "asc/b")] == ["new", "new"]
    assert all(torch.equal(tensor, shared[name]) for name, tensor in handle.shared_state().items())


@pytest.mark.parametrize(("steps", "count"), [([6, 3, 12], 3), ([5, 1], 4), ([7], 7), ([40, 8, 2], 8)])
def test_rounds_hold_every_step_once_in_order_and_in_proportion(steps, count):
    made = rounds(steps, count)
    assert len(made) == count
    flat = [step for one in made for step in one]
    for i, number in enumerate(steps):
        assert [k for task, k in flat if task == i] == list(range(number))
        for one in made:
            assert abs(sum(task == i for task, _ in one) - number / count) < 1
        for end in range(1, len(flat) + 1):
            done = sum(task == i for task, _ in flat[:end])
            assert abs(done - end * number / sum(steps)) <= len(steps)

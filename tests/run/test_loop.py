"""One optimizer step and one evaluation, taken apart."""

from __future__ import annotations

import pytest
import torch

from tss.adapters import AdapterConfig, attach
from tss.methods import METHODS
from tss.methods.hat import Hat, masked_sites
from tss.run import loop
from tss.run.checkpoint import TaskProgress
from tss.run.config import TaskSettings
from tss.run.evaluate import evaluate, evaluate_with_loss, mean_loss
from tss.run.events import EventLog
from tss.run.examples import Split, by_length, encode_split, with_settings
from tss.run.loop import Job, backward, steps_per_epoch
from tss.run.runtime import Runtime
from tss.run.sequence import run_sequence
from tss.tasks import Classification, Extraction, Generation

KIND = Classification(labels=("bad", "good"))
ROWS = [{"text": " ".join(["phone"] * (1 + i * 7 % 5)), "label": ("bad", "good")[i % 2]} for i in range(7)]
CPU = Runtime(torch.device("cpu"), "float32")


@pytest.fixture
def job(tiny_bart, tiny_tokenizer, tmp_path):
    cls = METHODS["tss"]
    method, settings = cls(cls.options_type()), TaskSettings(batch_size=2)
    handle = attach(tiny_bart, AdapterConfig(bottleneck=4), method.layer_options()).tss
    method.begin_task(handle, "asc/a", KIND)
    split = encode_split(ROWS, KIND, tiny_tokenizer, settings)
    log = EventLog(tmp_path / "events.jsonl")
    yield Job("asc/a", 0, KIND, settings, split, split, handle, method, tiny_tokenizer, CPU, 1, log)
    log.close()


def gradients(job: Job, group: list[list[int]]) -> tuple[float, list[torch.Tensor]]:
    loss = backward(job, group, 0, 0)
    parameters = [p for ps in job.handle.trainable_parameters().values() for p in ps]
    found = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return loss, found


def test_accumulated_gradients_are_the_mean_of_their_batches(job):
    job.handle.model.eval()  # without dropout the parts can be compared
    loss, together = gradients(job, [[0, 1], [2, 3]])
    (first_loss, first), (second_loss, second) = gradients(job, [[0, 1]]), gradients(job, [[2, 3]])
    assert loss == pytest.approx((first_loss + second_loss) / 2)
    for whole, a, b in zip(together, first, second, strict=True):
        torch.testing.assert_close(whole, (a + b) / 2)
    assert any(gradient.abs().sum() > 0 for gradient in together)


def test_dropout_depends_on_the_place_in_the_run_alone(job):
    job.handle.model.train()
    torch.manual_seed(1)
    first, _ = gradients(job, [[0, 1]])
    torch.manual_seed(2)
    assert gradients(job, [[0, 1]])[0] == first
    assert backward(job, [[0, 1]], 0, 1) != first


def test_steps_cover_every_example_once_an_epoch(job):
    job.settings = TaskSettings(batch_size=2, grad_accumulation=3)
    groups = job.groups(0)
    assert len(groups) == job.steps_per_epoch() == steps_per_epoch(7, job.settings) == 2
    assert sorted(row for group in groups for rows in group for row in rows) == list(range(7))
    assert job.groups(0) == groups
    assert any(job.groups(epoch) != groups for epoch in range(1, 5))


class Echo(Classification):
    """Answers with the second token of each row."""

    def predict(self, model, batch, tokenizer, *, examples=None):
        assert not model.training
        assert not torch.is_grad_enabled()
        return batch["input_ids"][:, 1].tolist()

    def references(self, examples):
        return [example["place"] for example in examples]

    def score(self, predictions, references):
        return {"macro_f1": 100.0 * (predictions == references)}


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_predictions_come_back_in_the_datas_order(tiny_bart, tiny_tokenizer, batch_size):
    lengths = [3, 9, 4, 9, 2, 6, 5]
    split = Split(
        [{"place": 10 + i} for i in range(7)],
        [{"input_ids": [0, 10 + i, *[5] * n], "labels": [0]} for i, n in enumerate(lengths)],
    )
    kind = Echo(labels=("a", "b"))
    result = evaluate(tiny_bart.train(), kind, split, tiny_tokenizer, batch_size=batch_size, runtime=CPU)
    assert result.predictions == [10 + i for i in range(7)]
    assert result.metrics == {"macro_f1": 100.0}
    order = [row for rows in by_length(split, batch_size) for row in rows]
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)


def test_the_validation_loss_weighs_every_example_alike(job):
    arguments = (job.handle.model, KIND, job.train, job.tokenizer)
    by_ones = mean_loss(*arguments, batch_size=1, runtime=CPU)
    for size in (2, 3, 7):
        assert mean_loss(*arguments, batch_size=size, runtime=CPU) == pytest.approx(by_ones, rel=1e-5)


@pytest.mark.parametrize("kind", [KIND, Extraction(labels=("O", "B-A", "I-A"))], ids=["classification", "extraction"])
def test_one_pass_gives_metric_and_loss_of_a_labelled_task(tiny_bart, tiny_tokenizer, kind):
    words, lengths = ["good", "bad", "hotel"], [2, 7, 3, 5, 1, 6, 4]
    tokens = [[words[(i + j) % 3] for j in range(n)] for i, n in enumerate(lengths)]
    tags = [[("O", "B-A")[i % 2], *["O"] * (n - 1)] for i, n in enumerate(lengths)]
    examples = [
        {"text": " ".join(row), "label": kind.labels[i % 2], "tokens": row, "ner_tags": marks}
        for i, (row, marks) in enumerate(zip(tokens, tags, strict=True))
    ]
    split = encode_split(examples, kind, tiny_tokenizer, TaskSettings())
    model = attach(tiny_bart, AdapterConfig(bottleneck=4))
    model.tss.add_task("a", kind)
    model.tss.train_task("a")
    alone = evaluate(model, kind, split, tiny_tokenizer, batch_size=3, runtime=CPU)
    loss = mean_loss(model, kind, split, tiny_tokenizer, batch_size=3, runtime=CPU)
    passes = []
    tiny_bart.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    together, its_loss = evaluate_with_loss(model.train(), kind, split, tiny_tokenizer, batch_size=3, runtime=CPU)
    assert len(passes) == len(by_length(split, 3, CPU.batch_cost))
    assert together == alone
    assert its_loss == pytest.approx(loss, rel=1e-6)


def test_a_kind_takes_the_runs_settings():
    settings = TaskSettings.model_validate({"metric": "bleu", "generation": {"num_beams": 2, "max_new_tokens": 9}})
    kind = with_settings(Generation(), settings, "sum/a")
    assert (kind.main_metric, kind.num_beams, kind.max_new_tokens) == ("bleu", 2, 9)
    assert with_settings(KIND, TaskSettings.model_validate({"generation": {"num_beams": 2}}), "asc/a") == KIND


def test_epochs_of_the_same_metric_are_told_apart_by_their_loss(monkeypatch, job):
    """A metric of 0 for two epochs does not choose the first, and a better loss alone does not reset the patience."""
    values = iter([(0.0, 2.0, "f1"), (0.0, 1.5, "f1"), (0.0, 1.7, "f1"), (3.0, 9.0, "f1"), (3.0, 8.0, "f1")])
    monkeypatch.setattr(loop, "validate", lambda job: next(values))
    job.first_gates, progress, seen = job.handle.packed(), TaskProgress(), []
    for _ in range(5):
        progress.step = 1
        loop.finish_epoch(job, progress)
        seen.append((progress.best_epoch, progress.best_value, progress.best_loss, progress.stale))
    assert seen == [(0, 0.0, 2.0, 0), (1, 0.0, 1.5, 1), (1, 0.0, 1.5, 2), (3, 3.0, 9.0, 0), (4, 3.0, 8.0, 1)]


def test_the_runner_tells_every_step_its_place_in_the_epoch(tiny_config, tmp_path, monkeypatch):
    slopes, begin_step = [], Hat.begin_step

    def watch(method, handle, step, steps):
        begin_step(method, handle, step, steps)
        slopes.append((step, steps, masked_sites(handle)[0].slope))

    monkeypatch.setattr(Hat, "begin_step", watch)
    config = tiny_config("method=hat", "method_options.steepness=50", "tasks=[asc/phones]", "training.epochs=2")
    run_sequence(config, tmp_path / "run")
    expected = [(step, 5, pytest.approx(0.02 + (50 - 0.02) * step / 4)) for step in range(5)]
    assert slopes == expected * 2

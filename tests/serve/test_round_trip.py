"""Three tasks learned by `tss run`, served from its folder, a fourth learned in Python: all four answer together."""

from __future__ import annotations

import json

import torch
import yaml

import tss
from tests.run.conftest import TASKS, examples, tiny_values, write_tiny_data
from tests.serve.conftest import Gate, ask, until
from tss.cli.main import main
from tss.run.learned import open_learned

QUESTIONS = {
    "asc/phones": {"text": "the battery is good", "aspect": "battery"},
    "ner/people": {"tokens": ["Alice", "visits", "Paris"]},
    "drg/trips": {"source": "Bob buys a camera"},
    "mood": {"text": "the screen is bad"},
}


def learn_mood(tokenizer):
    """A function that learns a fourth task in a model."""

    def learn(model):
        texts = [row["text"] for row in examples("asc/phones", 8, 0)]
        batch = {**tokenizer(texts, padding=True, return_tensors="pt"), "labels": torch.arange(8) % 2}
        model.tss.add_task("mood", tss.Classification(labels=["good", "bad"]))
        model.tss.train_task("mood")
        optimizer = model.tss.optimizer(score_lr=0.05, head_lr=5e-3)
        for _ in range(4):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        model.tss.seal_task([batch])
        model.eval()

    return learn


def test_tasks_of_a_run_and_one_learned_while_they_are_served_answer_together(
    tmp_path, tiny_backbone, served, monkeypatch
):
    values = tiny_values(tiny_backbone, write_tiny_data(tmp_path / "data"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    run, saved = tmp_path / "run", tmp_path / "saved"
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(run), "--quiet"]) == 0

    opened = open_learned(run)
    client = served(of=opened)
    before = {task: ask(client, task, QUESTIONS[task]).json() for task in TASKS}
    client.service.change(learn_mood(opened.backbone.tokenizer)).result(60)
    gate = Gate(client.service, monkeypatch)
    asked = {task: client.service.submit(task, [(task, given)])[0] for task, given in QUESTIONS.items()}
    until(lambda: gate.batches)
    gate.open()
    found = {task: future.result(60) for task, future in asked.items()}
    for task, reply in before.items():
        assert {"task": task, "prediction": found[task].prediction, **found[task].details} == reply
    labelled = [task for task in QUESTIONS if task != "drg/trips"]  # what generates has a search of its own
    assert sorted(task for batch in gate.batches for task in batch) == sorted(QUESTIONS)

    def all_in_one(model):
        model.tss.save(saved)
        encoded = opened.backbone.tokenizer(["the battery is good"] * len(labelled), return_tensors="pt")
        with torch.no_grad():
            return model(**encoded, task=labelled).logits, [model(**encoded, task=task).logits for task in labelled]

    mixed, alone = client.service.change(all_in_one).result(60)
    for row, (got, expected) in enumerate(zip(mixed, alone, strict=True)):
        torch.testing.assert_close(got, expected[row])

    lines = [{**given, "task": task} for task, given in QUESTIONS.items()]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["predict", str(saved), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main([*command, "--backbone", str(tiny_backbone)]) == 0
    answers = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert {answer["task"]: answer["prediction"] for answer in answers} == {
        task: answer.prediction for task, answer in found.items()
    }

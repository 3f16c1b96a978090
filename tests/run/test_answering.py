"""Rows of many tasks answered together: as each task alone, in few passes, and with how sure it is."""

from __future__ import annotations

import dataclasses
import itertools
import random
import types

import pytest
import torch

import tss
from scripts.load.random_tasks import add_random_tasks, save_random_tasks
from tss.adapters import saving
from tss.errors import StateError
from tss.run import answering
from tss.run import learned as learned_module
from tss.run.answering import Answer
from tss.run.backbone import load_backbone
from tss.run.config import load_config
from tss.run.evaluate import predict
from tss.run.examples import encode_split
from tss.run.learned import Question, TooLong, UnknownTask, open_learned
from tss.tasks import Generation

KINDS = {
    "asc/a": tss.Classification(labels=("no", "yes")),
    "asc/b": tss.Classification(labels=("x", "y", "z")),
    "asc/mean": tss.Classification(labels=("x", "y", "z"), features="encoder_mean"),
    "ner/c": tss.Extraction(labels=("O", "B-PER", "B-LOC")),
    "drg/d": tss.Generation(num_beams=1, max_new_tokens=5, prompt="good {source} bad"),
    "drg/e": tss.Generation(num_beams=1, max_new_tokens=5, metric="bleu"),
    "sum/beams": tss.Generation(num_beams=2, max_new_tokens=5),
}
WORDS = "the a phone screen battery is good bad great poor Alice visits Paris buys hotel".split()


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_backbone):
    folder = save_random_tasks(tmp_path_factory.mktemp("tasks") / "saved", KINDS, str(tiny_backbone))
    opened = open_learned(folder, backbone=str(tiny_backbone))
    config = load_config({"backbone": str(tiny_backbone), "training": {"source_length": 24}})
    return dataclasses.replace(opened, config=config)


def example(task, rng, length=None):
    words = [rng.choice(WORDS) for _ in range(length or rng.randrange(1, 20))]
    if task.startswith("ner"):
        return {"tokens": words}
    text = " ".join(words)
    if task.startswith("asc"):
        return {"text": text, **({"aspect": rng.choice(WORDS)} if rng.random() < 0.5 else {})}
    return {"source": text}


@pytest.fixture
def batches(monkeypatch):
    """The tasks of each batch that is run."""
    seen, run = [], answering.answer_batch

    def recorded(model, rows, *more):
        seen.append([row.task for row in rows])
        return run(model, rows, *more)

    monkeypatch.setattr(answering, "answer_batch", recorded)
    return seen


def test_a_save_reads_inputs_as_long_as_the_backbone_can(tmp_path, tiny_backbone):
    """A save does not say how long inputs were in training: more than the default of runs is read, and counted."""
    folder = save_random_tasks(tmp_path / "small", {"asc/a": KINDS["asc/a"]}, str(tiny_backbone))
    assert open_learned(folder, backbone=str(tiny_backbone)).settings_of("asc/a").source_length == 64
    folder = save_random_tasks(tmp_path / "saved", {"asc/a": KINDS["asc/a"]}, "embedded")
    opened = open_learned(folder, backbone="embedded")
    positions = opened.backbone.model.config.max_position_embeddings
    assert opened.settings_of("asc/a").source_length == positions
    tokenizer = opened.backbone.tokenizer
    texts = [" ".join(["good"] * 150 + [word] * 10) for word in ("bad", "poor")]
    most = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert 128 < max(most) <= positions
    found = opened.answer([Question("asc/a", {"text": text}, most_tokens=10**6) for text in texts])
    model = opened.model.eval()
    for one, text in zip(found, texts, strict=True):
        assert "truncated" not in one.details
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt"), task="asc/a").logits
        assert one.details["confidence"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)


def test_rows_of_many_tasks_are_answered_as_each_task_alone(learned, batches):
    rng = random.Random(0)
    rows = [(task, example(task, rng)) for task in rng.choices(list(KINDS), k=80)]
    found = learned.predict(rows)
    expected = {}
    for task, kind in learned.kinds.items():
        places = [i for i, (name, _) in enumerate(rows) if name == task]
        split = encode_split([rows[i][1] for i in places], kind, learned.backbone.tokenizer, learned.settings_of(task))
        with learned.handle.using(task):
            alone = predict(learned.model, kind, split, learned.backbone.tokenizer, batch_size=32,
                            runtime=learned.runtime)  # fmt: skip
        expected |= dict(zip(places, alone, strict=True))
    assert found == [expected[i] for i in range(len(rows))]
    shared = [set(batch) for batch in batches]
    assert any({"asc/a", "asc/b", "ner/c"} <= batch for batch in shared)
    assert any({"drg/d", "drg/e"} <= batch for batch in shared)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("asc/a", "ner/c", True),
        ("asc/a", "asc/mean", False),  # another stack
        ("drg/d", "drg/e", True),  # the metric decodes nothing
        ("drg/d", "sum/beams", False),
        ("asc/a", "drg/d", False),
    ],
)
def test_rows_share_a_batch_where_one_pass_answers_both(learned, batches, one, other, together):
    rng = random.Random(1)
    learned.predict([(task, example(task, rng, 4)) for task in (one, other)])
    assert len(batches) == (1 if together else 2)


def test_other_decoding_for_one_call(learned):
    source = {"source": "the phone is good"}
    short = Generation(num_beams=1, max_new_tokens=1, causal=False)
    usual, cut = learned.answer([Question("drg/d", source), Question("drg/d", source, kind=short)])
    assert len(cut.prediction.split()) <= 1 < len(usual.prediction.split())
    assert usual.prediction.startswith(cut.prediction)


def test_certainty_adds_up_and_is_of_what_was_predicted(learned):
    label, tags, text = learned.answer(
        [
            Question("asc/b", {"text": "the phone is good"}),
            Question("ner/c", {"tokens": ["Alice"] * 200}),  # cut
            Question("drg/d", {"source": "good"}),
        ]
    )
    assert sum(label.details["scores"].values()) == pytest.approx(1, abs=1e-6)
    assert max(label.details["scores"], key=label.details["scores"].get) == label.prediction
    assert label.details["confidence"] == label.details["scores"][label.prediction]
    read = [one for one in tags.details["confidence"] if one is not None]
    assert len(tags.prediction) == len(tags.details["confidence"]) == 200
    assert 0 < len(read) < 200
    assert all(1 / 3 <= one <= 1 for one in read)
    assert text == Answer(text.prediction)


def test_text_is_told_as_it_is_found_and_ends_as_the_answer(learned):
    told: dict[int, list[str]] = {0: [], 1: []}
    sources = ["the phone is good", "Alice visits Paris"]
    questions = [Question("drg/d", {"source": text}, on_text=told[i].append) for i, text in enumerate(sources)]
    answers = learned.answer([*questions, Question("drg/e", {"source": "good"})])
    for i, texts in told.items():
        assert len(texts) > 1
        assert all(later.startswith(before) for before, later in itertools.pairwise(texts))
        assert texts[-1] == answers[i].prediction


def test_a_row_that_cannot_be_answered_takes_no_other_with_it(learned, monkeypatch):
    run = answering.answer_batch

    def fail_at_bad(model, rows, *more):
        if any("bad" in row.example.get("text", "") for row in rows):
            raise RuntimeError("no such row")
        return run(model, rows, *more)

    monkeypatch.setattr(answering, "answer_batch", fail_at_bad)
    texts = ["good", "bad", "great"]
    found = learned.answer(
        [*[Question("asc/a", {"text": text}) for text in texts], Question("asc/gone", {"text": "a"})]
    )
    assert [type(one) for one in found] == [Answer, RuntimeError, Answer, UnknownTask]


def test_lengths_are_asked_about(learned):
    def ask(words, most):
        return learned.answer([Question("asc/a", {"text": " ".join(["good"] * words)}, most_tokens=most)])[0]

    assert not ask(22, 1000).details.get("truncated")  # 24 with <s> and </s>
    assert ask(23, 1000).details["truncated"] is True
    assert isinstance(ask(999, 1000), TooLong)
    assert isinstance(ask(998, 1000), Answer)
    assert isinstance(ask(20, 10), TooLong)
    assert isinstance(ask(8, 10), Answer)
    assert isinstance(ask(5000, None), Answer)


def test_tasks_are_taken_up_from_the_folder(learned, tmp_path, tiny_backbone):
    folder = save_random_tasks(tmp_path / "saved", {"asc/a": KINDS["asc/a"]}, str(tiny_backbone))
    here = open_learned(folder, backbone=str(tiny_backbone))
    assert here.reload() == []
    model = tss.load(load_backbone(str(tiny_backbone)).model, folder)
    before = here.predict([("asc/a", {"text": "good phone"})])
    add_random_tasks(model, {"drg/new": KINDS["drg/d"]})
    model.tss.save(folder)
    assert here.reload() == ["drg/new"]
    assert list(here.kinds) == ["asc/a", "drg/new"]
    assert here.predict([("asc/a", {"text": "good phone"})]) == before
    assert isinstance(here.predict([("drg/new", {"source": "good phone"})])[0], str)


def test_a_task_that_answers_is_never_replaced(tmp_path, tiny_backbone):
    folder = save_random_tasks(tmp_path / "saved", {"asc/a": KINDS["asc/a"]}, str(tiny_backbone))
    here = open_learned(folder, backbone=str(tiny_backbone))
    other = save_random_tasks(
        tmp_path / "other", {"asc/z": KINDS["asc/b"], "asc/a": KINDS["asc/a"]}, str(tiny_backbone)
    )
    here.folder = other
    with pytest.raises(StateError, match="'asc/a' is not the one that is loaded"):
        here.reload()
    assert list(here.kinds) == ["asc/a"]


def test_a_run_that_saves_while_its_folder_is_opened_is_read_again(tmp_path, tiny_backbone, monkeypatch):
    """The first read meets the files of the run's next task: those that its state named a moment ago are gone."""
    folder = save_random_tasks(tmp_path / "saved", {"asc/a": KINDS["asc/a"]}, str(tiny_backbone))
    manifest = saving.read_manifest(folder)
    file = manifest["shared"]["file"]
    other = file.translate(str.maketrans("0123456789", "1234567890"))
    gone = manifest | {"shared": manifest["shared"] | {"file": other}}
    states = [gone, manifest, manifest]

    class Files:
        state, path = folder / "tss.json", folder

        def __init__(self, folder):
            pass

        def load_state(self):
            return types.SimpleNamespace(sealed=["a task"], saved=states.pop(0))

    monkeypatch.setattr(learned_module, "RunFolder", Files)
    _, saved = learned_module._read(folder, keep=False)
    assert [about["name"] for _, about in saved.tasks] == ["asc/a"]
    states[:] = [gone, gone]
    with pytest.raises(StateError, match=f"{other} is missing"):
        learned_module._read(folder, keep=False)

"""A run goes on only as the run that it is: its folder, tokenizer, backbone, saved places and files are its own."""

from __future__ import annotations

import json
import shutil

import pytest

from tss.errors import StateError, TssError
from tss.run import prepare
from tss.run.folder import RunFolder
from tss.run.learned import open_learned
from tss.run.run_state import load_state
from tss.run.sequence import run_sequence

from .conftest import events

ONE = "tasks=[asc/phones]"
TWO = "tasks=[asc/phones, ner/people]"
QUICK = "training.epochs=1"


@pytest.fixture
def own_backbone(tiny_backbone, tmp_path):
    """A copy of the tiny backbone that a test may change."""
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, folder)
    return folder


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swap_two_words(tokenizer):
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("tokenizer.json", swap_two_words, "tokenizer"),
        ("tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "tokenizer"),
        ("config.json", lambda c: c.update(activation_function="relu"), "backbone's configuration"),
        ("config.json", lambda c: c.update(scale_embedding=True), "backbone's configuration"),
    ],
)
def test_another_tokenizer_or_configuration_is_refused(tiny_config, own_backbone, tmp_path, file, change, named):
    config, folder = tiny_config(ONE, QUICK, f"backbone={own_backbone}"), tmp_path / "run"
    run_sequence(config, folder)
    change_json(own_backbone / file, change)
    with pytest.raises(StateError, match=f"cannot resume: the {named} is not what the run began with"):
        run_sequence(config, folder, resume=True)
    with pytest.raises(StateError, match=f"the {named} is not what the run began with"):
        open_learned(folder)


def stop_after(monkeypatch, count):
    """Stop a run right after it has saved its place inside a task so many times."""
    save, saved = RunFolder.save_checkpoint, []

    def save_and_stop(self, *args, **named):
        save(self, *args, **named)
        saved.append(1)
        if len(saved) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_and_stop)


def test_a_saved_place_of_another_run_is_refused(tiny_config, tmp_path, monkeypatch):
    config, places = tiny_config(ONE), []
    for name in ("one", "two"):
        stop_after(monkeypatch, 2)
        with pytest.raises(KeyboardInterrupt):
            run_sequence(config, tmp_path / name)
        monkeypatch.undo()
        places.append(tmp_path / name / "state" / "learning.safetensors")
    shutil.copy(*places)
    with pytest.raises(StateError, match=r"learning\.safetensors is from another run"):
        run_sequence(config, tmp_path / "two", resume=True)
    places[1].unlink()  # as the message says
    run_sequence(config, tmp_path / "two", resume=True)


def test_an_edited_configuration_file_is_not_believed(tiny_config, tmp_path):
    folder = run_sequence(tiny_config(ONE, QUICK), tmp_path / "run").folder
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("source_length: 24", "source_length: 8"))
    assert open_learned(folder).config.training.source_length == 24


def test_settings_of_a_task_to_come_may_change(tiny_config, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(TssError, match=r"--resume overrides\.ner/people\.score_lr=VALUE"):
        run_sequence(tiny_config(TWO, QUICK, "overrides.ner/people.head_lr=1e37", "training.warmup_ratio=0"), folder)
    late = tiny_config(TWO, QUICK, "overrides.asc/phones.head_lr=1", "training.warmup_ratio=0")
    with pytest.raises(StateError, match=r"overrides\.asc/phones"):
        run_sequence(late, folder, resume=True)
    config = tiny_config(TWO, QUICK, "overrides.ner/people.head_lr=0.001", "training.warmup_ratio=0")
    done = run_sequence(config, folder, resume=True)
    assert done.matrix[1][1] is not None
    assert [event["tasks"] for event in events(folder, "settings")] == [["ner/people"]]
    state = load_state(RunFolder(folder).state)
    assert state.config["overrides"]["ner/people"] == {"head_lr": 0.001}
    assert RunFolder(folder).changed_results(state) == []


def test_a_resume_removes_what_this_run_left_and_nothing_else(tiny_config, tmp_path):
    config, folder = tiny_config(ONE, QUICK), tmp_path / "run"
    run_sequence(config, folder)
    ours = [f"matrix.json.{'a' * 32}.partial", f"tasks/01-asc-phones-{'b' * 12}.safetensors.{'c' * 32}.partial"]
    theirs = ["thesis.partial", f"thesis.tex.{'a' * 32}.partial", "notes.tmp", "tasks/mine.partial", "deep/x.partial"]
    theirs += [f"deep/matrix.json.{'a' * 32}.partial", f"tasks/model-{'b' * 12}.safetensors"]
    for name in (*ours, *theirs):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    run_sequence(config, folder, resume=True)
    assert not any((folder / name).exists() for name in ours)
    assert all((folder / name).exists() for name in theirs)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml", "tasks/paper.safetensors", "x.partial"])
def test_a_folder_with_other_files_is_refused(tiny_config, tmp_path, name, resume):
    path = tmp_path / "work" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(StateError, match=r"contains files that are not part of a run \(.*choose a new or empty folder"):
        run_sequence(tiny_config(ONE, QUICK), tmp_path / "work", resume=resume)
    assert [file.read_text() for file in (tmp_path / "work").rglob("*") if file.is_file()] == ["mine"]


@pytest.mark.parametrize("made", [[], ["state"], ["state", "state/lock"]])
def test_a_start_that_was_killed_before_it_wrote_anything_can_be_repeated(tiny_config, tmp_path, made):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in made:
        (folder / name).touch() if name.endswith("lock") else (folder / name).mkdir()
    assert run_sequence(tiny_config(ONE, QUICK), folder, resume=bool(made)).tasks == ["asc/phones"]


def test_a_start_that_looked_before_another_took_the_lock_changes_nothing(tiny_config, tmp_path, monkeypatch):
    config, folder, attach = tiny_config(ONE, QUICK), tmp_path / "run", prepare.attach_adapters

    def attach_while_another_runs(*args):
        monkeypatch.undo()
        run_sequence(config, folder)
        before.update({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        return attach(*args)

    before = {}
    monkeypatch.setattr(prepare, "attach_adapters", attach_while_another_runs)
    with pytest.raises(StateError, match="another process has since started a run here"):
        run_sequence(config, folder)
    assert before
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_edited_events_are_named(tiny_config, tmp_path):
    config, folder = tiny_config(ONE, QUICK), tmp_path / "run"
    run_sequence(config, folder)
    path = folder / "events.jsonl"
    path.write_text(path.read_text().replace('"epoch"', '"epoqh"', 1))
    with pytest.raises(StateError, match=r"events\.jsonl: its first \d+ bytes have SHA-256 .* edited"):
        run_sequence(config, folder, resume=True)

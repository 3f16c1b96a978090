"""The sequence on three tiny tasks: what it writes, what it refuses, and that nothing is forgotten."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tss
from tss.errors import ConfigError, ForgettingError, StateError, TssError
from tss.io import sha256, to_json
from tss.run import sequence
from tss.run.backbone import load_backbone
from tss.run.folder import RunFolder
from tss.run.learned import open_learned
from tss.run.loop import schedule
from tss.run.run_state import load_state
from tss.run.runtime import memory_errors
from tss.run.sequence import run_sequence
from tss_kernels import SoftMaskedAdamW

from .conftest import events, examples, read

ONE = "tasks=[asc/phones]"
TWO = "tasks=[asc/phones, ner/people]"


def task_files(folder):
    """Names of the task files, without the digest that each ends with."""
    return [path.name.rpartition("-")[0] for path in sorted((folder / "tasks").iterdir())]


def test_a_run_fills_its_folder(tiny_config, tmp_path):
    told = []
    result = run_sequence(tiny_config(), tmp_path / "run", progress=told.append)
    content = read(result.folder)
    tasks = ["asc/phones", "ner/people", "drg/trips"]
    assert content["tasks"] == result.tasks == tasks
    assert content["kinds"] == {tasks[0]: "classification", tasks[1]: "extraction", tasks[2]: "generation"}
    assert content["main"] == {tasks[0]: "macro_f1", tasks[1]: "f1", tasks[2]: "bleu"}
    assert content["test_size"] == dict.fromkeys(tasks, 6)
    for i in range(3):
        for j in range(3):
            cell = content["matrix"][i][j]
            assert cell is None if i < j else 0 <= cell <= 100
            assert cell is None or content["metrics"][i][j][content["main"][tasks[j]]] == cell
    assert content["summary"]["forgetting"] == 0.0
    assert content["matrix"][2][:2] == [content["matrix"][0][0], content["matrix"][1][1]]
    assert "time" not in content
    assert task_files(result.folder) == ["01-asc-phones", "02-ner-people", "03-drg-trips"]
    assert len((result.folder / "predictions" / "02-ner-people.jsonl").read_text().splitlines()) == 6
    assert [event["event"] for event in told if event["event"] not in ("step", "warning")] == [
        "run_begin",
        *["task_begin", "epoch", "epoch", "epoch", "task_end", "verified", "evaluated"],
        *["task_begin", "epoch", "epoch", "epoch", "task_end", "verified", "evaluated", "evaluated"],
        *["task_begin", "epoch", "epoch", "epoch", "task_end", "verified", "evaluated", "evaluated", "evaluated"],
        "run_end",
    ]
    assert len(events(result.folder, "step")) == 3 * 3 * 5
    end = events(result.folder, "task_end")[-1]
    assert set(end["density"]) == set(end["flipped"]) == set(end["importance_mean"])
    assert all(0 < mean < 1 for mean in end["importance_mean"].values())
    assert end["peak_bytes"] > 0
    assert end["bytes"]["total"] == end["bytes"]["gates"] + end["bytes"]["head"]
    again = run_sequence(tiny_config(), result.folder, resume=True)
    assert again.matrix == result.matrix
    assert len(events(result.folder, "run_end")) == 1


def plant_after(monkeypatch, task, change):
    """Change something of the handle right after `task` was sealed."""
    seal = sequence.seal_task

    def seal_and_plant(run, job):
        sealed = seal(run, job)
        if job.name == task:
            with torch.no_grad():
                change(run.handle)
        return sealed

    monkeypatch.setattr(sequence, "seal_task", seal_and_plant)


def flip_one_gate(handle):
    tensors, _ = handle.task_state("asc/phones")
    next(tensor for tensor in tensors.values() if tensor.dtype == torch.uint8)[0, 0] ^= 1


def nudge_backbone(handle):
    next(parameter for name, parameter in handle.model.named_parameters() if "fc1.weight" in name)[0, 0] += 1e-3


def nudge_adapter(handle):
    next(iter(handle.layers.values())).weight[0, 0] += 1e-3


def nudge_head(handle):
    tensors, _ = handle.task_state("asc/phones")
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] += 1e-3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (flip_one_gate, "gates or head of sealed task asc/phones"),
        (nudge_head, "gates or head of sealed task asc/phones"),
        (nudge_backbone, "frozen weights"),
        (nudge_adapter, "frozen weights"),
    ],
)
def test_a_planted_change_stops_the_run(tiny_config, tmp_path, monkeypatch, change, named):
    plant_after(monkeypatch, "ner/people", change)
    with pytest.raises(ForgettingError, match=named):
        run_sequence(tiny_config(TWO, "training.epochs=1"), tmp_path / "run")
    assert len(events(tmp_path / "run", "verified")) == 1
    assert read(tmp_path / "run")["matrix"][1] == [None, None]
    assert task_files(tmp_path / "run") == ["01-asc-phones"]  # what failed was not kept, so the run can go on
    monkeypatch.undo()
    assert run_sequence(tiny_config(TWO, "training.epochs=1"), tmp_path / "run", resume=True).matrix[1][1] is not None


def test_changed_logits_alone_stop_the_run(tiny_config, tmp_path, monkeypatch):
    """A change that no fingerprint sees: a hook on the backbone that begins to act after the second task."""

    def hook(handle):
        first = next(module for name, module in handle.model.named_modules() if name.endswith("fc1"))
        first.register_forward_hook(lambda module, inputs, output: output + 1e-3)

    plant_after(monkeypatch, "ner/people", hook)
    with pytest.raises(ForgettingError, match="logits of sealed task asc/phones on its probe batch"):
        run_sequence(tiny_config(TWO, "training.epochs=1"), tmp_path / "run")


def test_what_cannot_be_resumed_is_refused(tiny_config, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(StateError, match="nothing to resume"):
        run_sequence(tiny_config(ONE), folder, resume=True)
    run_sequence(tiny_config(ONE, "training.epochs=1"), folder)
    with pytest.raises(StateError, match="already holds a run: continue it with --resume"):
        run_sequence(tiny_config(ONE, "training.epochs=1"), folder)
    with pytest.raises(StateError, match=r"training\.epochs: 1 in the run, 3 now"):
        run_sequence(tiny_config(ONE), folder, resume=True)
    (sealed,) = (folder / "tasks").iterdir()
    whole = sealed.read_bytes()
    for damaged in (whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1])):
        sealed.write_bytes(damaged)
        with pytest.raises(StateError, match=r"01-asc-phones-.*\.safetensors.*(expected|truncated)"):
            run_sequence(tiny_config(ONE, "training.epochs=1"), folder, resume=True)
    sealed.write_bytes(whole)
    state = folder / "state" / "run.json"
    state.write_text(state.read_text()[:-40])
    with pytest.raises(StateError, match=r"run\.json: not a complete state file"):
        run_sequence(tiny_config(ONE, "training.epochs=1"), folder, resume=True)


def test_wrong_names_and_lengths_stop_before_anything_is_written(tiny_config, tmp_path):
    for override, expected in (
        ("tasks=[asc/nothing]", r"1 of 1 tasks of the sequence are not in .*: asc/nothing\. It has: asc/phones"),
        ("training.source_length=4000", "source_length is 4000, but the backbone has 64 positions"),
        ("training.metric=rouge1", "asc/phones.*rouge1"),
        ("backbone=./nowhere", "nowhere is not a model folder"),
        ("device=cuda:99", "cuda:99"),
    ):
        with pytest.raises(ConfigError, match=expected):
            run_sequence(tiny_config(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_changed_data_and_a_second_process_are_refused(tiny_config, tiny_data, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    config = tiny_config(ONE, "training.epochs=1", f"data={data}")
    run_sequence(config, folder)
    with RunFolder(folder).lock(), pytest.raises(StateError, match="another process is writing this run"):
        run_sequence(config, folder, resume=True)
    train = data / "asc" / "phones" / "train.jsonl"
    train.write_text(train.read_text().replace("battery", "screen", 1))
    with pytest.raises(StateError, match="the data of asc/phones is not what the run began with"):
        run_sequence(config, folder, resume=True)


def test_another_backbone_is_refused(tiny_config, tiny_backbone, tmp_path):
    backbone, folder = tmp_path / "backbone", tmp_path / "run"
    shutil.copytree(tiny_backbone, backbone)
    config = tiny_config(ONE, "training.epochs=1", f"backbone={backbone}")
    run_sequence(config, folder)
    tensors = load_file(backbone / "model.safetensors")
    tensors[next(iter(tensors))].view(-1)[0] += 1
    save_file(tensors, backbone / "model.safetensors", {"format": "pt"})
    with pytest.raises(StateError, match="frozen weights are not those the run began with"):
        run_sequence(config, folder, resume=True)


def test_a_resume_elsewhere_renews_the_probes_and_says_so(tiny_config, tmp_path, monkeypatch):
    """Other hardware or versions may compute other last bits; that is no forgetting."""
    config, folder = tiny_config("training.epochs=1"), tmp_path / "run"
    monkeypatch.setattr(sequence, "evaluate_tasks", lambda run, index: 1 / (1 - index))  # stops in the second task
    with pytest.raises(ZeroDivisionError):
        run_sequence(config, folder)
    monkeypatch.undo()
    state = load_state(RunFolder(folder).state)
    state.environment = {**state.environment, "torch": "1.0"}
    state.sealed = [replace(task, probe="0" * 64) for task in state.sealed]
    state.save(RunFolder(folder).state)
    run_sequence(config, folder, resume=True)
    (event,) = events(folder, "environment")
    assert event["changed"] == ["torch"]
    assert load_state(RunFolder(folder).state).environment["torch"] == torch.__version__


def test_missing_tasks_are_skipped_if_asked(tiny_config, tmp_path):
    config = tiny_config("tasks=[asc/nothing, asc/phones]", "missing_tasks=skip", "training.epochs=1")
    assert run_sequence(config, tmp_path / "run").tasks == ["asc/phones"]


def test_a_full_disk_loses_nothing_and_the_run_goes_on(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(TWO, "training.epochs=1")
    whole = run_sequence(config, tmp_path / "whole")
    fsync, calls = os.fsync, []

    def full_after_a_while(descriptor):
        calls.append(descriptor)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_a_while)
    with pytest.raises(StateError, match=r"No space left on device while writing .*continue with --resume"):
        run_sequence(config, tmp_path / "run")
    monkeypatch.setattr(os, "fsync", fsync)
    assert run_sequence(config, tmp_path / "run", resume=True).matrix == whole.matrix
    for folder in ("tasks", "adapters"):
        one, other = (
            {path.name: path.read_bytes() for path in (tmp_path / run / folder).iterdir()} for run in ("run", "whole")
        )
        assert one == other


def test_a_loss_that_is_not_finite_names_task_step_and_remedy(tiny_config, tmp_path):
    config = tiny_config(TWO, "training.epochs=1", "overrides.ner/people.head_lr=1e37", "training.warmup_ratio=0")
    with pytest.raises(
        TssError, match=r"task ner/people: .*(not finite|is (nan|inf)) at epoch 0, step \d.*head_lr \(now 1e\+37\)"
    ):
        run_sequence(config, tmp_path / "run")
    assert read(tmp_path / "run")["matrix"][0][0] is not None
    assert task_files(tmp_path / "run") == ["01-asc-phones"]


def test_one_step_that_makes_a_score_nan_stops_the_task(tiny_config, tmp_path, monkeypatch):
    """A NaN reads as a gate that is off, so the next loss would be finite."""
    step = SoftMaskedAdamW.step

    def spoiling(self, closure=None):
        step(self, closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0, 0] = float("nan")

    monkeypatch.setattr(SoftMaskedAdamW, "step", spoiling)
    with pytest.raises(
        TssError, match="task asc/phones: a gradient, a score or a weight is not finite at epoch 0, step 0"
    ):
        run_sequence(tiny_config(ONE), tmp_path / "run")


def test_a_run_folder_is_a_saved_folder(tiny_config, tmp_path):
    result = run_sequence(tiny_config(TWO, "training.epochs=1"), tmp_path / "run")
    config = tiny_config(TWO)
    model = tss.load(load_backbone(config.backbone).model, tmp_path / "run")
    assert list(model.tss.tasks) == result.tasks
    assert tss.load(load_backbone(config.backbone).model, str(tmp_path / "run")).tss.tasks == model.tss.tasks
    model.tss.save(tmp_path / "saved")
    for name in ("tss.json", "adapters", "tasks"):
        one, other = (tmp_path / folder / name for folder in ("run", "saved"))
        files = [(one, other)] if one.is_file() else [(path, other / path.name) for path in one.iterdir()]
        assert all(path.read_bytes() == twin.read_bytes() for path, twin in files)
    rows = [("asc/phones", {"text": "the battery is good", "aspect": "battery"})]
    answers = open_learned(tmp_path / "run").predict(rows)
    assert open_learned(tmp_path / "saved", tokenizer=config.backbone).predict(rows) == answers


def test_a_run_of_the_old_format_is_refused_with_the_reason(tiny_config, tmp_path):
    folder = tmp_path / "run"
    run_sequence(tiny_config(ONE, "training.epochs=1"), folder)
    state = folder / "state" / "run.json"
    content = json.loads(state.read_text())
    content.pop("sha256")
    content["format"] = 1
    state.write_text(json.dumps({"sha256": sha256(to_json(content)), **content}))
    with pytest.raises(StateError, match=r"format 1, this version reads 3, which records the tokenizer"):
        run_sequence(tiny_config(ONE, "training.epochs=1"), folder, resume=True)


def test_no_memory_names_the_task_and_the_remedy():
    message = r"task sum/nyt: out of memory with batches of 4 .*grad_accumulation"
    with pytest.raises(TssError, match=message), memory_errors("sum/nyt", 4):
        torch.empty(2**62, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"^something else$"), memory_errors("sum/nyt", 4):
        raise RuntimeError("something else")


def test_the_best_epoch_is_restored_and_patience_stops(tiny_config, tmp_path, monkeypatch):
    values = iter([30.0, 50.0, 50.0, 40.0, 99.0])
    monkeypatch.setattr("tss.run.loop.validate", lambda job: (next(values), 1.0, "macro_f1"))
    states, learn = [], sequence.learn

    def learn_and_look(job, save, place):
        def look(progress, optimizer):
            states.append({name: value.clone() for name, value in job.handle.learning_state().items()})
            save(progress, optimizer)

        progress = learn(job, look, place)
        states.append({name: value.clone() for name, value in job.handle.learning_state().items()})
        return progress

    monkeypatch.setattr(sequence, "learn", learn_and_look)
    run_sequence(tiny_config(ONE, "training.epochs=9", "training.patience=2"), tmp_path / "run")
    assert [event["epoch"] for event in events(tmp_path / "run", "epoch")] == [0, 1, 2, 3]
    assert events(tmp_path / "run", "task_end")[0]["best_epoch"] == 1
    *by_step, restored = states
    same = [all(torch.equal(state[name], restored[name]) for name in restored) for state in by_step]
    assert [step for step, equal in enumerate(same) if equal] == [9]


def test_zero_shot_cells_give_forward_transfer(tiny_config, tmp_path):
    plain = run_sequence(tiny_config("training.epochs=1"), tmp_path / "plain")
    result = run_sequence(tiny_config("training.epochs=1", "zero_shot=true"), tmp_path / "run")
    assert plain.summary["fwt"] is None
    matrix, untrained = result.matrix, read(result.folder)["untrained"]
    assert [[cell is None for cell in row] for row in matrix] == [
        [False, False, True],
        [False, False, False],
        [False, False, False],
    ]
    assert result.summary["fwt"] == pytest.approx(sum(matrix[j - 1][j] - untrained[j] for j in (1, 2)) / 2)
    for i in range(3):
        assert matrix[i][: i + 1] == plain.matrix[i][: i + 1]
    for path in sorted((result.folder / "tasks").iterdir()):
        assert path.read_bytes() == (plain.folder / "tasks" / path.name).read_bytes()


def test_schedule_rises_and_falls_linearly():
    shares = [schedule(step, 10, 5) for step in range(11)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2, 0])
    assert [schedule(step, 4, 0) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert [schedule(step, 4, 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 0]
    assert all(math.isfinite(share) for share in shares)


def test_lengths_of_a_causal_model_are_those_of_prompt_and_answer(tiny_config, tiny_tokenizer, tmp_path):
    """Its rows hold both: together they are longer than the limit of the source, and than the least answer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    rows = examples("drg/trips", 20, 0)
    sources, targets = (
        [len(tiny_tokenizer(row[key], add_special_tokens=False)["input_ids"]) for row in rows]
        for key in ("source", "target")
    )
    most, least = max(sources) + 3, max(targets) + 2  # a start token and the line break; an end token
    assert sum(s + t + 2 >= most for s, t in zip(sources, targets, strict=True)) > len(rows) / 2
    changes = [
        f"backbone={tmp_path / 'llama'}", "tasks=[drg/trips]", "training.epochs=1", f"training.source_length={most}",
        f"generation={{min_new_tokens: {least}, max_new_tokens: {least}}}",
    ]  # fmt: skip
    run_sequence(tiny_config(*changes), tmp_path / "run")
    texts = [event["text"] for event in events(tmp_path / "run", "warning")]
    assert any(f"min_new_tokens={least}, but" in text for text in texts)
    assert not any("source_length" in text for text in texts)

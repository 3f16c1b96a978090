"""What is on disk: tensors that can be trusted, and a handle that comes back bit for bit."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
import threading
import warnings

import huggingface_hub
import pytest
import torch

import tss
from tss.adapters.storage import read_tensors, write_tensors

from .conftest import ARCHITECTURES, NAMES, REPLIES, TOPICS, learn, logits, make_bart, make_batch, make_batches, step

TENSORS = {
    "bits": torch.arange(7, dtype=torch.uint8).reshape(7, 1),
    "half": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "nan": torch.tensor([float("nan"), -0.0]),
    "scalar": torch.tensor(3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "empty": torch.zeros(0, 5),
}
METADATA = {"name": "asc/laptop", "z": 1, "a": {"b": [1, None, "ü"]}}


def test_tensors_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "t.safetensors"
    write_tensors(path, TENSORS, METADATA)
    tensors, metadata = read_tensors(path)
    assert metadata == METADATA
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        found = tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
    assert [file.name for file in path.parent.iterdir()] == ["t.safetensors"]


def test_equal_content_is_equal_bytes_in_any_order(tmp_path):
    write_tensors(tmp_path / "a", TENSORS, METADATA)
    write_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.arange(4.0), "bits": torch.ones(2, 2, dtype=torch.uint8)}, {"name": "n"})
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :] for i in range(len(whole)) for bit in (1, 128)]
    damaged += [whole + b"\0", b"{}"]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(tss.StateError, match=r"t\.safetensors.*(truncated, edited|expected)"):
            read_tensors(path)
    with pytest.raises(tss.StateError, match="is missing"):
        read_tensors(tmp_path / "none")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.zeros(1)}, {})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"x": torch.ones(1)}, {})
    assert read_tensors(path)[0]["x"].item() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", ["bart", "bert"])
def test_a_saved_handle_comes_back_and_learns_on_bit_for_bit(name, gated, tmp_path):
    make = ARCHITECTURES[name][0]
    config = tss.AdapterConfig(bottleneck=4, gated=gated, seed=5)
    handle = tss.attach(make(), config, tss.TssOptions(importance_per="row")).tss
    learn(handle, "asc/laptop.v1", TOPICS, seed=1)
    learn(handle, "ner", NAMES, seed=2)
    learn(handle, "learning", NAMES, seed=3, seal=False)
    handle.add_task("new", TOPICS)
    handle.save(tmp_path / "a")
    files = content(tmp_path / "a")
    other = tss.load(make(), tmp_path / "a").tss
    assert (other.config, other.options, other.trainable) == (config, handle.options, "learning")
    assert dict(other.tasks) == dict(handle.tasks)
    for handle_now, folder in ((handle, "a"), (other, "b")):
        for task, kind in (("asc/laptop.v1", TOPICS), ("ner", NAMES), ("learning", NAMES)):
            expected = logits(handle.model, make_batch(kind), task)
            assert torch.equal(logits(handle_now.model, make_batch(kind), task), expected)
        handle_now.save(tmp_path / folder)
    assert content(tmp_path / "b") == files
    ends = []
    for handle_now in (handle, other):
        handle_now.use("learning")
        optimizer = handle_now.optimizer(score_lr=0.05, head_lr=0.05)
        handle_now.model.eval()
        step(handle_now, make_batch(NAMES), optimizer)
        handle_now.seal_task(make_batches(NAMES) if gated else None)
        learn(handle_now, "next", TOPICS, seed=4)
        ends.append((handle_now.fingerprint("next"), handle_now.shared_state()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(tensor, ends[1][1][key]) for key, tensor in ends[0][1].items())


def file_of(folder, start):
    """The one file of a save whose name starts so."""
    (path,) = folder.glob(f"{start}-*.safetensors")
    return path


def test_no_backbone_is_saved_and_gates_take_a_bit_each(bart, tmp_path):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=8)).tss
    learn(handle, "replies", REPLIES)
    handle.save(tmp_path)
    tensors, metadata = read_tensors(file_of(tmp_path, "tasks/01-replies"))
    assert metadata["kind"] == REPLIES.to_dict()
    assert metadata["state"] == "sealed"
    assert sum(tensor.numel() for tensor in tensors.values()) == 4 * 2 * 16 * 8 / 8 == metadata["bytes"]["total"]
    frozen, _ = read_tensors(file_of(tmp_path, "adapters/frozen"))
    shared, _ = read_tensors(file_of(tmp_path, "adapters/shared"))
    assert all("final_layer_norm" in key for key in (*frozen, *shared))
    assert len(content(tmp_path)) == 4


@pytest.mark.parametrize("name", ["bias", "layer_norm.weight", "q_proj.weight", "embed_positions.weight"])
def test_one_other_value_anywhere_is_another_backbone(name, tmp_path):
    """Tasks are gates over these very weights: on others their answers would be noise."""
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.save(tmp_path)
    other = make_bart()
    changed = [(key, p) for key, p in other.named_parameters() if key.endswith(name)][-1]
    with torch.no_grad():
        changed[1].view(-1)[-1] += 1e-3
    with pytest.raises(
        tss.StateError, match=f"with these sizes but different weights: the checksum of {changed[0]} differs"
    ):
        tss.load(other, tmp_path)
    assert not any(module._forward_hooks for module in other.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_same_weights_in_another_dtype_are_the_same_backbone(dtype, tmp_path):
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.save(tmp_path)
    assert list(tss.load(make_bart().to(dtype), tmp_path).tss.tasks) == ["topics"]


def test_what_cannot_be_loaded_is_named_and_leaves_the_model_alone(tmp_path):
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.save(tmp_path)
    wider = make_bart()
    wider.resize_token_embeddings(70)
    deeper = make_bart()
    deeper.get_encoder().layers.append(make_bart().get_encoder().layers[0])
    for model, message in (
        (wider, "saved from another backbone: shapes_sha256"),
        (deeper, "saved from another backbone: parameters"),
        (ARCHITECTURES["t5"][0](), "saved from another backbone: class BartForConditionalGeneration there, T5"),
    ):
        with pytest.raises(tss.StateError, match=message):
            tss.load(model, tmp_path)
        assert not any(module._forward_hooks for module in model.modules())
    before = dict(handle.tasks)
    with pytest.raises(tss.StateError, match=r"task 'topics' exists already"):
        tss.load(handle.model, tmp_path)
    assert dict(handle.tasks) == before
    with pytest.raises(tss.StateError, match=r"has no tss\.json: give a folder that model\.tss\.save wrote, or a run"):
        tss.load(make_bart(), tmp_path / "tasks")


def test_a_folder_of_the_old_format_is_refused_with_the_reason(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(tss.StateError, match=r"was saved in format 1, .* this version reads format 2"):
        tss.load(make_bart(), tmp_path)


@pytest.mark.parametrize("start", ["tss.json", "adapters/frozen", "adapters/shared", "tasks/01-topics"])
def test_damaged_and_mixed_saves_are_refused(start, tmp_path):
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.save(tmp_path)
    path = tmp_path / start if start == "tss.json" else file_of(tmp_path, start)
    whole = path.read_bytes()
    for data in (whole[:-3], whole[: len(whole) // 2], b""):
        path.write_bytes(data)
        with pytest.raises(tss.StateError, match=path.name):
            tss.load(make_bart(), tmp_path)
    path.unlink()
    with pytest.raises(tss.StateError, match=path.name):
        tss.load(make_bart(), tmp_path)
    path.write_bytes(whole)
    if start == "tss.json":
        manifest = json.loads(whole)
        manifest["shared"]["sha256"] = hashlib.sha256(b"other").hexdigest()
        path.write_text(json.dumps(manifest))
        with pytest.raises(tss.StateError, match=r"shared-.*\.safetensors is from another save"):
            tss.load(make_bart(), tmp_path)
    handle.save(tmp_path)  # over a damaged save too
    assert list(tss.load(make_bart(), tmp_path).tss.tasks) == ["topics"]


@pytest.mark.parametrize("writes", range(5))
def test_a_save_that_fails_at_any_file_leaves_the_old_one(writes, bart, tmp_path, monkeypatch):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.save(tmp_path)
    first = handle.fingerprint("topics")
    handle.rename_task("topics", "other name")
    learn(handle, "names", NAMES)
    sync, done = os.fsync, []

    def full(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return  # the names in a folder
        done.append(1)
        if len(done) > writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    if writes < 4:  # two tasks, the shared tensors, the manifest; frozen tensors are there already
        with pytest.raises(OSError, match="No space left"):
            handle.save(tmp_path)
        loaded = tss.load(make_bart(), tmp_path).tss
        assert (list(loaded.tasks), loaded.fingerprint("topics")) == (["topics"], first)
    monkeypatch.undo()
    handle.save(tmp_path)
    assert list(tss.load(make_bart(), tmp_path).tss.tasks) == ["other name", "names"]
    assert len(content(tmp_path)) == 5


def test_some_tasks_are_saved_and_added_to_a_model_that_has_others(tmp_path):
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    for seed, name in enumerate(("one", "two", "three")):
        learn(handle, name, TOPICS, seed=seed)
    handle.save(tmp_path / "some", tasks=["three", "one"])
    handle.save(tmp_path / "two", tasks=["two"])
    with pytest.raises(tss.StateError, match="there is no task 'four'"):
        handle.save(tmp_path / "none", tasks=["four"])
    model = tss.load(make_bart(), tmp_path / "some")
    learn(model.tss, "own", TOPICS, seed=9)
    shared = {name: tensor.clone() for name, tensor in model.tss.shared_state().items()}
    assert tss.load(model, tmp_path / "two") is model
    assert list(model.tss.tasks) == ["three", "one", "own", "two"]
    assert all(model.tss.fingerprint(name) == handle.fingerprint(name) for name in ("one", "two", "three"))
    for name, tensor in model.tss.shared_state().items():
        if name.startswith("importance."):
            assert torch.equal(tensor, torch.maximum(shared[name], handle.shared_state()[name]))
        else:
            assert torch.equal(tensor, shared[name])


def learned(*names, seed=0, **settings):
    handle = tss.attach(make_bart(), tss.AdapterConfig(**{"bottleneck": 4, **settings})).tss
    for i, name in enumerate(names):
        learn(handle, name, TOPICS, seed=seed + i)
    return handle


@pytest.mark.parametrize(
    ("other", "tasks", "lost"),
    [
        (lambda _: learned("topics", seed=7), None, "'topics', 'ner', which"),  # another model's, of the same name
        (lambda _: learned("another"), None, "'topics', 'ner', which"),
        (lambda _: learned("topics", seed=7, bottleneck=8), None, "'topics', 'ner', which"),
        (lambda handle: handle, ["topics"], "'ner', which"),
        (lambda handle: handle, [], "'topics', 'ner', which"),
        (lambda handle: handle.delete_task("ner") or handle, None, "'ner', which"),
    ],
)
def test_a_save_that_would_lose_tasks_of_a_folder_is_refused(other, tasks, lost, tmp_path):
    handle = learned("topics", "ner")
    handle.save(tmp_path)
    before, handle = content(tmp_path), other(handle)
    message = f"has {lost} .*save into another folder, .*or give replace=True"
    with pytest.raises(tss.StateError, match=message) as refused:
        handle.save(tmp_path, tasks)
    assert content(tmp_path) == before
    _, _, beside = str(refused.value).partition("This save was written to ")
    beside = beside.removesuffix(" instead")
    assert beside == f"{tmp_path}-2"
    expected = list(handle.tasks) if tasks is None else tasks
    assert list(tss.load(make_bart(), beside).tss.tasks) == expected
    with pytest.raises(tss.StateError, match=f"This save was written to {beside} instead"):  # the same place again
        handle.save(tmp_path, tasks)
    handle.save(tmp_path, tasks, replace=True)
    assert list(tss.load(make_bart(), tmp_path).tss.tasks) == expected


def test_a_save_that_loses_nothing_needs_no_leave(tmp_path):
    """The same folder after every task, after new names, and after what was being learned is sealed."""
    handle = learned("topics")
    handle.save(tmp_path)
    handle.rename_task("topics", "other name")
    handle.save(tmp_path, ["other name"])
    learn(handle, "ner", NAMES, seal=False)
    handle.save(tmp_path)
    with pytest.raises(tss.StateError, match="has 'ner', which"):
        handle.save(tmp_path, ["other name"])
    handle.seal_task(make_batches(NAMES))
    handle.add_task("new", TOPICS)
    handle.save(tmp_path)
    handle.delete_task("new")
    handle.save(tmp_path)
    model = tss.load(make_bart(), tmp_path)
    learn(model.tss, "more", TOPICS)
    model.tss.save(tmp_path)
    assert list(tss.load(make_bart(), tmp_path).tss.tasks) == ["other name", "ner", "more"]


@pytest.mark.parametrize("damage", ["manifest", "task", "no task", "garbage", "huge header"])
def test_what_a_folder_holds_and_cannot_be_read_is_not_replaced_either(damage, tmp_path):
    learned("topics").save(tmp_path)
    path = tmp_path / "tss.json" if damage == "manifest" else file_of(tmp_path, "tasks/01-topics")
    if damage == "no task":
        path.unlink()
    else:
        path.write_bytes({"garbage": b"x", "huge header": b"\x7f" * 9}.get(damage) or path.read_bytes()[:100])
    before, handle = content(tmp_path), learned("another", seed=7)
    with pytest.raises(tss.StateError, match=f"{path.name} .*its tasks would be lost: .*or give replace=True"):
        handle.save(tmp_path)
    assert content(tmp_path) == before
    handle.save(tmp_path, replace=True)
    assert list(tss.load(make_bart(), tmp_path).tss.tasks) == ["another"]


def test_the_folder_of_a_run_and_a_file_are_no_places_for_a_save(tmp_path):
    handle = learned("topics")
    (tmp_path / "run" / "state").mkdir(parents=True)
    (tmp_path / "run" / "state" / "run.json").write_text("{}")
    for replace in (False, True):
        with pytest.raises(tss.StateError, match="has a run, which could not be continued after this"):
            handle.save(tmp_path / "run", replace=replace)
    (tmp_path / "file.py").write_text("pass")
    for place in ("file.py", "file.py/below/it"):
        with pytest.raises(
            tss.StateError, match=r"file\.py is a file, and tasks are saved .* was written to .*file\.py-2 instead"
        ):
            handle.save(tmp_path / place)
        with pytest.raises(tss.StateError, match=r"has no tss\.json"):
            tss.load(make_bart(), tmp_path / place)
    assert (tmp_path / "file.py").read_text() == "pass"
    for kept in ("run-2", "file.py-2"):
        assert list(tss.load(make_bart(), tmp_path / kept).tss.tasks) == ["topics"]


def test_what_is_not_finite_is_neither_sealed_nor_saved(bart, tmp_path):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS, seal=False)
    with torch.no_grad():
        next(iter(handle.layers.values())).scores[0, 0] = float("nan")
    for call in (handle.seal_task, lambda: handle.save(tmp_path)):
        with pytest.raises(tss.StateError, match=r"scores\..*down holds 1 values that are not finite"):
            call()
    assert handle.trainable == "topics"
    handle.abandon()
    learn(handle, "topics", TOPICS) if "topics" not in handle.tasks else handle.train_task("topics")
    handle.check_finite()


def _gate(model):
    return next(iter(model.tss.store.sealed("topics").gates.values()))


WRITES = {
    "head": (lambda model: model.tss.store.sealed("topics").head["out.bias"], "gates or head of sealed task 'topics'"),
    "gates": (_gate, "gates or head of sealed task 'topics'"),
    "adapter weight": (lambda model: next(iter(model.tss.layers.values())).weight, r"adapters .*down\.weight was writ"),
    "adapter bias": (lambda model: list(model.tss.layers.values())[-1].bias, r"adapters .*up\.bias was written to"),
    "projection": (
        lambda model: model.get_encoder().layers[0].self_attn.q_proj.weight,
        r"backbone .*q_proj\.weight was",
    ),
    "norm": (lambda model: model.get_decoder().layers[-1].final_layer_norm.bias, r"backbone .*final_layer_norm\.bias"),
    "embedding": (lambda model: model.get_input_embeddings().weight, r"backbone .*shared\.weight was written to"),
    "buffer": (lambda model: model.backbone.final_logits_bias, r"backbone .*final_logits_bias was written to"),
}


@pytest.mark.parametrize("data", [True, False], ids=["through .data", "in place"])
@pytest.mark.parametrize(("find", "what"), WRITES.values(), ids=WRITES)
def test_whatever_a_sealed_task_relies_on_is_noticed_when_it_was_written_to(find, what, data, tmp_path):
    handle = learned("topics", "more")
    handle.save(tmp_path)
    learned("others").save(tmp_path / "others")
    handle.verify()
    tensor = find(handle.model)
    kept = tensor.detach().clone()
    with torch.no_grad():
        target = tensor.data if data else tensor
        target.view(-1)[-1:] = 255 - target.view(-1)[-1:]
    handle.add_task("next", NAMES)
    calls = [handle.verify, lambda: tss.load(handle.model, tmp_path / "others")]
    of_writes_torch_counts = [lambda: handle.save(tmp_path), lambda: handle.train_task("next")]
    for call in calls if data else [*calls, *of_writes_torch_counts]:
        with pytest.raises(tss.ForgettingError, match=what):
            call()
    assert list(handle.tasks) == ["topics", "more", "next"]
    assert handle.trainable is None
    with torch.no_grad():
        tensor.copy_(kept)
    for call in [*calls, *of_writes_torch_counts]:
        call()
    handle.verify()


def test_what_changes_no_answer_is_no_change(tmp_path):
    """Casts, the next task, whatever nothing sealed relies on, and weights of a model that has no task yet."""
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    with torch.no_grad():
        handle.backbone.get_encoder().layers[0].fc1.weight.data.add_(1)
    handle.verify()
    learn(handle, "topics", TOPICS)
    learn(handle, "next", NAMES, seal=False)
    handle.verify()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        handle.model.to(dtype)
        handle.verify()
    handle.abandon()
    handle.delete_task("next")
    handle.delete_task("topics")
    with torch.no_grad():
        handle.backbone.get_encoder().layers[0].fc1.weight.data.add_(1)
    handle.verify()
    learn(handle, "again", TOPICS)
    handle.verify()
    copy.deepcopy(handle.model).tss.verify()


def test_weights_that_are_gone_are_named():
    handle = learned("topics")
    handle.backbone.get_encoder().layers.pop(1)
    with pytest.raises(tss.ForgettingError, match=r"frozen weights of the backbone .*encoder\.layers\.1\..* is gone"):
        handle.verify()


@pytest.mark.parametrize("name", ["x" * 252, "a/b\\c: d.e", "ü" * 100, "keys", ".."])
def test_any_line_of_text_names_a_task_that_can_be_kept(name, tmp_path):
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, name, TOPICS)
    learn(handle, name + "2", TOPICS, seal=False)
    handle.save(tmp_path)
    assert list(tss.load(make_bart(), tmp_path).tss.tasks) == [name, name + "2"]


def test_task_files_that_do_not_fit_add_nothing(bart):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    tensors, metadata = handle.task_state("topics")
    other = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    gate = next(name for name in tensors if name.startswith("gates."))
    head = next(name for name in tensors if name.startswith("head."))
    for wrong, about, message in (
        ({**tensors, gate: tensors[gate][:1]}, metadata, r"gates of .* are torch.uint8 \(1, .*expected"),
        ({k: v for k, v in tensors.items() if k != gate}, metadata, "are missing, expected"),
        ({**tensors, head: tensors[head][:1]}, metadata, f"{head} is .*expected"),
        (tensors, {**metadata, "kind": {"kind": "poetry"}}, "does not describe a task.*poetry"),
        (tensors, {}, "does not describe a task"),
    ):
        with pytest.raises(tss.StateError, match=message):
            other.load_task_state("topics", wrong, about)
        assert not other.tasks
        assert not list(other.model.learning.parameters())
    other.load_task_state("topics", tensors, metadata)
    assert other.tasks == handle.tasks


def test_two_that_save_into_one_folder_leave_one_whole_save(tmp_path):
    handles, failures = [], []
    for name in ("one", "two"):
        handles.append(tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss)
        learn(handles[-1], name, TOPICS)

    def save_often(handle):
        try:
            for _ in range(10):
                handle.save(tmp_path, replace=True)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save_often, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(tss.load(make_bart(), tmp_path).tss.tasks) in (["one"], ["two"])
    assert len(content(tmp_path)) == 4


class StandIn:
    """The hub's client, with a folder in the place of the hub."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, repo_id, **settings):
        assert settings == {"exist_ok": True, "private": True}
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **patterns):
        for kind in ("tasks", "adapters"):
            shutil.rmtree(self.root / repo_id / kind, ignore_errors=True)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)


def test_tasks_go_to_the_hub_with_a_card_and_come_back_by_name(bart, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: StandIn(hub))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(hub / name))
    model = tss.attach(bart, tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "asc/laptop", TOPICS)
    learn(model.tss, "ner", NAMES)
    scores = {"ner": {"f1": 61.25, "precision": 60.0}}
    assert "someone/tasks" in model.push_to_hub("someone/tasks", scores=scores, private=True)
    assert model.tss.push_to_hub("someone/one", tasks=["ner"], private=True)
    card = (hub / "someone/tasks/README.md").read_text()
    assert "| asc/laptop | classification | macro_f1 | - | " in card
    assert "| ner | extraction | f1 | 61.25 | " in card
    data = huggingface_hub.ModelCard(card).data
    assert (data.library_name, data.model_name) == ("tss", "tasks")
    assert {(r.task_type, r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results} == {
        ("token-classification", "ner", "f1", 61.25), ("token-classification", "ner", "precision", 60.0)
    }  # fmt: skip
    with pytest.raises(tss.StateError, match="scores of 'nobody', which is not among the tasks: asc/laptop, ner"):
        model.push_to_hub("someone/tasks", scores={"nobody": {}}, private=True)
    assert "BartForConditionalGeneration" in card
    with pytest.raises(tss.StateError, match=r"has 'asc/laptop', which .* push to another repository, .*replace"):
        model.push_to_hub("someone/tasks", tasks=["ner"], private=True)
    again = tss.load(make_bart(), "someone/tasks")
    assert again.tss.fingerprint("ner") == model.tss.fingerprint("ner")
    assert list(tss.load(make_bart(), "someone/one").tss.tasks) == ["ner"]
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(tss.StateError, match=r"'someone/tasks' is not a folder, .*ZeroDivisionError"):
        tss.load(make_bart(), "someone/tasks")


@pytest.fixture
def saved_folder(tmp_path):
    """A folder with a sealed task."""
    handle = learned_bart()
    handle.save(tmp_path / "saved")
    return tmp_path / "saved"


def learned_bart():
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS)
    return model.tss


def rewrite(folder, change):
    """Change a folder's manifest, as someone who crafts a folder would."""
    path = folder / "tss.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(change(manifest) or manifest))


def rewrite_task(folder, change):
    """Change tensors and metadata of the task, with checksums that are right."""
    manifest = json.loads((folder / "tss.json").read_text())
    (entry,) = manifest["tasks"]
    tensors, metadata = read_tensors(folder / entry["file"])
    change(tensors, metadata)
    write_tensors(folder / "new", tensors, metadata)
    data = (folder / "new").read_bytes()
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    entry["file"] = f"tasks/01-x-{entry['sha256'][:12]}.safetensors"
    (folder / entry["file"]).write_bytes(data)
    (folder / "tss.json").write_text(json.dumps(manifest))


def set_file(key, name):
    return lambda manifest: manifest[key].update(file=name)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: [m],
        lambda m: m.update(tasks=3),
        lambda m: m.update(tasks=["x"]),
        lambda m: m.update(frozen=None),
        lambda m: m.update(config=[1]),
        lambda m: m["config"].update(unknown=1),
        lambda m: m["options"].update(unknown=1),
        lambda m: m.update(shared=m["tasks"][0]),
        lambda m: m.update(tasks=[m["shared"]]),
        lambda m: m.update(tasks=m["tasks"] * 2),
        set_file("shared", "../outside.safetensors"),
        set_file("shared", "adapters/../../outside.safetensors"),
        set_file("frozen", "/etc/passwd"),
        set_file("frozen", "adapters"),
    ],
)
def test_a_crafted_manifest_is_refused_and_nothing_outside_is_read(saved_folder, change):
    shared = json.loads((saved_folder / "tss.json").read_text())["shared"]["file"]
    shutil.copy(saved_folder / shared, saved_folder.parent / "outside.safetensors")
    rewrite(saved_folder, change)
    with pytest.raises(tss.StateError):
        tss.load(make_bart(), saved_folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t, m: t["head.out.bias"].fill_(float("nan")), "values that are not finite"),
        (lambda t, m: t["head.out.weight"].view(-1)[:1].fill_(float("inf")), "1 values that are not finite"),
        (lambda t, m: t.update({"head.out.bias": t["head.out.bias"].to(torch.int8)}), "int8"),
        (lambda t, m: t.pop("head.out.bias"), "missing"),
        (lambda t, m: m.pop("kind"), "does not describe a task"),
        (lambda t, m: m.update(name=3), "does not describe a task"),
        (lambda t, m: m["kind"].update(labels=3), "does not describe a task"),
        (lambda t, m: m.update(state="done"), "does not describe a task"),
    ],
)
def test_a_crafted_task_is_refused(saved_folder, change, expected):
    rewrite_task(saved_folder, change)
    with pytest.raises(tss.StateError, match=expected):
        tss.load(make_bart(), saved_folder)


def test_what_is_not_finite_is_not_saved(tmp_path):
    handle = learned_bart()
    next(iter(handle.shared_state().values())).view(-1)[0] = float("nan")
    with pytest.raises(tss.StateError, match="1 values that are not finite, so it is neither saved nor used"):
        handle.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tss.json").exists()


def test_renames_are_flushed_with_their_directories(tmp_path, monkeypatch):
    """Every new name is flushed after it is made: that of the file, and those of the directories made for it."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr("pathlib.Path.replace", lambda a, b: (done.append("rename"), replace(a, b))[1])
    write_tensors(tmp_path / "a" / "b" / "t.safetensors", {"x": torch.ones(1)}, {})
    assert done[:2] == [str(tmp_path), str(tmp_path / "a")]
    assert done[2].endswith(".partial")
    assert done[3:] == ["rename", str(tmp_path / "a" / "b")]


class Quantised(torch.Tensor):
    """A weight that is made of two tensors and has no bytes of its own, as torchao's."""

    @staticmethod
    def __new__(cls, values, scale):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    def __tensor_flatten__(self):
        return ["values", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        raise NotImplementedError(func)


def test_a_backbone_of_quantised_weights_is_told_by_every_value_of_their_parts(tmp_path):
    def quantised(model, last=3):
        values = torch.full((16, 16), 3, dtype=torch.int8)
        values[-1, -1] = last
        layer = model.get_decoder().layers[-1].self_attn.q_proj
        layer.weight = torch.nn.Parameter(Quantised(values, torch.tensor(0.01)), requires_grad=False)
        layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight.values * layer.weight.scale, layer.bias)
        return model

    handle = tss.attach(quantised(make_bart()), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.save(tmp_path)
    assert list(tss.load(quantised(make_bart()), tmp_path).tss.tasks) == ["topics"]
    with pytest.raises(tss.StateError, match=r"the checksum of .*q_proj\.weight differs"):
        tss.load(quantised(make_bart(), last=4), tmp_path)


def test_loading_in_inference_mode_leaves_tensors_that_can_be_trained(tmp_path):
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "one", TOPICS)
    learn(model.tss, "two", TOPICS, seed=1)
    model.tss.save(tmp_path)
    batch = make_batch(TOPICS)
    expected = logits(model, batch, "one")
    for settings in ({}, {"cache_bytes": 10**6}):
        backbone = make_bart()
        with torch.inference_mode():
            loaded = tss.load(backbone, tmp_path, **settings)
            assert torch.equal(loaded.eval()(**batch, task="one").logits, expected)
        embeddings = loaded.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        loss = loaded(inputs_embeds=embeddings, decoder_input_ids=batch["input_ids"], labels=batch["labels"],
                      task=["one", "two", "one", "two"]).loss  # fmt: skip
        loss.backward()
        assert embeddings.grad.any()
        learn(loaded.tss, "three", TOPICS)
        loaded.tss.verify()


def test_a_configuration_that_is_not_plain_json_is_saved_and_compared(tmp_path):
    backbone = make_bart()
    backbone.config.limits = {"low": 0.0, "high": float("inf"), "dtype": torch.float32}
    model = tss.attach(backbone, tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "one", TOPICS)
    model.tss.save(tmp_path)
    other = make_bart()
    other.config.limits = {"low": 0.0, "high": float("inf"), "dtype": torch.bfloat16}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tss.load(other, tmp_path).tss.detach()
    other.config.limits["low"] = 1.0
    with pytest.warns(UserWarning, match=r"limits\.low 0\.0 there, 1\.0 here"):
        tss.load(other, tmp_path)


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_tensors(tmp_path / "t", TENSORS, {"high": float("inf")})
    assert not (tmp_path / "t").exists()


def test_frozen_weights_do_not_depend_on_the_default_dtype(tmp_path):
    backbone, config = make_bart(), tss.AdapterConfig(bottleneck=4)
    model = tss.attach(make_bart(), config)
    learn(model.tss, "one", TOPICS)
    model.tss.save(tmp_path)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        loaded = tss.load(backbone, tmp_path)
    finally:
        torch.set_default_dtype(before)
    batch = make_batch(TOPICS)
    assert torch.equal(logits(loaded, batch, "one"), logits(model, batch, "one"))


@pytest.mark.parametrize(
    ("change", "warns"),
    [
        ({"activation_function": "relu"}, "activation_function gelu there, relu here"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id 2 there, 5 here"),
        ({"eos_token_id": 3, "use_cache": False, "id2label": {0: "a"}, "dropout": 0.3}, None),
    ],
)
def test_loading_on_a_backbone_that_computes_otherwise_warns(tmp_path, change, warns):
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "one", TOPICS)
    model.tss.save(tmp_path)
    config = copy.deepcopy(make_bart().config)
    for key, value in change.items():
        setattr(config, key, value)
    other = type(make_bart())(config)
    other.load_state_dict(make_bart().state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tss.load(other, tmp_path)
    said = [str(one.message) for one in caught if "another configuration" in str(one.message)]
    assert [warns in one for one in said] == [True] * (warns is not None), said

"""Tasks that stay in their folder and are read when they are first asked for."""

from __future__ import annotations

import copy
import pickle
import re
import shutil
import threading
import time
import warnings

import pytest
import torch

import tss

from .conftest import NAMES, REPLIES, TOPICS, inputs_of, learn, logits, make_bart, make_batch

LEARNED = {"topics": TOPICS, "names": NAMES, "r1": REPLIES, "r2": REPLIES, "r3": REPLIES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five sealed tasks on disk."""
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4), tss.TssOptions(score_copy=False))
    for seed, (name, kind) in enumerate(LEARNED.items()):
        learn(model.tss, name, kind, seed=seed)
    path = tmp_path_factory.mktemp("tasks")
    model.tss.save(path)
    return path


@pytest.fixture
def whole(folder):
    return tss.load(make_bart(), folder).eval()


def opened(folder, cache_bytes=1 << 20):
    return tss.load(make_bart(), folder, cache_bytes=cache_bytes).eval()


def test_a_folder_opens_without_its_tasks_and_answers_as_if_all_were_read(folder, whole):
    model = opened(folder)
    assert model.tss.store.cache.bytes == 0
    assert str(model.tss) == str(whole.tss)
    assert {n: vars(r) for n, r in model.tss.tasks.items()} == {n: vars(r) for n, r in whole.tss.tasks.items()}
    for name, kind in LEARNED.items():
        batch = make_batch(kind)
        assert torch.equal(logits(model, batch, name), logits(whole, batch, name))
        assert model.tss.fingerprint(name) == whole.tss.fingerprint(name)
    names = ["r3", "r1", "r2", "r1"]
    assert torch.equal(logits(model, make_batch(REPLIES), names), logits(whole, make_batch(REPLIES), names))
    model.tss.verify()


def test_memory_stays_within_its_limit_and_what_was_used_last_stays(folder, whole):
    sizes = {name: sum(whole.tss.bytes_per_task(name)[part] for part in ("gates", "head")) for name in LEARNED}
    model = opened(folder, sizes["r1"] * 2)
    cache, batch = model.tss.store.cache, make_batch(REPLIES)
    reads = []
    for kept in model.tss.store._sealed.values():
        kept.read = lambda read=kept.read: (reads.append(1), read())[1]
    for name, count in (("r1", 1), ("r2", 2), ("r1", 2), ("r3", 3), ("r1", 3), ("r2", 4)):
        assert torch.equal(logits(model, batch, name), logits(whole, batch, name))
        assert len(reads) == count
        assert cache.bytes <= cache.limit
    assert torch.equal(logits(model, batch, ["r1", "r2", "r3", "r1"]), logits(whole, batch, ["r1", "r2", "r3", "r1"]))
    logits(model, make_batch(TOPICS), "topics")  # larger than the limit by itself
    assert cache.bytes == sizes["topics"]


def test_a_batch_of_many_tasks_reads_each_of_them_once(folder):
    model, reads = opened(folder, 0), []
    for kept in model.tss.store._sealed.values():
        kept.read = lambda read=kept.read: (reads.append(1), read())[1]
    logits(model, make_batch(REPLIES), ["r1", "r2", "r1", "r3"])
    assert len(reads) == 3


def test_tasks_are_added_saved_and_deleted_beside_those_on_disk(folder, whole, tmp_path):
    model, batch = opened(folder, 0), make_batch(REPLIES)
    learn(model.tss, "new", REPLIES, seed=9)
    names = ["new", "r1", "new", "r2"]
    mixed = logits(model, batch, names)
    model.tss.rename_task("r1", "first")
    model.tss.delete_task("r3")
    assert torch.equal(logits(model, batch, ["new", "first", "new", "r2"]), mixed)
    model.tss.save(tmp_path / "all")
    back = tss.load(make_bart(), tmp_path / "all")
    assert list(back.tss.tasks) == ["topics", "names", "first", "r2", "new"]
    assert torch.equal(logits(back.eval(), batch, ["new", "first", "new", "r2"]), mixed)
    assert torch.equal(logits(copy.deepcopy(model), batch, names[0]), logits(model, batch, names[0]))
    assert torch.equal(logits(model.to(torch.float32), batch, "first"), logits(whole, batch, "r1"))


def test_some_tasks_of_a_folder(folder, whole):
    model = tss.load(make_bart(), folder, tasks=["r2", "topics"]).eval()
    assert list(model.tss.tasks) == ["topics", "r2"]
    tss.load(model, folder, tasks=["r1"], cache_bytes=1 << 20)
    names = ["r1", "r2", "r1", "r2"]
    assert torch.equal(logits(model, make_batch(REPLIES), names), logits(whole, make_batch(REPLIES), names))
    with pytest.raises(tss.StateError, match="has no task 'nobody'; it has: topics, names, r1"):
        tss.load(model, folder, tasks=["nobody"])
    with pytest.raises(tss.StateError, match="'r1' exists already"):
        tss.load(model, folder, tasks=["r1"], cache_bytes=1 << 20)
    with pytest.raises(ValueError, match="cache_bytes must be at least 0, got -1"):
        tss.load(model, folder, cache_bytes=-1)


def test_files_that_are_gone_or_changed_are_told_when_their_task_is_asked_for(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "copy")
    model, batch = opened(place), make_batch(REPLIES)
    (path,) = place.glob("tasks/*-r1-*.safetensors")
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(tss.StateError, match=r"r1-.* is missing$"):
        model(**inputs_of(batch), task="r1")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(tss.StateError, match="was changed after it was written"):
        model(**inputs_of(batch), task="r1")
    with pytest.raises(tss.StateError, match="was changed after it was written"):
        model.tss.verify()
    path.write_bytes(data)
    logits(model, batch, "r1")
    model.tss.verify()
    value = model.tss.store.sealed("r1")
    next(iter(value.gates.values()))[0, 0] ^= 1
    with pytest.raises(tss.ForgettingError, match="'r1' changed"):
        model.tss.verify()


def test_threads_that_ask_at_once_get_their_tasks(folder, whole):
    model, batch = opened(folder, 0), make_batch(REPLIES)
    expected = {name: logits(whole, batch, name) for name in ("r1", "r2", "r3")}
    wrong, barrier = [], threading.Barrier(6)

    def ask(name):
        barrier.wait()
        for _ in range(5):
            if not torch.equal(logits(model, batch, name), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in [*expected] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_thousand_tasks_open_in_no_time(tmp_path):
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4), tss.TssOptions(soft_mask="none"))
    handle = model.tss
    handle.add_task("task 0", REPLIES)
    handle.train_task("task 0")
    with pytest.warns(UserWarning, match="no optimizer has changed them"):
        handle.seal_task()
    tensors, about = handle.task_state("task 0")
    for i in range(1, 1000):
        handle.load_task_state(f"task {i}", tensors, about)
    handle.save(tmp_path)
    started = time.process_time()
    again = opened(tmp_path)
    seconds = time.process_time() - started
    assert len(again.tss.tasks) == 1000
    assert seconds < 1, f"{seconds:.2f} s of processor time"
    assert torch.equal(logits(again, make_batch(REPLIES), "task 999"), logits(model, make_batch(REPLIES), "task 999"))


def test_saves_into_the_folder_by_this_model_and_by_others_leave_its_tasks_readable(folder, whole, tmp_path):
    """They rename files, move them in the order and remove those of deleted tasks."""
    place, batch = shutil.copytree(folder, tmp_path / "copy"), make_batch(REPLIES)
    expected = {name: logits(whole, batch, name) for name in ("r1", "r2", "r3")}
    model = opened(place, 0)
    model.tss.rename_task("r1", "first")
    model.tss.delete_task("topics")
    model.tss.save(place, replace=True)
    assert torch.equal(logits(model, batch, ["first", "r2", "r3", "r2"])[0], logits(whole, batch, ["r1"] * 4)[0])
    other = tss.load(make_bart(), place)
    other.tss.rename_task("r2", "second")
    learn(other.tss, "more", REPLIES, seed=8)
    other.tss.save(place)
    for name, now in (("r1", "first"), ("r2", "r2"), ("r3", "r3")):
        assert torch.equal(logits(model, batch, now), expected[name])
    model.tss.verify()
    other.tss.delete_task("r3")
    other.tss.save(place, replace=True)
    logits(model, batch, "first")
    with pytest.raises(tss.StateError, match="no longer has task 'r3', which was left there"):
        model(**inputs_of(batch), task="r3")


def test_a_relative_folder_and_a_pickle(folder, whole, tmp_path, monkeypatch):
    place, batch = shutil.copytree(folder, tmp_path / "copy"), make_batch(REPLIES)
    monkeypatch.chdir(place)
    model = tss.load(make_bart(), ".", cache_bytes=0).eval()
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(model, batch, "r1"), logits(whole, batch, "r1"))
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, batch, "r2"), logits(whole, batch, "r2"))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"tasks": "r1"}, "tasks must be a collection of task names, got one string"),
        ({"cache_bytes": "64MB"}, "cache_bytes must be a whole number of bytes, got '64MB'"),
        ({"cache_bytes": True}, "cache_bytes must be a whole number of bytes, got True"),
        ({"cache_bytes": 1.5}, "cache_bytes must be a whole number of bytes, got 1.5"),
    ],
)
def test_arguments_of_another_type_are_refused(folder, settings, error):
    with pytest.raises(TypeError, match=re.escape(error)):
        tss.load(make_bart(), folder, **settings)


@pytest.mark.parametrize("trained", ["shared", "masked", "backbone"])
def test_tasks_that_share_trained_weights_are_not_added_to_a_model_with_others(trained, tmp_path):
    options = tss.adapters.PlainOptions(trained=trained)
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, gated=False), options)
    learn(model.tss, "topics", TOPICS)
    model.tss.save(tmp_path / "one")
    learn(model.tss, "names", NAMES, seed=1)
    model.tss.save(tmp_path / "two")
    first = tss.load(make_bart(), tmp_path / "one").eval()
    expected = logits(first, make_batch(TOPICS), "topics")
    with pytest.raises(tss.StateError, match=r"trained on other values of .* all tasks share the trained weights"):
        tss.load(first, tmp_path / "two", tasks=["names"])
    assert list(first.tss.tasks) == ["topics"]
    assert torch.equal(logits(first, make_batch(TOPICS), "topics"), expected)
    both = tss.load(make_bart(), tmp_path / "two", tasks=["topics"]).eval()
    tss.load(both, tmp_path / "two", tasks=["names"])
    for name, kind in (("topics", TOPICS), ("names", NAMES)):
        assert torch.equal(logits(both, make_batch(kind), name), logits(model, make_batch(kind), name))


def test_a_model_whose_tasks_are_all_new_takes_what_a_save_relies_on(tmp_path):
    options = tss.adapters.PlainOptions(trained="shared")
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, gated=False), options)
    learn(model.tss, "topics", TOPICS)
    model.tss.save(tmp_path)
    other = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, gated=False), options)
    other.tss.add_task("names", NAMES)
    tss.load(other, tmp_path)
    assert torch.equal(logits(other, make_batch(TOPICS), "topics"), logits(model, make_batch(TOPICS), "topics"))


def test_a_task_that_was_loaded_in_training_is_not_taken_for_an_untrained_one(tmp_path):
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS, seal=False)
    model.tss.save(tmp_path)
    loaded = tss.load(make_bart(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.tss.seal_task([make_batch(TOPICS)])

"""Loading a task: kinds, labels, validation split, limits, digests; folders, generated tasks, Hugging Face datasets."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tss.data import list_tasks, load_task
from tss.errors import DataError
from tss.tasks import Classification, Extraction, Generation


def write(root, name, **splits):
    for split, examples in splits.items():
        path = root / name / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")


def labelled(count, labels=("a", "b", "c"), prefix="text"):
    return [{"text": f"{prefix} {i}", "label": labels[i % len(labels)]} for i in range(count)]


def texts(examples):
    return [example["text"] for example in examples]


def test_kinds_follow_from_fields(tmp_path):
    write(tmp_path, "ccd/x", train=labelled(20), validation=labelled(3), test=labelled(3))
    words = [{"tokens": ["Bob"], "ner_tags": ["B-PER"]}]
    write(tmp_path, "ner/x", train=words * 3, test=words)
    pair = [{"source": "a", "target": "b", "context": "c"}]
    write(tmp_path, "sum/x", train=pair * 3, test=pair)
    write(tmp_path, "drg/x", train=pair * 3, test=pair)
    assert list_tasks(tmp_path) == ["ccd/x", "drg/x", "ner/x", "sum/x"]
    assert load_task(tmp_path, "ccd/x").kind == Classification(labels=["a", "b", "c"])
    assert load_task(tmp_path, "ner/x").kind == Extraction(labels=["B-PER", "O"])
    assert load_task(tmp_path, "sum/x").kind == Generation(metric="rouge1")
    assert load_task(tmp_path, "drg/x").kind == Generation(metric="bleu")


def test_fields_that_no_kind_knows_are_left_out(tmp_path):
    write(tmp_path, "ccd/x", train=[{"id": 7, **row} for row in labelled(20)], test=labelled(3))
    task = load_task(tmp_path, "ccd/x")
    assert task.train[0].keys() == {"text", "label"}
    assert (task.name, task.family) == ("ccd/x", "ccd")


def test_windows_files_load(tmp_path):
    write(tmp_path, "ccd/x", train=labelled(20), test=labelled(3))
    plain = load_task(tmp_path, "ccd/x")
    for file in (tmp_path / "ccd" / "x").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_task(tmp_path, "ccd/x") == plain


def test_a_missing_validation_split_is_taken_off_train_by_class(tmp_path):
    uneven = [*labelled(120, labels=("a", "a", "a", "b")), {"text": "only", "label": "c"}]
    write(tmp_path, "ccd/x", train=uneven, test=labelled(4))
    task = load_task(tmp_path, "ccd/x", seed=3)
    assert len(task.validation) == 12
    assert sorted(texts(task.train + task.validation)) == sorted(texts(uneven))
    assert Counter(row["label"] for row in task.validation) == {"a": 9, "b": 3}
    assert load_task(tmp_path, "ccd/x", seed=3) == task
    assert load_task(tmp_path, "ccd/x", seed=4).validation != task.validation


def test_two_examples_are_enough_to_split_one_off_and_one_is_not(tmp_path):
    pair = [{"source": "a", "target": "b"}]
    write(tmp_path, "sum/two", train=pair * 2, test=pair)
    task = load_task(tmp_path, "sum/two")
    assert (len(task.train), len(task.validation)) == (1, 1)
    write(tmp_path, "sum/one", train=pair, test=pair)
    with pytest.raises(DataError, match="expected at least two"):
        load_task(tmp_path, "sum/one")


def test_classes_of_one_example_each_cannot_give_validation(tmp_path):
    write(tmp_path, "ccd/x", train=labelled(3), test=labelled(3))
    with pytest.raises(DataError, match="one example of each class"):
        load_task(tmp_path, "ccd/x")


def test_limits_draw_evenly_from_the_classes_and_keep_all_labels(tmp_path):
    write(tmp_path, "ccd/x", train=labelled(90, ("a",) * 8 + ("b", "c")), validation=labelled(30), test=labelled(30))
    task = load_task(tmp_path, "ccd/x", limits={"train": 20, "test": 2, "validation": None})
    assert Counter(row["label"] for row in task.train) in (
        {"a": 6, "b": 7, "c": 7},
        {"a": 7, "b": 6, "c": 7},
        {"a": 7, "b": 7, "c": 6},
    )
    assert (len(task.test), len(task.validation)) == (2, 30)
    assert task.kind.labels == ("a", "b", "c")
    everything = load_task(tmp_path, "ccd/x", limits={"train": 1000})
    assert everything.train == load_task(tmp_path, "ccd/x").train
    order = texts(everything.train)
    assert texts(task.train) == sorted(texts(task.train), key=order.index)


def test_limits_are_seeded_and_another_task_changes_nothing(tmp_path):
    for name in ("sum/x", "sum/y"):
        pairs = [{"source": f"{i}", "target": "b"} for i in range(50)]
        write(tmp_path, name, train=pairs, validation=pairs, test=pairs)
    draws = {
        (n, s): load_task(tmp_path, n, seed=s, limits={"train": 9}).train for n in ("sum/x", "sum/y") for s in (1, 2)
    }
    assert load_task(tmp_path, "sum/x", seed=1, limits={"train": 9}).train == draws["sum/x", 1]
    assert draws["sum/x", 1] != draws["sum/x", 2]
    assert draws["sum/x", 1] != draws["sum/y", 1]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"dev": 3}, "unknown split 'dev'; there are: train, validation, test"),
        ({"train": 0}, "train=0 must be at least 1"),
    ],
)
def test_wrong_limits_are_named(tmp_path, limits, message):
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path, "ccd/x", limits=limits)


def test_the_digest_is_of_what_is_used(tmp_path):
    write(tmp_path, "ccd/x", train=labelled(20), validation=labelled(3), test=labelled(3))
    first = load_task(tmp_path, "ccd/x").digest
    swapped = [{"label": row["label"], "note": 1, "text": row["text"]} for row in labelled(20)]
    write(tmp_path, "ccd/x", train=swapped)
    assert load_task(tmp_path, "ccd/x").digest == first
    assert load_task(tmp_path, "ccd/x", limits={"train": 19}).digest != first
    write(tmp_path, "ccd/x", train=labelled(20)[::-1])
    assert load_task(tmp_path, "ccd/x").digest != first


def test_generated_tasks_load_like_any_other():
    assert set(list_tasks("generated")) >= {"asc/cameras", "ner/news", "sum/plans", "drg/hotels"}
    task = load_task("generated", "asc/cameras", limits={"train": 10})
    assert task.kind == Classification(labels=["negative", "positive"])
    assert len(task.train) == 10
    assert load_task("generated", "asc/cameras", seed=1).digest != load_task("generated", "asc/cameras", seed=2).digest
    with pytest.raises(DataError, match="no generated task 'asc/x'; there are: asc/cameras"):
        load_task("generated", "asc/x")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_a_dataset_folder_with_a_field_map(tmp_path, hub_cache):
    folder = tmp_path / "rows"
    rows = [{"content": f"t {i}", "topic": "ab"[i % 2], "label": i} for i in range(20)]
    write(tmp_path, "rows", train=rows, test=rows[:4])
    task = load_task(f"hub:{folder}", "ccd/mine", fields={"text": "content", "label": "topic"})
    assert task.train[0].keys() == {"text", "label"}
    assert task.kind == Classification(labels=["a", "b"])
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 2, 4)
    with pytest.raises(DataError, match=r'rows\[train\]: no column \'txt\' for "text"; there are: content'):
        load_task(f"hub:{folder}", "ccd/mine", fields={"text": "txt"})
    with pytest.raises(DataError, match="unknown field 'txt' in the field map; there are: aspect"):
        load_task(f"hub:{folder}", "ccd/mine", fields={"txt": "content"})
    with pytest.raises(DataError, match="name the task yourself"):
        list_tasks(f"hub:{folder}")


def test_a_column_that_is_mapped_away_from_its_name_is_not_read_twice(tmp_path, hub_cache):
    write(tmp_path, "rows", train=[{"text": "long", "label": "short"}] * 4, test=[{"text": "long", "label": "short"}])
    task = load_task(f"hub:{tmp_path / 'rows'}", "sum/mine", fields={"source": "text", "target": "label"})
    assert task.test == [{"source": "long", "target": "short"}]


def test_class_numbers_become_names(tmp_path, hub_cache):
    ds = hub_cache
    tags = ds.Features({"tokens": ds.List(ds.Value("string")), "tags": ds.List(ds.ClassLabel(names=["O", "B-PER"]))})
    rows = {"tokens": [["Bob", "eats"]] * 3, "tags": [[1, 0]] * 3}
    split = ds.Dataset.from_dict(rows, features=tags)
    ds.DatasetDict({"train": split, "dev": split, "test": split}).save_to_disk(tmp_path / "saved")
    task = load_task(f"hub:{tmp_path / 'saved'}", "ner/mine", fields={"ner_tags": "tags"})
    assert task.validation == [{"tokens": ["Bob", "eats"], "ner_tags": ["B-PER", "O"]}] * 3


def test_an_unlabelled_split_is_named(tmp_path, hub_cache):
    ds = hub_cache
    features = ds.Features({"text": ds.Value("string"), "label": ds.ClassLabel(names=["a", "b"])})
    train = ds.Dataset.from_dict({"text": ["x"] * 4, "label": [0, 1, 0, 1]}, features=features)
    test = ds.Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    ds.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        DataError, match=r"saved\[test\]:1: class number -1 is not one of the 2 classes; is this split unlab"
    ):
        load_task(f"hub:{tmp_path / 'saved'}", "ccd/mine")
    ds.DatasetDict({"train": train}).save_to_disk(tmp_path / "train_only")
    with pytest.raises(DataError, match="no test split; found: train"):
        load_task(f"hub:{tmp_path / 'train_only'}", "ccd/mine")


def test_a_dataset_that_cannot_be_had_is_one_clear_line(hub_cache):
    with pytest.raises(
        DataError, match=r"hub:no-such/data: the dataset cannot be loaded \(.*expected a name on"
    ) as caught:
        load_task("hub:no-such/data", "ccd/mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hub:a/b", ("a/b", None, None)),
        ("hub:a/b:c", ("a/b", "c", None)),
        ("hub:a/b@refs/convert/parquet", ("a/b", None, "refs/convert/parquet")),
        ("hub:a/b:c@main", ("a/b", "c", "main")),
        ("hub:{folder}", ("{folder}", None, None)),
    ],
)
def test_a_hub_name_may_have_a_configuration_and_a_revision(tmp_path, monkeypatch, hub_cache, source, asked):
    folder = tmp_path / "odd:name@x"
    folder.mkdir()
    seen = []

    def load_dataset(name, config, *, data_files, revision):
        seen.append((name, config, revision))
        rows = hub_cache.Dataset.from_dict({"text": ["x", "y"] * 4, "label": ["a", "b"] * 4})
        return hub_cache.DatasetDict({"train": rows, "test": rows})

    monkeypatch.setattr(hub_cache, "load_dataset", load_dataset)
    assert load_task(source.format(folder=folder), "ccd/mine").kind == Classification(labels=["a", "b"])
    assert seen == [tuple(part and part.format(folder=folder) for part in asked)]


def test_a_field_map_without_a_hub_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a field map is for hub datasets"):
        load_task(tmp_path, "ccd/x", fields={"text": "content"})

"""Tasks with a source of their own: data sets of the hub beside each other and beside a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tss.errors import ConfigError, DataError
from tss.run.config import load_config
from tss.run.resolve import load_tasks, resolve, sequence


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two data sets that `datasets` reads, and a folder with one task of this project's."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rows = {
        "topics": [{"content": f"text {i}", "topic": "ab"[i % 2]} for i in range(20)],
        "replies": [{"source": f"ask {i}", "target": "yes"} for i in range(20)],
        "local/ccd/mine": [{"text": f"text {i}", "label": "cd"[i % 2]} for i in range(20)],
    }
    for name, examples in rows.items():
        (tmp_path / name).mkdir(parents=True)
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    return tmp_path


def configuration(folders, **keys):
    values = {
        "device": "cpu",
        "sources": {
            "ccd/agnews": {"source": f"hub:{folders / 'topics'}", "fields": {"text": "content", "label": "topic"}},
            "drg/mwoz_taxi": f"hub:{folders / 'replies'}",
        },
    }
    return load_config({**values, **keys})


def test_a_mixed_sequence_of_hub_data_sets(folders):
    config = configuration(folders)
    assert sequence(config).tasks == ["ccd/agnews", "drg/mwoz_taxi"]
    tasks, _ = load_tasks(resolve(config)[0])
    assert [(task.name, task.kind.kind) for task in tasks] == [
        ("ccd/agnews", "classification"),
        ("drg/mwoz_taxi", "generation"),
    ]
    assert tasks[0].kind.labels == ("a", "b")
    assert load_config(config.resolved()) == config


def test_the_other_tasks_of_a_sequence_come_from_the_data_folder(folders):
    config = configuration(folders, data=str(folders / "local"), tasks=["drg/taxi", "ccd/mine", "ccd/agnews"])
    resolved, _ = resolve(config)
    assert resolved.tasks == ["drg/mwoz_taxi", "ccd/mine", "ccd/agnews"]
    tasks, _ = load_tasks(resolved)
    assert tasks[1].kind.labels == ("c", "d")
    with pytest.raises(ConfigError, match=r"ner/gum.*It has: ccd/agnews, drg/mwoz_taxi, ccd/mine"):
        resolve(configuration(folders, data=str(folders / "local"), tasks=["ner/gum", "ccd/mine"]))


def test_a_source_that_cannot_be_had_is_named(folders):
    config = configuration(folders, sources={"ccd/x": "hub:nobody/nothing@refs/convert/parquet"})
    with pytest.raises(DataError, match="hub:nobody/nothing@refs/convert/parquet: the dataset cannot be loaded"):
        load_tasks(resolve(config)[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"sources": {"a/b": {"source": "DIR", "fields": {"text": "x"}}}},
            r"sources\.a/b: fields: a field map is for hub",
        ),
        ({"sources": {"a/b": {"sorce": "DIR"}}}, r"sources\.a/b\.source: Field required"),
        ({"sources": {"a/b": 5}}, r"sources\.a/b: .*got 5"),
        ({"sources": ["a/b"]}, r"sources: .*got \['a/b'\]"),
    ],
)
def test_a_wrong_source_is_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        load_config(keys)


def test_one_data_set_of_the_hub_as_data_leaves_no_room_for_sources(folders):
    with pytest.raises(ConfigError, match="hub:x is one data set with one task; write it into `sources` too"):
        sequence(configuration(folders, data="hub:x", tasks=["ccd/x"]))


def test_the_guides_configuration_is_one():
    text = (Path(__file__).parents[2] / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    config = load_config(yaml.safe_load(block))
    assert [config.source_of(name).source for name in config.tasks] == [
        "hub:fancyzhx/dbpedia_14",
        "hub:eriktks/conll2003@refs/convert/parquet",
        "DIR",
    ]

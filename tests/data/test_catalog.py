"""The table of the forty tasks: complete, of one mind with the presets and the paper's sizes, and found by name."""

from __future__ import annotations

import pytest

from tss.data.catalog import Entry, catalog, expand, select
from tss.errors import DataError
from tss.run.config import load_config
from tss.run.resolve import resolve_order


def test_the_table_holds_the_forty_tasks_of_the_paper():
    forty = load_config("mixed", variant="paper").tasks
    assert len(forty) == 40
    assert sorted(catalog()) == sorted(forty)
    assert resolve_order(forty, list(catalog())).missing == []


def test_sizes_are_those_of_the_paper():
    asc = [entry.sizes for name, entry in catalog().items() if name.startswith("asc/")]
    assert len(asc) == 19
    assert [sum(sizes[split] for sizes in asc) for split in ("train", "validation", "test")] == [10241, 879, 2344]
    classes = {"ccd/yelp": 2, "ccd/amazon": 2, "ccd/yahoo": 10, "ccd/dbpedia": 14, "ccd/agnews": 4}
    for name, count in classes.items():
        assert catalog()[name].sizes == {"train": 450 * count, "validation": 50 * count, "test": 100 * count}
        limits = load_config("bart-large").overrides[name]["limits"]
        assert catalog()[name].sizes == limits
    assert {catalog()[name].draw.per_label for name in catalog() if name.startswith("ner/")} == {50}


def test_a_commit_is_a_commit_and_a_branch_is_marked():
    for name, entry in catalog().items():
        assert entry.licence, name
        if entry.place == "github":
            assert entry.pinned, name
        if not entry.pinned:
            assert entry.note, f"{name}: nothing says why its source is not pinned"
        if entry.checked == "converted":
            assert set(entry.sizes) == {"train", "validation", "test"}, name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a"]),
        ("a_{0..2}.gz", ["a_0.gz", "a_1.gz", "a_2.gz"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{split}/*", ["{split}/*"]),
    ],
)
def test_braces_are_expanded(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["ner/gum"], ["ner/gum"]),
        (["ipod", "ner/gum", "ipod"], ["asc/ipod", "ner/gum"]),
        (["ccd"], ["ccd/yelp", "ccd/amazon", "ccd/yahoo", "ccd/dbpedia", "ccd/agnews"]),
        (["drg/train", "drg"], ["drg/train", "drg/taxi", "drg/hotel", "drg/attraction", "drg/restaurant"]),
    ],
)
def test_tasks_are_found_by_name_family_and_short_name(words, chosen):
    assert select(words) == chosen


def test_no_word_is_every_task():
    assert select([]) == list(catalog())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("restaurant", "'restaurant' is a task of several families; write asc/restaurant or drg/restaurant"),
        ("ner/conll2004", "no task or family 'ner/conll2004' in the table; did you mean 'ner/conll2003'"),
        ("xyzzy", "`tss data list` shows all"),
    ],
)
def test_a_name_that_is_none_is_told(word, message):
    with pytest.raises(DataError, match=message):
        select([word])


ROW = {"files": "{split}", "format": "conll", "licence": "none", "checked": "described"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "hub:a/b"}, "is not of the form hub:NAME@REVISION"),
        ({"source": "gitlab:a/b@c"}, "is not one of hub, github, folder"),
        ({"source": "folder", "files": {"train": "x"}}, "needs a training and a test split"),
        ({"source": "folder", "files": {"dev": "x"}}, "dev"),
        ({"source": "folder", "filez": {}}, "filez"),
        ({"source": "folder", "format": "columns"}, "columns needs fields, and only columns"),
        ({"source": "folder", "domain": "taxi"}, "multiwoz needs a domain, and only multiwoz"),
    ],
)
def test_a_wrong_row_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Entry.model_validate({**ROW, **change})

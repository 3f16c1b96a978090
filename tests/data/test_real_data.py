"""Real tasks of all families: they load, their kinds survive JSON, they encode and keep every tag."""

from __future__ import annotations

import os

import pytest

from tss.data import author_order, list_tasks, load_task, resolve_order
from tss.tasks import kind_from_dict

FAMILIES = ("asc", "ccd", "drg", "ner", "sum")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    """The tokenizer in TSS_TOKENIZER_DIR, else the tiny one, which knows few words but aligns as any other."""
    folder = os.environ.get("TSS_TOKENIZER_DIR")
    if not folder:
        return tiny_tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_of_a_family(data_dir, tokenizer, family):
    names = [name for name in list_tasks(data_dir) if name.startswith(f"{family}/")]
    assert names
    for name in names:
        task = load_task(data_dir, name)
        assert kind_from_dict(task.kind.to_dict()) == task.kind
        examples = task.validation + task.test
        encoded = task.kind.encode_all(examples, tokenizer, source_length=2048, target_length=256)
        assert all(row["labels"] and row["input_ids"] for row in encoded)
        batch = task.kind.collate(encoded[:8], pad_id=1)
        assert batch["input_ids"].shape[0] == batch["labels"].shape[0] == min(8, len(encoded))
        if family == "ner":
            for row, example in zip(encoded, examples, strict=True):
                assert [task.kind.labels[i] for i in row["labels"] if i != -100] == example["ner_tags"]


def test_authors_orders_name_what_is_there_and_what_is_not(data_dir):
    available = list_tasks(data_dir)
    for family in FAMILIES:
        names = author_order(family)
        order = resolve_order(names, available)
        assert len(order.tasks) + len(order.missing) == len(names)
        assert set(order.tasks) <= set(available)
        assert order.tasks

"""Runs with gradient checkpointing, with dropout: what runs without it learn."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tss.errors import ConfigError
from tss.run.sequence import run_sequence

from .conftest import read


@pytest.fixture
def recomputed(monkeypatch):
    """One entry for each layer that was run with gradient checkpointing."""
    made = []
    checkpoint = transformers.modeling_utils.checkpoint

    def counted(run, *args, **kwargs):
        made.append(run)
        return checkpoint(run, *args, **kwargs)

    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", counted)
    return made


def results(folder):
    """The matrix and every tensor that was kept."""
    tensors = {}
    for path in sorted([*folder.glob("tasks/*.safetensors"), *folder.glob("adapters/shared-*.safetensors")]):
        tensors |= {f"{path.parent.name}/{path.stem[:2]}/{key}": value for key, value in load_file(path).items()}
    return read(folder)["matrix"], tensors


@pytest.mark.parametrize(
    ("method", "same"),
    [
        ("tss", torch.equal),
        # gradients of several passes over the same weights are added up in another order
        ("lwf", partial(torch.allclose, rtol=1e-3, atol=1e-5)),
        ("full", torch.equal),
    ],
)
def test_a_run_learns_the_same(method, same, tiny_config, tmp_path, recomputed):
    words = [f"method={method}", "training.epochs=2", *(["training.adapter_lr=1e-3"] if method == "full" else [])]
    run_sequence(tiny_config(*words), tmp_path / "without")
    assert not recomputed
    run_sequence(tiny_config(*words, "training.gradient_checkpointing=true"), tmp_path / "with")
    assert recomputed
    (matrix, tensors), (expected, others) = results(tmp_path / "with"), results(tmp_path / "without")
    assert matrix == expected
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert same(tensor, others[name]), name


def test_it_is_a_setting_of_each_task(tiny_config, tmp_path, recomputed):
    counts = []

    def tell(event):
        if event["event"] == "task_end":
            counts.append(len(recomputed))

    words = ["training.epochs=1", "families.ner.gradient_checkpointing=true"]
    run_sequence(tiny_config(*words), tmp_path / "run", progress=tell)
    assert counts[0] == 0 < counts[1] == counts[2]


def test_a_backbone_without_it_is_refused_before_anything_is_written(tiny_config, tmp_path, monkeypatch):
    bart = transformers.BartForConditionalGeneration
    monkeypatch.setattr(bart, "supports_gradient_checkpointing", False)
    message = "task ner/people: gradient_checkpointing: BartForConditionalGeneration does not support it"
    with pytest.raises(ConfigError, match=message):
        run_sequence(tiny_config("families.ner.gradient_checkpointing=true"), tmp_path / "run")
    assert not (tmp_path / "run" / "state").exists()

"""One LoRA per task is peft's: the same answers, gradients and start; its rank makes it as large as adapters."""

from __future__ import annotations

import copy
import sys

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.methods.conftest import KINDS, learn, make_batches, start, train
from tss.adapters import AdapterConfig, PlainOptions, attach
from tss.adapters.site_kinds import equal_rank, find_targets
from tss.errors import TssError


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.0,
                                      embd_pdrop=0.0, attn_pdrop=0.0, eos_token_id=2))  # fmt: skip


def of_peft(backbone, handle, options, tensors):
    """What peft makes of the backbone, with the A and B of a task."""
    rank = next(iter(tensors.values())).shape[0]
    config = peft.LoraConfig(r=rank, lora_alpha=options.alpha or rank, target_modules=list(handle.adapters))
    model = peft.get_peft_model(backbone, config)
    named = {f"base_model.model.{name}.weight": tensor for name, tensor in tensors.items()}
    assert not peft.set_peft_model_state_dict(model, named).unexpected_keys
    return model.eval()


@pytest.mark.parametrize("alpha", [None, 16])
@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_a_task_answers_and_learns_as_in_peft_alone(name, alpha, calm_bart):
    backbone = calm_bart if name == "bart" else tiny_gpt2()
    fresh = copy.deepcopy(backbone)
    method, handle = start(backbone, "lora", alpha=alpha)
    data = make_batches(1, "generation")
    if name == "gpt2":
        data = [{**batch, "labels": batch["input_ids"]} for batch in data]
    learn(handle, method, "drg/first", data, "generation")
    kept = handle.store.sealed("drg/first").weights
    assert all(tensor.abs().sum() > 0 for tensor in kept.values())
    theirs = of_peft(fresh, handle, method.options, kept)
    handle.model.eval()
    ours, expected = handle.model(**data[0], task="drg/first"), theirs(**data[0])
    assert torch.equal(ours.logits, expected.logits)

    method.begin_task(handle, "drg/second", KINDS["generation"])
    with torch.no_grad():
        for parameter, tensor in zip(handle.trainable_parameters()["scores"], kept.values(), strict=True):
            parameter.copy_(tensor)
    handle.loss(**data[1]).backward()
    theirs(**data[1]).loss.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters() if p.requires_grad}
    assert len(gradients) == len(kept)
    for layer, module in handle.layers.items():
        torch.testing.assert_close(module.weight.grad, gradients[f"base_model.model.{layer}.default.weight"])


def test_the_first_step_starts_from_the_backbone_with_the_matrices_of_peft(tiny_bart):
    fresh = copy.deepcopy(tiny_bart).eval()
    method, handle = start(tiny_bart, "lora")
    method.begin_task(handle, "drg/first", KINDS["generation"])
    batch = make_batches(1, "generation")[0]
    handle.model.eval()
    assert torch.equal(handle.model(**batch).logits, fresh(**batch).logits)
    for name, module in handle.layers.items():
        bound = 1 / module.in_features**0.5  # of kaiming_uniform(a = sqrt 5)
        assert module.weight.abs().max() <= bound if name.endswith("lora_A") else module.weight.eq(0).all()
        assert module.weight.std() > bound / 4 or name.endswith("lora_B")


def test_the_rank_makes_as_many_parameters_as_the_adapters_have(tiny_bart):
    config = AdapterConfig(bottleneck=12, gated=False)
    plain = attach(copy.deepcopy(tiny_bart), config, PlainOptions()).tss
    lora = attach(copy.deepcopy(tiny_bart), config, PlainOptions(trained="lora")).tss
    counts = [
        sum(p.numel() for a in handle.adapters.values() for p in a.trained().values()) for handle in (plain, lora)
    ]
    one_rank = sum(sum(module.weight.shape) for module in find_targets(tiny_bart, None).values())
    assert abs(counts[0] - counts[1]) <= one_rank / 2
    assert counts[1] % one_rank == 0
    assert equal_rank(tiny_bart, AdapterConfig(bottleneck=1, pairs=False), find_targets(tiny_bart, None).values()) == 1
    assert sorted({name.rsplit(".", 1)[1] for name in lora.adapters}) == ["q_proj", "v_proj"]


@pytest.mark.parametrize("bottleneck", [4, 300])
def test_the_rank_takes_as_many_bytes_as_gates_of_the_same_adapters(bottleneck, tiny_bart):
    gated = attach(copy.deepcopy(tiny_bart), AdapterConfig(bottleneck=bottleneck)).tss
    options = PlainOptions(trained="lora", match="bytes")
    lora = attach(copy.deepcopy(tiny_bart), AdapterConfig(bottleneck=bottleneck, gated=False), options).tss
    sizes = []
    for handle in (gated, lora):
        handle.add_task("drg/first", KINDS["generation"])
        sizes.append(handle.bytes_per_task("drg/first")["gates"])
    of_rank_1 = 4 * sum(sum(module.weight.shape) for module in find_targets(tiny_bart, None).values())
    assert sizes[1] == max(of_rank_1, of_rank_1 * round(sizes[0] / of_rank_1))
    assert (sizes[1] > of_rank_1) == (bottleneck == 300)


def test_targets_and_rank_can_be_chosen(tiny_bart):
    _, handle = start(tiny_bart, "lora", rank=3, targets=r".*encoder\.layers\.\d+\.fc1")
    assert len(handle.adapters) == 2
    assert {module.weight.shape[0] for name, module in handle.layers.items() if name.endswith("lora_A")} == {3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, or None, got 0"),
        ({"match": "size"}, "match must be one of parameters, bytes, got 'size'"),
        ({"alpha": -1}, "alpha must be a number above 0, got -1"),
        ({"targets": "("}, r"targets='\(' is not a valid regular expression"),
        ({"targets": "nothing"}, "no module name of BartForConditionalGeneration matches targets='nothing'"),
        ({"targets": ".*final_layer_norm"}, "is a LayerNorm: change targets"),
    ],
)
def test_what_cannot_work_is_refused(options, message, tiny_bart):
    with pytest.raises(ValueError, match=message):
        start(tiny_bart, "lora", **options)


def test_without_peft_the_message_says_what_to_install(tiny_bart, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TssError, match=r"package peft .*pip install 'tss\[lora\]'"):
        start(tiny_bart, "lora")
    assert not any(module._forward_hooks for module in tiny_bart.modules())


def test_the_backbone_comes_back_without_any_of_it(tiny_bart):
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in tiny_bart.named_parameters()}
    names = [name for name, _ in tiny_bart.named_modules()]
    method, handle = start(tiny_bart, "lora")
    method.begin_task(handle, "drg/first", KINDS["generation"])
    train(handle, method, make_batches(1, "generation"))
    backbone = handle.detach()
    assert [name for name, _ in backbone.named_modules()] == names
    assert not any(module._forward_hooks for module in backbone.modules())
    for name, tensor in backbone.named_parameters():
        assert torch.equal(tensor, before[name][0])
        assert tensor.requires_grad == before[name][1]

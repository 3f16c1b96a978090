"""Which task runs belongs to a call: threads, nested models, rows, and layers that others call."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn.utils import prune

import tss

from .conftest import ARCHITECTURES, REPLIES, TOPICS, inputs_of, learn, logits, make_bart, make_batch


@pytest.fixture
def model():
    """Four sealed tasks whose answers differ."""
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=8, weight_init="signed_constant"))
    for seed in range(4):
        learn(model.tss, f"topics {seed}", TOPICS, seed=seed)
    return model


def test_threads_get_their_own_tasks_answers(model):
    names, batch = list(model.tss.tasks), inputs_of(make_batch(TOPICS))
    expected = {name: logits(model, batch, name) for name in names}
    wrong, active = [], model.tss.active

    def ask(name, how):
        model.tss.use(names[0])
        for _ in range(20):
            if how == "call":
                answer = model(**batch, task=name).logits
            else:
                with model.tss.using(name):
                    answer = model(**batch).logits
            if not torch.equal(answer, expected[name]) or model.tss.active != names[0]:
                wrong.append(name)

    with torch.no_grad():
        threads = [threading.Thread(target=ask, args=(name, how)) for name in names for how in ("call", "using")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert model.tss.active == active


def test_a_thread_that_chose_nothing_runs_what_is_being_learned(model):
    model.tss.add_task("more", TOPICS)
    model.tss.train_task("more")
    model.tss.use("topics 0")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(model.tss.active))
    thread.start()
    thread.join()
    assert (seen, model.tss.active) == (["more"], "topics 0")


def test_an_exception_leaves_nothing_switched(model):
    batch, before = make_batch(TOPICS), model.tss.active
    with pytest.raises(ValueError, match="no input"):
        model(**batch, nonsense=1, task="topics 1")
    assert model.tss.active == before
    backbone = model.backbone
    first = logits(backbone, batch)
    assert torch.equal(logits(backbone, batch), first)


def test_one_model_inside_anothers_call_keeps_to_itself(model):
    other = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=8, weight_init="signed_constant"))
    learn(other.tss, "topics 0", TOPICS, seed=7)
    other.tss.use(None)
    batch = make_batch(TOPICS)
    alone, inside = logits(other.backbone, batch), []
    hook = model.get_encoder().register_forward_hook(lambda *_: inside.append(logits(other.backbone, batch)))
    logits(model, batch, "topics 0")
    hook.remove()
    assert torch.equal(inside[0], alone)


def test_a_name_that_is_gone_is_an_error_everywhere(model):
    batch = inputs_of(make_batch(TOPICS))
    model.tss.use("topics 0")
    with model.tss.using("topics 1"):
        model.tss.rename_task("topics 0", "other")
    for ask in (lambda: model(**batch), lambda: model.config, model.can_generate, lambda: model.loss_type):
        with pytest.raises(tss.StateError, match="there is no task 'topics 0'; the tasks are: other"):
            ask()


def test_a_model_whose_adapters_were_taken_off_answers_nothing(model):
    batch = inputs_of(make_batch(TOPICS))
    model.tss.detach()
    for ask in (lambda: model(**batch), lambda: model(**batch, task="topics 0"), lambda: model.generate(**batch)):
        with pytest.raises(tss.StateError, match="these adapters were taken off their model"):
            ask()


def test_two_names_for_four_rows_are_refused(model):
    batch = inputs_of(make_batch(TOPICS))
    with pytest.raises(ValueError, match="a batch of 4 rows for 2 task names: give one name per row"):
        model(**batch, task=["topics 0", "topics 1"])
    learn(model.tss, "replies", REPLIES)
    learn(model.tss, "more replies", REPLIES, seed=5)
    with pytest.raises(ValueError, match="a batch of 4 rows for 2 task names"):
        model.generate(**batch, task=["replies", "more replies"], num_beams=2, max_new_tokens=2)


@pytest.mark.parametrize("how", ["hook", "pre-hook", "pruned", "forward on the instance", "parametrised"])
@pytest.mark.parametrize("sealed", [True, False])
def test_what_others_put_on_an_adapters_layer_is_not_bypassed(how, sealed):
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, weight_init="signed_constant"))
    learn(model.tss, "topics", TOPICS, seal=sealed)
    batch = make_batch(TOPICS)
    before = logits(model, batch, "topics")
    layer = next(iter(model.tss.layers.values()))
    called = []
    if how == "hook":
        layer.register_forward_hook(lambda module, args, output: called.append(1) or 2 * output)
    elif how == "pre-hook":
        layer.register_forward_pre_hook(lambda module, args: called.append(1) or (2 * args[0],))
    elif how == "pruned":
        prune.l1_unstructured(layer, "weight", amount=0.9)
    elif how == "parametrised":
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Tanh())
    else:
        forward = layer.forward
        layer.forward = lambda x: 2 * forward(x)
    assert not torch.equal(logits(model, batch, "topics"), before)
    if how == "hook":
        assert called == [1]


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2", "llama", "base"])
def test_a_forward_on_the_backbones_instance_runs_around_every_task(name):
    """As accelerate, offloading and profilers put it there."""
    backbone = ARCHITECTURES[name][0]()
    model = tss.attach(backbone, tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS)
    batch = make_batch(TOPICS)
    expected, calls, forward = logits(model, batch, "topics"), [], backbone.forward

    def counting(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    backbone.forward = counting
    assert torch.equal(logits(model, batch, "topics"), expected)
    assert calls == [1]
    with torch.no_grad():
        assert model.tss.loss(**batch) == model(**batch).loss
    del backbone.forward


def test_layers_whose_batch_is_not_first_are_refused_at_attach():
    import transformers as hf

    config = hf.XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=32)
    with pytest.raises(ValueError, match=r"XLNetLMHeadModel hold \(length, batch, hidden\)"):
        tss.attach(hf.XLNetLMHeadModel(config), tss.AdapterConfig(bottleneck=4, sites=r".*layer\.\d+\.ff"))


def test_a_module_without_a_configuration_is_refused_at_attach():
    with pytest.raises(ValueError, match="Sequential has no transformers config"):
        tss.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), tss.AdapterConfig(sites="0"))

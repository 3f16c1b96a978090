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


def ask_for(model, batch):
    """Every way to run a model that can name a task, with none named."""
    return {
        "call": lambda: model(**batch),
        "loss": lambda: model.tss.loss(**batch, labels=make_batch(TOPICS)["labels"]),
        "generate": lambda: model.generate(**batch, max_new_tokens=2),
    }


def delete(model):
    model.tss.use("topics 0")
    model.tss.delete_task("topics 0")


def delete_a_rows(model):
    model.tss.use(["topics 0", "topics 1"] * 2)
    model.tss.delete_task("topics 1")


def delete_all(model):
    for name in list(model.tss.tasks):
        model.tss.delete_task(name)


def abandon(model):
    model.tss.add_task("more", TOPICS)
    model.tss.train_task("more")
    model.tss.abandon()


def abandon_and_delete(model):
    abandon(model)
    model.tss.delete_task("more")


def rename_elsewhere(model):
    model.tss.use("topics 0")
    thread = threading.Thread(target=model.tss.rename_task, args=("topics 0", "other"))
    thread.start()
    thread.join()


@pytest.mark.parametrize("how", ["call", "loss", "generate"])
@pytest.mark.parametrize(
    ("lose", "message"),
    [
        (delete, r"there is no task 'topics 0'; the tasks are: topics 1, topics 2, topics 3\. The call names no task"),
        (delete_a_rows, r"there is no task 'topics 1'; .*was active on this thread"),
        (delete_all, r"there is no task 'topics 3'; .*choose another with model\.tss\.use\(name\), or use\(None\)"),
        (abandon, r"task 'more' is new and has no gates yet; .*was active on this thread"),
        (abandon_and_delete, r"there is no task 'more'; .*was active on this thread"),
        (rename_elsewhere, r"there is no task 'topics 0'; the tasks are: other, topics 1, .*was active on this thread"),
    ],
)
def test_a_task_that_was_active_and_is_gone_is_an_error_and_not_the_bare_backbone(model, how, lose, message):
    batch = inputs_of(make_batch(TOPICS))
    with torch.no_grad():
        bare = model.backbone(**batch).logits
    lose(model)
    assert model.tss.active is None
    with pytest.raises(tss.StateError, match=message):
        ask_for(model, batch)[how]()
    str(model), str(model.tss)
    with torch.no_grad():
        assert torch.equal(model(**batch, task=None).logits, bare)
        model.tss.use(None)
        assert torch.equal(model(**batch).logits, bare)
    learn(model.tss, "another", TOPICS)
    assert torch.equal(logits(model, batch), logits(model, batch, "another"))


@pytest.mark.parametrize("how", ["call", "loss", "generate"])
@pytest.mark.parametrize("who", ["loaded", "another thread", "task state"])
def test_where_nobody_chose_a_task_a_call_has_to_name_one(model, how, who, tmp_path):
    if who == "loaded":
        model.tss.save(tmp_path)
        model = tss.load(make_bart(), tmp_path)
    if who == "task state":
        other, model = model, tss.attach(make_bart(), tss.AdapterConfig(bottleneck=8, weight_init="signed_constant"))
        model.tss.load_task_state("topics 0", *other.tss.task_state("topics 0"))
    ask, errors = ask_for(model, inputs_of(make_batch(TOPICS)))[how], []

    def run():
        try:
            ask()
        except tss.StateError as error:
            errors.append(str(error))

    if who == "another thread":
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    (message,) = errors
    assert message.startswith("the call names no task, and none is active on this thread: give task=")
    assert "the tasks are: topics 0" in message
    model.tss.use("topics 0")
    if how != "generate":
        ask()


def test_before_anything_was_learned_the_model_is_the_original_one():
    model, batch = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=8)), make_batch(TOPICS)
    bare = logits(model.backbone, batch)
    assert torch.equal(logits(model, batch), bare)
    model.tss.add_task("topics", TOPICS)
    assert torch.equal(logits(model, batch), bare)


def test_a_choice_of_rows_goes_with_a_new_name(model):
    batch, names = make_batch(TOPICS), ["topics 0", "topics 1", "topics 0", "topics 2"]
    expected = model(**inputs_of(batch), task=names).logits
    model.tss.use(names)
    model.tss.rename_task("topics 0", "other")
    for one, other in zip(model(**inputs_of(batch)).logits, expected, strict=True):
        assert torch.equal(one, other)


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
        with pytest.raises(tss.StateError, match="these adapters were detached from their model"):
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
    with pytest.raises(ValueError, match=r"XLNetLMHeadModel return \(length, batch, hidden\)"):
        tss.attach(hf.XLNetLMHeadModel(config), tss.AdapterConfig(bottleneck=4, sites=r".*layer\.\d+\.ff"))


def test_a_module_without_a_configuration_is_refused_at_attach():
    with pytest.raises(ValueError, match="Sequential has no transformers config"):
        tss.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), tss.AdapterConfig(sites="0"))


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_encoder_that_is_called_alone_runs_for_the_active_task(name):
    model = tss.attach(ARCHITECTURES[name][0](), tss.AdapterConfig(bottleneck=8, share=2.0)).eval()
    original = ARCHITECTURES[name][0]().eval()
    learn(model.tss, "one", REPLIES)
    learn(model.tss, "two", REPLIES, seed=1)
    batch = inputs_of(make_batch(REPLIES))
    mask, start = batch["attention_mask"], batch["input_ids"][:, :3]

    def with_states(task, states):
        return model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=start, task=task).logits

    with torch.no_grad():
        for task in ("one", "two", ["one", "two", "two", "one"]):
            whole = model(**batch, decoder_input_ids=start, task=task).logits
            assert torch.equal(with_states(task, model.get_encoder()(**batch, task=task)), whole)
            with model.tss.using(task):
                assert torch.equal(with_states(task, model.get_encoder()(**batch)), whole)
        assert torch.equal(model.get_encoder()(**batch, task=None)[0], original.get_encoder()(**batch)[0])
        settings = {"num_beams": 2, "max_new_tokens": 4, "min_new_tokens": 4, "task": "one"}
        states = model.get_encoder()(**batch, task="one")
        expected = model.generate(**batch, **settings)
        assert torch.equal(model.generate(encoder_outputs=states, attention_mask=mask, **settings), expected)
    assert model.get_encoder().main_input_name == "input_ids"
    model.tss.delete_task("two")
    with model.tss.using("one"), pytest.raises(tss.StateError, match="no task 'two'"):
        model.get_decoder()(input_ids=start, task="two")

"""new -> learning -> sealed, which task runs, and what is refused."""

from __future__ import annotations

import warnings

import pytest
import torch

import tss
from tss.adapters import AdapterConfig, TssOptions
from tss.adapters.config import PlainOptions

from .conftest import (
    ARCHITECTURES,
    NAMES,
    REPLIES,
    TOPICS,
    learn,
    logits,
    make_bart,
    make_batch,
    make_batches,
    snapshot,
    step,
)


@pytest.fixture
def handle(bart):
    return tss.attach(bart, AdapterConfig(bottleneck=4)).tss


def test_states_follow_each_other(handle):
    handle.add_task("topics", TOPICS)
    assert (handle.tasks["topics"].state, handle.active, handle.trainable) == ("new", None, None)
    with pytest.raises(tss.StateError, match=r"'topics' is new and has no gates yet; call train_task\('topics'\)"):
        handle.use("topics")
    handle.train_task("topics")
    assert (handle.tasks["topics"].state, handle.active, handle.trainable) == ("learning", "topics", "topics")
    handle.seal_task(make_batches(TOPICS))
    record = handle.tasks["topics"]
    assert (record.state, handle.active, handle.trainable) == ("sealed", "topics", None)
    assert record.bytes == handle.bytes_per_task("topics")["total"]
    assert record.density == pytest.approx(sum(handle.density().values()) / len(handle.layers))
    assert record.hash == handle.fingerprint("topics")
    with pytest.raises(TypeError):
        handle.tasks["other"] = record


def test_what_the_life_of_a_task_forbids(handle):
    handle.add_task("topics", TOPICS)
    handle.add_task("names", NAMES)
    with pytest.raises(tss.StateError, match="'topics' exists already and is new"):
        handle.add_task("topics", TOPICS)
    with pytest.raises(tss.StateError, match="there is no task 'topic'; the tasks are: topics, names"):
        handle.use("topic")
    for call in (handle.seal_task, handle.learning_state, lambda: handle.optimizer(score_lr=1, head_lr=1)):
        with pytest.raises(tss.StateError, match="being trained"):
            call()
    handle.train_task("topics")
    with pytest.raises(
        tss.StateError,
        match="'topics' is being trained; seal it, or leave it with abandon\\(\\), before training 'names'",
    ):
        handle.train_task("names")
    with pytest.raises(tss.StateError, match="cannot seal names: the task being trained is topics"):
        handle.seal_task(name="names")
    with pytest.raises(tss.StateError, match="only sealed tasks have a fingerprint"):
        handle.fingerprint("topics")
    handle.seal_task()
    with pytest.raises(tss.StateError, match="'topics' is sealed and can never change"):
        handle.train_task("topics")
    with pytest.raises(tss.StateError, match="'topics' exists already and is sealed"):
        handle.load_task_state("topics", *handle.task_state("topics"))
    with pytest.raises(tss.StateError, match=r"has adapters already; call model\.tss\.detach"):
        tss.attach(handle.model)


def test_a_detached_handle_says_so(handle):
    learn(handle, "topics", TOPICS)
    handle.detach()
    for call in (handle.detach, lambda: handle.add_task("names", NAMES), handle.frozen_fingerprint):
        with pytest.raises(tss.StateError, match=r"detached from their model: call tss\.attach"):
            call()
    with pytest.raises(tss.StateError, match=r"detached from their model: call tss\.attach"):
        handle.use("topics")


def test_a_sealed_task_runs_from_its_bits_whatever_the_scores_become(handle):
    learn(handle, "topics", TOPICS)
    before = logits(handle.model, make_batch(TOPICS), "topics")
    with torch.no_grad():
        for layer in handle.layers.values():
            layer.scores.fill_(float("nan"))
    assert torch.equal(logits(handle.model, make_batch(TOPICS), "topics"), before)
    assert not any(p.requires_grad for p in handle.model.parameters())


def test_active_and_trainable_are_apart(handle):
    learn(handle, "topics", TOPICS)
    learn(handle, "names", NAMES, seal=False)
    with handle.using("topics"):
        assert (handle.active, handle.trainable) == ("topics", "names")
        assert not handle.model(**make_batch(TOPICS)).loss.requires_grad
        with handle.using(None):
            assert handle.active is None
    assert handle.active == "names"
    assert handle.model(**make_batch(NAMES)).loss.requires_grad
    with pytest.raises(KeyError), handle.using("topics"):
        raise KeyError
    assert handle.active == "names"


def test_sealing_leaves_modes_and_a_failed_pass_leaves_the_task_learning(handle):
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    handle.model.train()
    handle.model.get_encoder().eval()
    modes = [module.training for module in handle.backbone.modules()]
    scores, batch = snapshot(handle.model), make_batch(TOPICS)
    broken = {**batch, "labels": None}
    failures = [([], ValueError, "has no batches"), ([batch, broken], ValueError, "batch 1 has no labels")]
    failures.append(([(1, 2)], ValueError, "data has a tuple, expected dicts"))
    for data, error, message in [*failures, ([{"text": "x"}], ValueError, r"set model\.tss\.tokenizer")]:
        with pytest.raises(error, match=message):
            handle.seal_task(data)
        assert handle.trainable == "topics"
        assert all(layer.importance is None and layer.mask_gradient for layer in handle.layers.values())
    with torch.no_grad():
        head = handle.trainable_parameters()["head"][0]
        kept = head.clone()
        head.fill_(float("nan"))
    with pytest.raises(tss.StateError, match=r"head\.dense\.weight holds 256 values that are not finite"):
        handle.seal_task([batch])
    with torch.no_grad():
        head.copy_(kept)
    handle.seal_task([batch])
    assert [module.training for module in handle.backbone.modules()] == modes
    now = handle.model.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in scores.items() if not name.startswith("learning."))


def test_examples_of_every_form_give_the_same_importance(bart, tiny_tokenizer):
    texts = [{"text": "good phone", "label": "yes"}, {"text": "poor screen and battery", "label": "no"}]
    encoded = TOPICS.encode_all(texts, tiny_tokenizer, source_length=128, target_length=128)
    batch = TOPICS.collate(encoded, pad_id=1)
    rows = [{**row, "labels": row["labels"][0]} for row in encoded]
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    importances = []
    for data in (texts, encoded, rows, [batch], loader):
        handle = tss.attach(bart, AdapterConfig(bottleneck=4)).tss
        handle.tokenizer = tiny_tokenizer
        handle.add_task("topics", TOPICS)
        handle.train_task("topics")
        handle.seal_task(data)
        importances.append(torch.cat([layer.importance.flatten() for layer in handle.layers.values()]))
        handle.detach()
    assert importances[0].max() > 0
    assert all(torch.equal(importances[0], other) for other in importances[1:])


def test_learning_and_shared_state_come_back(handle):
    learn(handle, "topics", TOPICS)
    learn(handle, "names", NAMES, seal=False)
    learning = {name: tensor.clone() for name, tensor in handle.learning_state().items()}
    shared = {name: tensor.clone() for name, tensor in handle.shared_state().items()}
    first = logits(handle.model, make_batch(NAMES))
    with torch.no_grad():
        for tensor in (*handle.learning_state().values(), *handle.shared_state().values()):
            tensor.add_(1)
    assert not torch.equal(logits(handle.model, make_batch(NAMES)), first)
    handle.load_shared_state(shared)
    handle.load_learning_state(learning)
    assert torch.equal(logits(handle.model, make_batch(NAMES)), first)
    assert all(torch.equal(tensor, shared[name]) for name, tensor in handle.shared_state().items())
    name = next(iter(learning))
    for wrong in (learning | {name: learning[name][:1]}, {k: v for k, v in learning.items() if k != name}):
        with pytest.raises(tss.StateError, match=f"{name} is .*expected"):
            handle.load_learning_state(wrong)


def test_gates_are_counted(handle):
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    since = handle.packed()
    assert handle.flipped(since) == dict.fromkeys(handle.layers, 0.0)
    name, layer = next(iter(handle.layers.items()))
    with torch.no_grad():
        on = int((layer.scores >= 0).sum())
        layer.scores[0, :3] *= -1
    assert handle.flipped(since)[name] == 3 / layer.scores.numel()
    assert handle.density()[name] == pytest.approx(int((layer.scores >= 0).sum()) / layer.scores.numel())
    assert abs(int((layer.scores >= 0).sum()) - on) in (1, 3)
    with pytest.raises(tss.StateError, match="have no layer"):
        handle.flipped({})
    assert handle.bytes_per_task("topics")["gates"] == sum(packed.numel() for packed in since.values())


def test_the_table_lists_every_task(handle):
    assert "no task yet" in str(handle)
    learn(handle, "asc/laptop.v1", TOPICS)
    handle.add_task("replies", REPLIES)
    lines = str(handle).splitlines()
    assert lines[0].split() == ["task", "kind", "state", "density", "bytes", "hash"]
    record = handle.tasks["asc/laptop.v1"]
    expected = ["*", "asc/laptop.v1", "classification", "sealed", f"{record.density:.4f}", f"{record.bytes:,}"]
    assert lines[1].split() == [*expected, record.hash[:12]]
    assert lines[2].split()[:4] == ["replies", "generation", "new", "-"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": 0}, "bottleneck must be a whole number of at least 1, got 0"),
        ({"activation": "swish"}, "activation must be one of relu, gelu, silu, tanh, got 'swish'"),
        ({"placement": "ffn"}, "placement must be one of feed_forward, attention, both, got 'ffn'"),
        ({"preset": "gpt"}, "preset must be one of .*got 'gpt'"),
        ({"sites": "("}, "is not a valid regular expression"),
        ({"weight_init": "ones"}, "weight_init must be one of"),
        ({"threshold": "0"}, "threshold must be a finite number"),
        ({"gated": 1}, "gated must be true or false"),
        ({"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_adapter_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**settings)


@pytest.mark.parametrize("key", ["soft_mask", "score_copy", "importance_per", "importance_of"])
def test_options_are_checked(key):
    with pytest.raises(ValueError, match=f"{key} must be .*got 'some'"):
        TssOptions(**{key: "some"})


def test_kinds_that_a_model_cannot_learn_are_refused():
    handle = tss.attach(ARCHITECTURES["bert"][0](), AdapterConfig(bottleneck=4)).tss
    with pytest.raises(ValueError, match="generation tasks need a language-model head, which BertForMaskedLM lacks"):
        handle.add_task("replies", REPLIES)
    assert not handle.tasks


def test_a_task_begun_by_mistake_can_be_left(handle):
    learn(handle, "topics", TOPICS)
    before = {name: tensor.clone() for name, tensor in handle.shared_state().items()}
    with pytest.raises(tss.StateError, match="no task is being trained, so there is nothing to abandon"):
        handle.abandon()
    learn(handle, "names", NAMES, seal=False)
    for call in (lambda: handle.delete_task("names"), lambda: handle.rename_task("names", "n")):
        with pytest.raises(tss.StateError, match="'names' is being trained"):
            call()
    handle.abandon()
    assert (handle.trainable, handle.active, handle.tasks["names"].state) == (None, None, "new")
    assert all(torch.equal(tensor, before[name]) for name, tensor in handle.shared_state().items())
    assert not any(p.requires_grad for p in handle.model.parameters())
    assert handle.trainable_parameters() == {"scores": [], "head": []}
    handle.train_task("names")
    fresh = handle.head.state_dict()
    handle.abandon()
    handle.train_task("names")
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in handle.head.state_dict().items())


def test_plain_adapters_go_back_too(bart):
    handle = tss.attach(bart, AdapterConfig(bottleneck=4, gated=False)).tss
    learn(handle, "topics", TOPICS)
    before = {name: tensor.clone() for name, tensor in handle.shared_state().items()}
    learn(handle, "names", NAMES, seal=False)
    handle.abandon()
    assert all(torch.equal(tensor, before[name]) for name, tensor in handle.shared_state().items())


def test_tasks_are_renamed_and_deleted(handle):
    for seed, name in enumerate(("one", "two", "three")):
        learn(handle, name, TOPICS, seed=seed)
    batch = make_batch(TOPICS)
    first, hashes = logits(handle.model, batch, "two"), {name: handle.fingerprint(name) for name in handle.tasks}
    handle.rename_task("two", "zwei")
    assert list(handle.tasks) == ["one", "zwei", "three"]
    assert handle.tasks["zwei"].name == "zwei"
    assert torch.equal(logits(handle.model, batch, "zwei"), first)
    with pytest.raises(tss.StateError, match="'one' exists already"):
        handle.rename_task("zwei", "one")
    handle.delete_task("one")
    assert list(handle.tasks) == ["zwei", "three"]
    assert handle.fingerprint("zwei") == hashes["two"]
    with pytest.raises(tss.StateError, match="there is no task 'one'; the tasks are: zwei, three"):
        handle.model(**batch, task="one")
    handle.use("three")
    handle.delete_task("three")
    assert handle.active is None
    learn(handle, "one", TOPICS)
    assert handle.active == "one"


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "a\0b", 7, None])
def test_what_is_no_name_is_refused_when_the_task_is_added(handle, name):
    with pytest.raises(ValueError, match="a task's name must be one non-empty line of printable text, not"):
        handle.add_task(name, TOPICS)


def test_sealing_without_data_says_that_nothing_holds_later_tasks_back(handle):
    learn(handle, "topics", TOPICS, seal=False)
    with pytest.warns(UserWarning, match="'topics' is sealed without data, so its importance is not computed"):
        handle.seal_task()


@pytest.mark.parametrize(
    ("kind", "what", "rate", "unmoved"),
    [
        (TOPICS, None, 0.1, "scores and head"),
        (REPLIES, None, 0.1, "scores"),
        (TOPICS, "all", 0.0, "scores and head"),
        (TOPICS, "scores", 0.1, "head"),
        (NAMES, "head", 0.1, "scores"),
        (TOPICS, "all", 0.1, None),
        (REPLIES, "all", 0.1, None),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_sealing_what_no_step_has_moved_is_warned_of(first, kind, what, rate, unmoved):
    handle = tss.attach(make_bart(), AdapterConfig(bottleneck=4), TssOptions(score_copy=False)).tss
    if not first:
        learn(handle, "old", NAMES)
    handle.add_task("task", kind)
    handle.train_task("task")
    groups = handle.trainable_parameters()
    if what is not None:
        parameters = [p for group, of in groups.items() if what in ("all", group) for p in of]
        step(handle, make_batch(kind), torch.optim.SGD(parameters, lr=rate))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handle.seal_task(make_batches(kind))
    found = [str(one.message) for one in caught if "with its initial" in str(one.message)]
    assert len(found) == (unmoved is not None)
    assert unmoved is None or found[0].startswith(f"task 'task' is sealed with its initial {unmoved}: ")


def test_a_task_that_is_not_sealed_is_not_warned_of():
    handle = tss.attach(make_bart(), AdapterConfig(bottleneck=4)).tss
    handle.add_task("task", TOPICS)
    handle.train_task("task")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="the data has no batches"):
            handle.seal_task([])


def test_a_warning_that_is_an_error_seals_nothing():
    handle = tss.attach(make_bart(), AdapterConfig(bottleneck=4)).tss
    handle.add_task("task", TOPICS)
    handle.train_task("task")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="with its initial"):
            handle.seal_task(make_batches(TOPICS))
    assert handle.trainable == "task"
    assert all(layer.importance is None for layer in handle.layers.values())


@pytest.mark.parametrize("trained", ["shared", "own", "masked"])
def test_without_gates_it_is_warned_of_too(trained):
    handle = tss.attach(make_bart(), AdapterConfig(bottleneck=4, gated=False), PlainOptions(trained=trained)).tss
    handle.add_task("task", TOPICS)
    handle.train_task("task")
    with pytest.warns(UserWarning, match="sealed with its initial weights and head"):
        handle.seal_task()


def test_trainable_parameters_are_printed_as_peft_does(handle, capsys):
    learn(handle, "topics", TOPICS, seal=False)
    handle.print_trainable_parameters()
    count = sum(p.numel() for group in handle.trainable_parameters().values() for p in group)
    every = sum(p.numel() for p in handle.model.parameters())
    line = f"trainable params: {count:,} || all params: {every:,} || trainable%: {100 * count / every:.4f}\n"
    assert capsys.readouterr().out == line


def importances(handle, data, kind=TOPICS):
    handle.add_task("task", kind)
    handle.train_task("task")
    handle.seal_task(data)
    found = torch.cat([layer.importance.flatten() for layer in handle.layers.values()])
    handle.detach()
    return found


@pytest.mark.parametrize("kind", [TOPICS, NAMES], ids=lambda kind: kind.kind)
def test_padded_rows_keep_their_mask_and_lists_and_arrays_are_batches(kind):
    batch = make_batch(kind)
    batch["attention_mask"][1, 5:] = 0
    batch["input_ids"][1, 5:] = 1
    rows = [{key: value[i] for key, value in batch.items()} for i in range(4)]
    forms = {
        "rows": rows,
        "rows of lists": [{key: value.tolist() for key, value in row.items()} for row in rows],
        "batch of lists": [{key: value.tolist() for key, value in batch.items()}],
        "batch of arrays": [{key: value.numpy() for key, value in batch.items()}],
    }
    config = AdapterConfig(bottleneck=4, weight_init="signed_constant")
    expected = importances(tss.attach(make_bart(), config).tss, [batch], kind)
    unmasked = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
    assert not torch.allclose(importances(tss.attach(make_bart(), config).tss, [unmasked], kind), expected, atol=0.01)
    for name, data in forms.items():
        assert torch.equal(importances(tss.attach(make_bart(), config).tss, data, kind), expected), name
    ragged = {**batch, "input_ids": [[5, 6, 7], [5]]}
    handle = tss.attach(make_bart(), config).tss
    learn(handle, "topics", kind, seal=False)
    with pytest.raises(ValueError, match="input_ids cannot become a tensor"):
        handle.seal_task([ragged])


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (lambda: tss.attach(make_bart(), 64), r"config must be a tss\.AdapterConfig or None, got 64"),
        (lambda: tss.attach(make_bart(), None, {}), r"options must be a tss\.TssOptions or None, got {}"),
        (lambda: tss.attach("facebook/bart-base"), r"model must be a transformers model, got a str: load it first"),
        (lambda: tss.attach(make_bart()).tss.add_task("z", "classification"), "kind must be .* got 'classification'"),
        (lambda: tss.attach(make_bart()).tss.add_task("z", tss.Classification), "kind must be a tss.Classification"),
        (lambda: tss.Classification(labels=3), "labels must be a list of strings, not 3"),
        (lambda: tss.attach(make_bart())(task=3), "the name of a task, or one name per row, got 3"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(mistake, expected):
    with pytest.raises((TypeError, ValueError), match=expected):
        mistake()


def test_weights_that_a_sealed_task_relies_on_stay_when_the_others_are_left(bart):
    handle = tss.attach(bart, AdapterConfig(bottleneck=4, gated=False)).tss
    handle.add_task("topics", TOPICS)
    handle.add_task("names", NAMES)
    handle.train_tasks(["topics", "names"])
    optimizer = torch.optim.SGD([p for group in handle.trainable_parameters().values() for p in group], lr=0.5)
    step(handle, make_batch(TOPICS), optimizer)
    handle.seal_task(name="topics")
    expected = logits(handle.model, make_batch(TOPICS), "topics")
    handle.abandon()
    assert handle.tasks["names"].state == "new"
    assert torch.equal(logits(handle.model, make_batch(TOPICS), "topics"), expected)


@pytest.mark.parametrize("between", ["delete", "abandon", "load"])
def test_scores_are_drawn_for_every_task_without_score_copy(between, tmp_path):
    """Whatever happened before: the scores that a task starts from depend on its name and the seed alone."""
    options = TssOptions(score_copy=False)

    def starts(handle):
        handle.add_task("second", TOPICS)
        handle.train_task("second")
        return {name: tensor.clone() for name, tensor in handle.shared_state().items() if name.startswith("scores.")}

    expected = starts(tss.attach(make_bart(), AdapterConfig(bottleneck=4), options).tss)
    handle = tss.attach(make_bart(), AdapterConfig(bottleneck=4), options).tss
    learn(handle, "first", TOPICS, seal=between != "abandon")
    if between == "delete":
        handle.delete_task("first")
    elif between == "abandon":
        handle.abandon()
    else:
        handle.save(tmp_path)
        handle = tss.load(make_bart(), tmp_path, tasks=[]).tss
    found = starts(handle)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("where", ["checksums", "packing"])
def test_a_failure_while_a_task_is_sealed_leaves_it_in_training(handle, where, monkeypatch):
    learn(handle, "topics", TOPICS, seal=False)
    batch, data = make_batch(TOPICS), make_batches(TOPICS)
    expected = logits(handle.model, batch, "topics")

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        if where == "checksums":
            patch.setattr(handle._tensors.frozen, "remember", fail)
        else:
            patch.setattr(next(iter(handle.layers.values())), "pack", fail)
        with pytest.raises(torch.OutOfMemoryError):
            handle.seal_task(data)
    assert handle.trainable == "topics"
    assert not any("importance" in name and tensor.any() for name, tensor in handle.shared_state().items())
    assert torch.equal(logits(handle.model, batch, "topics"), expected)
    handle.seal_task(data)
    assert torch.equal(logits(handle.model, batch, "topics"), expected)


def test_a_model_that_was_detached_while_training_trains_like_any_other(handle):
    learn(handle, "topics", TOPICS, seal=False)
    backbone = handle.detach()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    batch = make_batch(REPLIES)
    before = backbone.model.shared.weight.clone()
    backbone(**batch).loss.backward()
    optimizer.step()
    assert not torch.equal(backbone.model.shared.weight, before)


def test_tokenized_rows_may_keep_their_text():
    config, batch = AdapterConfig(bottleneck=4), make_batch(TOPICS)
    rows = [{key: value[i].tolist() for key, value in batch.items()} for i in range(4)]
    expected = importances(tss.attach(make_bart(), config).tss, rows)
    told = [{**row, "text": "too loud", "source": None} for row in rows]
    assert torch.equal(importances(tss.attach(make_bart(), config).tss, told), expected)


def test_embeddings_are_a_batch_or_an_example_by_their_dimensions():
    config, batch = AdapterConfig(bottleneck=4), make_batch(TOPICS)
    make_bert = ARCHITECTURES["bert"][0]
    embed = make_bert().get_input_embeddings()
    batch = {"inputs_embeds": embed(batch.pop("input_ids")).detach(), **batch}
    rows = [{key: value[i] for key, value in batch.items()} for i in range(4)]
    of_batch, of_rows = (importances(tss.attach(make_bert(), config).tss, data) for data in ([batch], rows))
    assert of_batch.any()
    assert torch.equal(of_batch, of_rows)


def test_rows_with_other_columns_are_refused_by_name(handle):
    learn(handle, "topics", TOPICS, seal=False)
    batch = make_batch(TOPICS)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(4)]
    del rows[2]["attention_mask"]
    with pytest.raises(ValueError, match="attention_mask is in some of the examples and not in others"):
        handle.seal_task(rows)
    assert handle.trainable == "topics"


@pytest.mark.parametrize(
    ("activation", "threshold", "warns"), [("relu", 0.3, True), ("relu", 0.2, False), ("tanh", 0.3, False)]
)
def test_a_threshold_with_which_nothing_is_learned_warns(bart, activation, threshold, warns):
    config = AdapterConfig(bottleneck=4, activation=activation, threshold=threshold)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handle = tss.attach(bart, config).tss
    said = [str(one.message) for one in caught if "threshold" in str(one.message)]
    assert len({*said}) == warns, said
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    handle.model(**make_batch(TOPICS)).loss.backward()
    assert any(bool(layer.scores.grad.any()) for layer in handle.layers.values()) != warns

"""Whoever steps the scores: what would break the soft mask is refused, what would teach nothing is warned of."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings

import pytest
import torch
import transformers as hf
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch.optim.optimizer import register_optimizer_step_pre_hook

import tss
from tss.adapters.config import PlainOptions
from tss_kernels import SoftMaskedAdamW

from .conftest import NAMES, REPLIES, TOPICS, learn, make_bart, make_batch, make_batches, step
from .test_trainer import rows_of


def learning(soft_mask="gradient", **settings):
    """A model with a sealed task and with importance, that learns another one."""
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, **settings), tss.TssOptions(soft_mask)).tss
    learn(handle, "topics", TOPICS)
    handle.add_task("names", NAMES)
    handle.train_task("names")
    return handle


def trained(handle):
    return [p for p in handle.model.parameters() if p.requires_grad]


def scores(handle):
    return [layer.scores.detach().clone() for layer in handle.layers.values()]


def by_hand(handle, make=torch.optim.AdamW, **settings):
    step(handle, make_batch(NAMES), make(trained(handle), **settings))


@pytest.fixture(autouse=True)
def _accelerators_state_is_the_processes():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def by_accelerate(handle, **settings):
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(handle.model, torch.optim.AdamW(trained(handle), **settings))
    accelerator.backward(model(**make_batch(NAMES)).loss)
    optimizer.step()


def by_trainer(handle, lr, weight_decay=0.0):
    arguments = hf.TrainingArguments(
        "unused", max_steps=1, learning_rate=lr, weight_decay=weight_decay, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, warmup_steps=10,
    )  # fmt: skip
    hf.Trainer(handle.model, arguments, train_dataset=rows_of(NAMES)).train()


WAYS = [by_hand, by_accelerate, by_trainer]


@pytest.mark.parametrize("way", WAYS)
def test_weight_decay_on_scores_is_refused_before_it_moves_any(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handle = learning()
    before = scores(handle)
    with pytest.raises(
        tss.StateError, match=r"AdamW with weight_decay=0\.1 would change scores that the soft mask protects"
    ):
        way(handle, lr=1e-2, weight_decay=0.1)
    assert all(torch.equal(one, other) for one, other in zip(before, scores(handle), strict=True))
    way(handle, lr=1e-2, weight_decay=0.0)
    assert not all(torch.equal(one, other) for one, other in zip(before, scores(handle), strict=True)) or (
        way is by_trainer  # its first step of ten to warm up has no rate yet
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_rate_that_teaches_scores_nothing_is_warned_of_once(way, tmp_path, monkeypatch):
    """Trainer's own default."""
    monkeypatch.chdir(tmp_path)
    handle = learning()
    with pytest.warns(
        UserWarning, match=r"have a learning rate of 5e-05 in this AdamW: a score needs about \d{4} steps"
    ):
        way(handle, lr=5e-5, weight_decay=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        way(learning(), lr=5e-3, weight_decay=0.0)


@pytest.mark.parametrize(
    ("make", "settings", "what"),
    [
        (torch.optim.SGD, {"lr": 0.1, "weight_decay": 1e-2}, "SGD with weight_decay=0.01"),
        (torch.optim.ASGD, {"lr": 0.1}, "ASGD with lambd=0.0001"),
        (torch.optim.RMSprop, {"lr": 0.1, "weight_decay": 0.5}, "RMSprop with weight_decay=0.5"),
        (SoftMaskedAdamW, {"lr": 0.1}, "SoftMaskedAdamW with weight_decay=0.01"),
    ],
)
def test_every_optimizer_of_torch_is_seen(make, settings, what):
    handle = learning()
    with pytest.raises(tss.StateError, match=what):
        by_hand(handle, make, **settings)


def test_decay_of_heads_of_plain_adapters_and_without_a_mask_is_anybodys_choice():
    handle = learning()
    groups = handle.trainable_parameters()
    step(handle, make_batch(NAMES), torch.optim.AdamW(
        [{"params": groups["scores"], "weight_decay": 0.0}, {"params": groups["head"], "weight_decay": 0.1}], lr=0.01
    ))  # fmt: skip
    by_hand(learning(gated=False), lr=0.01, weight_decay=0.1)
    by_hand(learning("none"), lr=0.01, weight_decay=0.1)
    other = torch.nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.AdamW(other.parameters(), weight_decay=0.1).step()


def test_masking_at_the_update_needs_the_optimizer_that_does_it():
    handle = learning("update")
    with pytest.raises(
        tss.StateError, match=r"soft_mask=\"update\" must be applied by the optimizer, but AdamW does not"
    ):
        by_hand(handle, weight_decay=0.0, lr=0.1)
    own = handle.optimizer(score_lr=0.1, head_lr=0.1)
    step(handle, make_batch(NAMES), own)
    half = SoftMaskedAdamW(trained(handle), lr=0.1, importance=dict(list(own.importance.items())[:2]))
    with pytest.raises(tss.StateError, match="but SoftMaskedAdamW does not"):
        step(handle, make_batch(NAMES), half)
    # whose whole step, decay included, is masked
    step(handle, make_batch(NAMES), SoftMaskedAdamW(trained(handle), lr=0.1, importance=own.importance))


def test_importance_that_was_loaded_after_the_optimizer_was_made_is_not_passed_by():
    handle = learning("update")
    optimizer = handle.optimizer(score_lr=0.1, head_lr=0.1)
    shared = handle.shared_state()
    handle.load_shared_state(
        {n: torch.ones_like(t) if n.startswith("importance.") else t.clone() for n, t in shared.items()}
    )
    with pytest.raises(tss.StateError, match="must be applied by the optimizer, but SoftMaskedAdamW does not"):
        step(handle, make_batch(NAMES), optimizer)


@pytest.mark.parametrize("what", ["backbone", "adapters", "apart"])
def test_what_sealed_tasks_rely_on_is_not_trained(what):
    """As after model.requires_grad_(True), or with PEFT's weights in the backbone."""
    handle = learning()
    frozen = handle.frozen_fingerprint()
    part = handle.backbone if what == "apart" else handle.model if what == "backbone" else handle.model.adapters
    part.requires_grad_(True)
    parameters = part.parameters() if what == "apart" else handle.model.parameters()
    with pytest.raises(tss.StateError, match=r"AdamW would train .* more tensors that are frozen"):
        step(handle, make_batch(NAMES), torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0))
    assert handle.frozen_fingerprint() == frozen


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
}


def learn_with(handle, name, kind, optimizer=None, make=OPTIMIZERS["SGD"], what="all"):
    """Begin a task, step it with an optimizer, or with one of its own, and leave it; gives the optimizer."""
    handle.add_task(name, kind)
    handle.train_task(name)
    groups = handle.trainable_parameters()
    optimizer = optimizer or make([p for group, of in groups.items() if what in ("all", group) for p in of])
    step(handle, make_batch(kind), optimizer)
    handle.seal_task(make_batches(kind) if handle.config.gated else None)
    return optimizer


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("what", ["all", "scores", "head"])
def test_an_optimizer_of_an_earlier_task_is_refused_whatever_its_state(make, what):
    """It has the scores of the new task, or would move them by what it remembers, but never the new head."""
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    optimizer = learn_with(handle, "topics", TOPICS, make=make, what=what)
    handle.add_task("names", NAMES)
    handle.train_task("names")
    before = {name: tensor.clone() for name, tensor in handle.learning_state().items()}
    for _ in range(2):
        with pytest.raises(tss.StateError, match=r"created before training of task 'names' started.*create a new one"):
            step(handle, make_batch(NAMES), optimizer)
        optimizer.state.clear()
    assert all(torch.equal(tensor, before[name]) for name, tensor in handle.learning_state().items())
    step(handle, make_batch(NAMES), make(trained(handle)))
    moved = [name for name, tensor in handle.learning_state().items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("scores.") for name in moved)
    assert any(name.startswith("head.") for name in moved)


@pytest.mark.parametrize("when", ["attached", "added", "abandoned", "tasks without a head", "renamed"])
def test_an_optimizer_that_was_made_too_early_is_refused(when):
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    if when == "attached":
        optimizer = torch.optim.SGD(handle.model.parameters(), lr=0.1)
    handle.add_task("topics", TOPICS)
    if when == "added":
        optimizer = torch.optim.SGD(handle.model.adapters.parameters(), lr=0.1)
    if when == "abandoned":
        handle.train_task("topics")
        optimizer = torch.optim.SGD(trained(handle), lr=0.1)
        handle.abandon()
    if when == "tasks without a head":
        optimizer = learn_with(handle, "replies", tss.Generation())
    if when == "renamed":
        optimizer = learn_with(handle, "one", TOPICS)
        handle.rename_task("one", "two")
    handle.train_task("topics")
    with pytest.raises(tss.StateError, match="created before training of task 'topics' started"):
        step(handle, make_batch(TOPICS), optimizer)


@pytest.mark.parametrize("trained_in_place", ["shared", "own", "masked", "backbone"])
def test_without_gates_too(trained_in_place):
    options = PlainOptions(trained=trained_in_place)
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, gated=False), options).tss
    optimizer = learn_with(handle, "topics", TOPICS)
    with pytest.raises(tss.StateError, match="created before training of task 'names' started"):
        learn_with(handle, "names", NAMES, optimizer)


def test_one_optimizer_goes_on_with_the_task_that_it_was_made_for():
    handle = learning()
    optimizer = torch.optim.SGD(trained(handle), lr=0.1)
    step(handle, make_batch(NAMES), optimizer)
    handle.train_task("names")
    step(handle, make_batch(NAMES), optimizer)
    handle.load_learning_state({name: tensor.clone() for name, tensor in handle.learning_state().items()})
    step(handle, make_batch(NAMES), optimizer)
    handle.model.half().float().to("cpu")
    step(handle, make_batch(NAMES), optimizer)
    halves = {key: torch.optim.SGD(group, lr=0.1) for key, group in handle.trainable_parameters().items()}
    for half in halves.values():
        half.step()


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_that_learns_is_watched_too(copy_of):
    twin = copy_of(learning().model).tss
    with pytest.raises(tss.StateError, match="would change scores"):
        by_hand(twin, lr=0.1, weight_decay=0.1)


def test_nothing_is_watched_when_nothing_is_learned():
    from tss.adapters.optimizers import _watchers

    def watched():
        gc.collect()
        return sum(check() is not None for check in _watchers.checks)

    before = watched()
    handle = learning()
    assert watched() == before + 1
    handle.seal_task(make_batches(NAMES))
    assert watched() == before
    handle.add_task("more", NAMES)
    handle.train_task("more")
    handle.abandon()
    assert watched() == before
    handle.train_task("more")
    del handle
    assert watched() == before


@pytest.mark.parametrize("what", ["begins", "ends", "goes"])
def test_models_come_and_go_while_another_optimizer_steps(what):
    """In another thread, or because the garbage collector runs there and then."""
    others, layer, passed = [], torch.nn.Linear(2, 2), []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def meanwhile(stepped, *_):
        if stepped is optimizer and what == "begins":
            others[1].train_task("topics")
        elif stepped is optimizer and what == "ends":
            others[0].seal_task(make_batches(NAMES))
        elif stepped is optimizer:
            others.clear()
            gc.collect()

    hooks = [register_optimizer_step_pre_hook(meanwhile)]
    others += [learning(), tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss]
    others[1].add_task("topics", TOPICS)
    hooks.append(register_optimizer_step_pre_hook(lambda stepped, *_: passed.append(stepped)))
    layer(torch.ones(1, 2)).sum().backward()
    try:
        optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()
    assert passed[-1] is optimizer


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"score_lr": -1.0, "head_lr": 1e-3}, "score_lr must be finite and at least 0, but is -1.0"),
        ({"score_lr": 1e-3, "head_lr": float("nan")}, "head_lr must be finite and at least 0, but is nan"),
        ({"score_lr": float("inf"), "head_lr": 1e-3}, "score_lr must be finite"),
    ],
)
def test_a_wrong_learning_rate_is_called_by_its_name(bart, rates, message):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4)).tss
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    with pytest.raises(ValueError, match=message):
        handle.optimizer(**rates)
    with pytest.raises(TypeError, match="lr must be a number but is '1e-3', a str"):
        handle.optimizer(score_lr="1e-3", head_lr=1e-3)


def test_a_rate_for_the_head_is_needed_where_there_is_one(bart):
    handle = tss.attach(bart, tss.AdapterConfig(bottleneck=4)).tss
    handle.add_task("replies", REPLIES)
    handle.train_task("replies")
    assert [group["name"] for group in handle.optimizer(score_lr=1e-2).param_groups] == ["scores"]
    handle.abandon()
    handle.add_task("topics", TOPICS)
    handle.train_task("topics")
    with pytest.raises(ValueError, match="'topics' has its own head: give its learning rate"):
        handle.optimizer(score_lr=1e-2)


@pytest.mark.parametrize("how", ["unfrozen", "added"])
def test_frozen_parameters_that_an_optimizer_gets_later_are_refused(how):
    handle = learning()
    frozen, batch = handle.frozen_fingerprint(), make_batch(NAMES)
    late = next(handle.backbone.parameters())
    trained = [parameter for group in handle.trainable_parameters().values() for parameter in group]
    everything = handle.model.parameters() if how == "unfrozen" else trained
    optimizer = torch.optim.AdamW(everything, lr=0.01, weight_decay=0.0)
    step(handle, batch, optimizer)
    late.requires_grad_(True)
    if how == "added":
        optimizer.add_param_group({"params": [late]})
    with pytest.raises(tss.StateError, match=r"AdamW would train .* tensors that are frozen"):
        step(handle, batch, optimizer)
    assert handle.frozen_fingerprint() == frozen

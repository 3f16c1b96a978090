"""The algorithm: where scores start, what holds them back, and what importance is."""

from __future__ import annotations

import math

import pytest
import torch

import tss
from tss.adapters.importance import accumulate
from tss_kernels import normalize_importance

from .conftest import NAMES, REPLIES, TOPICS, learn, make_bart, make_batch, make_batches, snapshot, step


def attach(model, **options):
    return tss.attach(model, tss.AdapterConfig(bottleneck=4), tss.TssOptions(**options)).tss


def scores(handle):
    return {name: layer.scores.detach().clone() for name, layer in handle.layers.items()}


def equal(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def set_importance(handle, value):
    shared = handle.shared_state()
    handle.load_shared_state(
        shared | {f"importance.{n}": torch.full_like(layer.scores, value) for n, layer in handle.layers.items()}
    )


def test_first_scores_are_uniform_and_later_ones_a_copy(bart):
    """With the weights of the authors' framework: normal, of standard deviation 0.02."""
    config = tss.AdapterConfig(bottleneck=4, weight_init="normal", share=None, pairs=False)
    handle = tss.attach(bart, config).tss
    for layer in handle.layers.values():
        bound = 1 / math.sqrt(layer.in_features)
        assert layer.scores.abs().max() <= bound
        assert layer.scores.std() == pytest.approx(bound / math.sqrt(3), rel=0.25)
        assert layer.weight.std() == pytest.approx(0.02, rel=0.3)
    first = scores(handle)
    learn(handle, "topics", TOPICS)
    trained = scores(handle)
    assert not equal(first, trained)
    handle.add_task("names", NAMES)
    handle.train_task("names")
    assert equal(scores(handle), trained)


def test_fresh_scores_depend_on_the_task_alone():
    drawn = {}
    for names in (["one", "two", "three"], ["one", "three"]):
        handle = attach(make_bart(), score_copy=False)
        for name in names:
            handle.add_task(name, TOPICS)
            handle.train_task(name)
            drawn.setdefault(name, []).append((scores(handle), snapshot(handle.head)))
            handle.seal_task()
    assert not equal(drawn["two"][0][0], drawn["three"][0][0])
    for (s, head), (other_scores, other_head) in (drawn["one"], drawn["three"]):
        assert equal(s, other_scores)
        assert equal(head, other_head)


def test_weights_and_first_scores_depend_on_site_and_seed_alone():
    def drawn(**settings):
        torch.manual_seed(torch.seed() % 2**31)
        handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4, **settings)).tss
        return {**{f"w.{n}": layer.weight.clone() for n, layer in handle.layers.items()}, **scores(handle)}

    every, some, other = drawn(), drawn(sites=r".*decoder\.layers\.1\.final_layer_norm"), drawn(seed=7)
    assert equal(some, every)
    assert all(not torch.equal(tensor, other[name]) for name, tensor in every.items())


@pytest.mark.parametrize("soft_mask", ["gradient", "update", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_importance_is_supsup_and_full_importance_holds_every_score(soft_mask, value):
    """I = 0: as without importance, bit for bit. I = 1: no score moves, at either site."""
    results = []
    for importance in (None, value):
        handle = attach(make_bart(), soft_mask=soft_mask)
        learn(handle, "topics", TOPICS)
        start = {k: v for k, v in handle.shared_state().items() if k.startswith("scores.")}
        handle.load_shared_state({name: tensor.clone() for name, tensor in start.items()})
        if importance is not None:
            set_importance(handle, importance)
        before = scores(handle)
        learn(handle, "names", NAMES, seal=False)
        results.append((before, scores(handle)))
    (before, free), (_, masked) = results
    assert not equal(before, free)
    held = soft_mask != "none" and value == 1.0
    assert equal(masked, before if held else free)


@pytest.mark.parametrize("soft_mask", ["gradient", "update", "none"])
def test_the_soft_mask_is_applied_exactly_once(soft_mask):
    """With I = 1/2, layer gradient and optimizer importance together scale by 1/2 once, or not at all for "none"."""
    gradients = {}
    for importance in (None, 0.5):
        handle = attach(make_bart(), soft_mask=soft_mask)
        handle.add_task("topics", TOPICS)
        if importance is not None:
            set_importance(handle, importance)
        handle.train_task("topics")
        optimizer = handle.optimizer(score_lr=1, head_lr=1)
        handle.model(**make_batch(TOPICS)).loss.backward()
        gradients[importance] = [p.grad for p in handle.trainable_parameters()["scores"]]
    in_layers = {"gradient": 0.5, "update": 1.0, "none": 1.0}[soft_mask]
    in_optimizer = {"gradient": 1.0, "update": 0.5, "none": 1.0}[soft_mask]
    assert all(torch.equal(m, p * in_layers) for m, p in zip(gradients[0.5], gradients[None], strict=True))
    for parameter in handle.trainable_parameters()["scores"]:
        mask = optimizer.importance.get(parameter)
        assert 1.0 if mask is None else (1 - mask).unique().item() == in_optimizer
        assert (mask is None) == (in_optimizer == 1.0)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    assert {group["site"] for group in optimizer.param_groups} == {"update"}


def naive_importance(model, adapters, batches, of):
    """d loss / d alpha for a factor alpha = 1 on W * g, averaged over batches, in float64 and by plain autograd."""
    alphas = {}

    def forward_of(site, adapter):
        def product(x, part):
            layer = getattr(adapter, part)
            alpha = alphas.setdefault(f"{site}.{part}", torch.ones_like(layer.weight, requires_grad=True))
            return x @ (layer.weight * (layer.scores.detach() >= 0) * alpha).T

        return lambda x: x + product(torch.relu(product(x, "down")), "up")

    for site, adapter in adapters.items():
        adapter.forward = forward_of(site, adapter)
    sums = {}
    for batch in batches:
        loss = model(**batch).loss
        for name, gradient in zip(alphas, torch.autograd.grad(loss, list(alphas.values())), strict=True):
            part = {"signed": gradient, "absolute": gradient.abs(), "squared": gradient**2}[of]
            sums[name] = sums.get(name, 0) + part / len(batches)
    return sums


def naive_normal(a, per):
    dims = (0, 1) if per == "tensor" else (1,)
    return torch.tanh((a - a.mean(dims, keepdim=True)) / (a.std(dims, keepdim=True, correction=0) + 1e-6)).abs()


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("of", ["signed", "absolute", "squared"])
def test_importance_is_what_a_naive_recomputation_gives(per, of):
    model = make_bart(dropout=0.3).double()
    scale = "relative" if of == "squared" else "paper"  # squares are far below the 1e-6
    # Large weights: with small ones the gradients of so small a model drown in the 1e-6 of the formula.
    config = tss.AdapterConfig(bottleneck=4, weight_init="signed_constant")
    handle = tss.attach(model, config, tss.TssOptions(importance_per=per, importance_of=of, importance_scale=scale)).tss
    expected = {}
    model = handle.model
    for seed, name in enumerate(("one", "two")):
        handle.add_task(name, REPLIES)
        handle.train_task(name)
        model.train()
        optimizer = handle.optimizer(score_lr=0.05, head_lr=0)
        for batch in make_batches(REPLIES, seed=seed):
            step(handle, batch, optimizer)
        batches = make_batches(REPLIES, seed=seed)
        live = scores(handle)
        handle.seal_task(batches)
        assert equal(scores(handle), live)
        model.eval()
        raw = naive_importance(handle.model, handle.adapters, batches, of)
        for adapter in handle.adapters.values():
            del adapter.forward
        for key, a in raw.items():
            new = naive_normal(a / a.square().mean().sqrt() if scale == "relative" else a, per)
            expected[key] = torch.maximum(expected[key], new) if key in expected else new
    rounding = 2.0**-24  # scores' gradients are float32; tanh((a - mean) / std) passes that on, times a few
    for key, importance in expected.items():
        found = handle.layers[key].importance
        assert found.dtype == torch.float32
        assert (found - importance).abs().max() < 64 * rounding
        assert importance.max() > 0.5


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_relative_importance_does_not_fade_as_gradients_do(bart, per):
    """A task fitted until its gradients are 1e-9 of what they were is as important as before; the paper's is not."""
    layers = attach(bart).layers
    raw = {name: torch.randn(layer.scores.shape, dtype=torch.float64) for name, layer in layers.items()}
    found = {}
    for scale in ("relative", "paper"):
        for size in (1.0, 1e-9):
            for layer in layers.values():
                layer.importance = None
            accumulate(layers, {name: a * size for name, a in raw.items()}, per, scale)
            found[scale, size] = {name: layer.importance.clone() for name, layer in layers.items()}
    for name in layers:
        torch.testing.assert_close(found["relative", 1.0][name], found["relative", 1e-9][name], rtol=0, atol=2**-23)
        torch.testing.assert_close(found["relative", 1.0][name], found["paper", 1.0][name], rtol=0, atol=3e-6)
        assert found["paper", 1e-9][name].max() < 0.01 < found["relative", 1e-9][name].mean()


def test_a_layer_without_gradients_has_no_importance(bart):
    layers = attach(bart).layers
    for scale in ("relative", "paper"):
        accumulate(
            layers, {n: torch.zeros_like(x.scores, dtype=torch.float64) for n, x in layers.items()}, "row", scale
        )
        assert all(layer.importance.max() == 0 for layer in layers.values())


def test_importance_without_data_stays_and_accumulates_as_a_maximum(bart):
    handle = attach(bart)
    learn(handle, "topics", TOPICS)
    first = {name: layer.importance.clone() for name, layer in handle.layers.items()}
    handle.add_task("names", NAMES)
    handle.train_task("names")
    handle.seal_task()
    assert all(torch.equal(layer.importance, first[name]) for name, layer in handle.layers.items())
    learn(handle, "replies", REPLIES)
    assert all((layer.importance >= first[name]).all() for name, layer in handle.layers.items())
    assert any((layer.importance > first[name]).any() for name, layer in handle.layers.items())
    assert normalize_importance(torch.zeros(2, 3)).max() == 0


def test_without_soft_mask_no_importance_is_taken(bart):
    handle = attach(bart, soft_mask="none")
    learn(handle, "topics", TOPICS)
    assert all(layer.importance is None for layer in handle.layers.values())

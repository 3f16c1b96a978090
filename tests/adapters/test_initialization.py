"""Where adapters start: how far they move the hidden state, and the identity that pairs give."""

from __future__ import annotations

import pytest
import torch

import tss
from tss.adapters.config import PlainOptions
from tss.adapters.gated_site import GatedSite
from tss.adapters.initialization import natural_share
from tss.adapters.task_store import TaskStore

from .conftest import REPLIES, TOPICS, learn, make_bart, make_batch


def make_site(width, bottleneck, **settings):
    config = tss.AdapterConfig(bottleneck=bottleneck, **{"pairs": False, **settings})
    return GatedSite(0, "site", width, config, TaskStore(), torch.float32)


def moved(site, x):
    """The change of the hidden state over its norm, over all rows together."""
    with torch.no_grad():
        return float((site.adapt(x) - x).norm() / x.norm())


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("weight_init", ["normal", "signed_constant"])
@pytest.mark.parametrize("share", [0.05, 0.35, 0.7])
@pytest.mark.parametrize(("width", "bottleneck"), [(256, 64), (512, 24)])
def test_an_adapter_moves_its_hidden_state_by_the_share_that_was_asked_for(
    width, bottleneck, share, weight_init, activation
):
    # The mean over 16 draws of the weights: one has a spread of about 1 / sqrt(bottleneck).
    x = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    settings = {"share": share, "weight_init": weight_init, "activation": activation}
    found = [moved(make_site(width, bottleneck, seed=seed, **settings), x) for seed in range(16)]
    assert sum(found) / len(found) == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize(("scale", "expected"), [((2 / 256) ** 0.5, 2**-0.5), ((2 / 1024) ** 0.5, 2**-0.5)])
def test_signed_constants_move_it_by_the_same_share_at_every_width(scale, expected):
    width = round(2 / scale**2)
    assert natural_share(width, 64, scale, (2 / 64) ** 0.5) == pytest.approx(expected, rel=1e-6)


def test_the_share_of_relu_does_not_depend_on_the_size_of_the_hidden_state():
    site, x = make_site(128, 64, share=0.35), torch.randn(32, 128)
    assert moved(site, x) == pytest.approx(moved(site, 100 * x), rel=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("weight_init", ["normal", "signed_constant"])
def test_pairs_start_as_the_identity_while_every_gate_has_a_gradient(weight_init, activation):
    settings = {"share": 0.35, "pairs": True, "weight_init": weight_init, "activation": activation}
    site, x = make_site(64, 16, **settings), torch.randn(256, 64)
    # Two sums in another order: what is left is rounding of terms as large as the share.
    assert moved(site, x) < 1e-6
    site.requires_grad_(True)
    site.adapt(x).square().sum().backward()
    assert all((layer.scores.grad != 0).float().mean() > 0.99 for layer in (site.down, site.up))


def test_pairs_do_not_change_the_task_free_model_and_later_tasks_start_from_a_copy():
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=8, share=0.35, pairs=True))
    model.eval()
    batch = make_batch(REPLIES)
    with torch.no_grad():
        before = model(**batch).logits
    learn(model.tss, "replies", REPLIES)
    trained = {name: layer.scores.detach().clone() for name, layer in model.tss.layers.items()}
    model.tss.add_task("more", REPLIES)
    model.tss.train_task("more")
    assert all(torch.equal(layer.scores, trained[name]) for name, layer in model.tss.layers.items())
    model.tss.use(None)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)


def test_fresh_scores_of_a_later_task_are_paired_too():
    config = tss.AdapterConfig(bottleneck=8, share=0.35, pairs=True)
    handle = tss.attach(make_bart(), config, tss.TssOptions(score_copy=False, soft_mask="none")).tss
    learn(handle, "topics", TOPICS)
    handle.add_task("again", TOPICS)
    handle.train_task("again")
    for adapter in handle.adapters.values():
        assert moved(adapter, torch.randn(8, adapter.width)) < 1e-6


def test_a_plain_adapter_is_not_touched():
    plain = tss.AdapterConfig(bottleneck=8, gated=False)
    first = tss.attach(make_bart(), plain).tss.layers
    second = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=8, gated=False, share=0.7, pairs=True)).tss.layers
    assert all(torch.equal(first[name].weight, second[name].weight) for name in first)


@pytest.mark.parametrize("share", [0, -0.1, float("nan"), float("inf"), True, "much"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be a number above 0.* got"):
        tss.AdapterConfig(share=share)


def test_pairs_of_an_odd_bottleneck_are_refused():
    with pytest.raises(ValueError, match="even bottleneck, got 7; use 8"):
        tss.AdapterConfig(bottleneck=7, pairs=True)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("trained", [None, "shared", "masked", "own", "lora"])
def test_first_values_do_not_depend_on_torchs_default_dtype(trained, default):
    """A program may set it for its own model; adapters and heads are drawn the same and in the same dtype."""

    def drawn(backbone):
        options = None if trained is None else PlainOptions(trained=trained)
        handle = tss.attach(backbone, tss.AdapterConfig(bottleneck=4, gated=trained is None), options).tss
        handle.add_task("topics", TOPICS)
        handle.train_task("topics")
        return handle.learning_state() | handle.shared_state()

    expected, other = drawn(make_bart()), make_bart()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = drawn(other)
    finally:
        torch.set_default_dtype(before)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name

"""HAT: masks by task, steps of claimed units blocked, a slope that rises, and room left for later tasks."""

from __future__ import annotations

import pytest
import torch

from tests.methods.conftest import KINDS, RATES, learn, logits, make_batches, start, train
from tss.adapters.checkpointing import evaluation_mode
from tss.methods.hat import masked_sites
from tss.tasks.base import without_labels


def claim_half(handle) -> list[torch.Tensor]:
    """Seal as if the task had opened every other unit fully; gives what is claimed."""
    for site in masked_sites(handle):
        with torch.no_grad():
            site.embedding.copy_(torch.tensor([6.0, -6.0, 6.0, -6.0]))
    return [torch.tensor([True, False, True, False])] * len(handle.adapters)


def test_what_a_task_claimed_is_blocked_and_the_rest_moves(tiny_bart):
    method, handle = start(tiny_bart, "hat")
    method.begin_task(handle, "drg/1", KINDS["generation"])
    train(handle, method, make_batches(1, "generation"))
    claimed = claim_half(handle)
    method.end_task(handle, "drg/1", [])
    sites = masked_sites(handle)
    before = [{name: p.detach().clone() for name, p in site.named_parameters()} for site in sites]
    old = logits(handle, "drg/1", make_batches(1, "generation")[0])
    learn(handle, method, "drg/2", make_batches(2, "generation"), "generation", epochs=3)
    for site, units, was in zip(sites, claimed, before, strict=True):
        moved = {name: p.detach() != was[name] for name, p in site.named_parameters()}
        into, out = moved["down.weight"].any(1) | moved["down.bias"], moved["up.weight"].any(0)
        assert not into[units].any()
        assert not out[units].any()
        assert not moved["up.bias"].any()
        assert out[~units].any()
    assert torch.equal(logits(handle, "drg/1", make_batches(1, "generation")[0]), old)


def test_each_task_runs_on_its_own_masks(tiny_bart):
    method, handle = start(tiny_bart, "hat")
    batch = make_batches(5)[0]
    learn(handle, method, "asc/1", make_batches(1), epochs=3)
    claim = masked_sites(handle)[0].claimed.clone()
    kept = handle.store.sealed("asc/1").weights
    assert set(kept) == {f"{site}.mask" for site in handle.adapters}
    assert torch.equal(next(iter(kept.values())), claim)
    method.begin_task(handle, "asc/2", KINDS["classification"])
    with torch.no_grad():
        for site in masked_sites(handle):
            site.embedding.fill_(-6.0)
    handle.model.eval()
    with torch.no_grad():
        hidden = handle.core.get_encoder()(**without_labels(batch)).last_hidden_state  # no task: no adapters
        closed = handle.model(**without_labels(batch)).logits
        assert not torch.equal(closed, logits(handle, "asc/1", batch))
    assert hidden.isfinite().all()
    method.end_task(handle, "asc/2", [])
    assert all(
        torch.equal(site.claimed >= kept[f"{site.site}.mask"], torch.ones(4).bool()) for site in masked_sites(handle)
    )


def test_a_closed_adapter_changes_nothing_but_by_its_bias(tiny_bart):
    method, handle = start(tiny_bart, "hat")
    batch = make_batches(1, "generation")[0]
    method.begin_task(handle, "drg/1", KINDS["generation"])
    with torch.no_grad():
        for site in masked_sites(handle):
            site.up.weight.normal_()
    handle.model.eval()
    with torch.no_grad(), handle.using(None):
        plain = handle.model(**batch).logits
    assert not torch.equal(handle.model(**batch).logits, plain)
    with torch.no_grad():
        for site in masked_sites(handle):
            site.embedding.fill_(-6.0)
    assert torch.equal(handle.model(**batch).logits, plain)


def test_the_slope_rises_over_the_steps_of_an_epoch_and_is_full_outside_training(tiny_bart):
    method, handle = start(tiny_bart, "hat", steepness=50.0)
    method.begin_task(handle, "asc/1", KINDS["classification"])
    optimizer = method.make_optimizer(handle, RATES)
    site, slopes = masked_sites(handle)[0], []
    for number, batch in enumerate(make_batches(1)):
        handle.model.train()
        method.begin_step(handle, number % 3, 3)
        slopes.append(site.slope)
        assert torch.equal(site.mask(), torch.sigmoid(site.slope * site.embedding))
        handle.loss(**batch).backward()
        optimizer.step()
        handle.model.eval()
        assert torch.equal(site.mask(), torch.sigmoid(50.0 * site.embedding))
    assert slopes == pytest.approx([0.02, 25.01, 50.0, 0.02])
    method.begin_step(handle, 0, 1)
    assert site.slope == 50.0


def test_gradients_of_embeddings_are_compensated_as_in_the_paper(tiny_bart):
    _, handle = start(tiny_bart, "hat", steepness=10.0)
    site = masked_sites(handle)[0].train()
    e, slope = torch.tensor([-1.0, -0.1, 0.2, 2.0], dtype=torch.float64), 3.0
    site.embedding = torch.nn.Parameter(e.clone())
    site.slope = slope
    site.mask().sum().backward()
    plain = slope * torch.sigmoid(slope * e) * (1 - torch.sigmoid(slope * e))
    expected = 10.0 / slope * (torch.cosh(slope * e) + 1) / (torch.cosh(e) + 1) * plain
    torch.testing.assert_close(site.embedding.grad, expected)


def test_the_regulariser_is_the_mean_of_free_units_and_closes_them(tiny_bart):
    method, handle = start(tiny_bart, "hat", sparsity=0.5)
    method.begin_task(handle, "asc/1", KINDS["classification"])
    sites = masked_sites(handle)
    handle.model.train()
    for site in sites:
        site.claimed[0] = 1.0
    masks, free = torch.cat([s.mask() for s in sites]), torch.cat([1 - s.claimed for s in sites])
    penalty = method.penalty(handle, {})
    torch.testing.assert_close(penalty, 0.5 * (masks * free).sum() / free.sum())
    penalty.backward()
    assert all(site.embedding.grad[0] == 0 for site in sites)
    assert all((site.embedding.grad[1:] > 0).all() for site in sites)
    with evaluation_mode(handle.model):
        assert method.penalty(handle, {}) <= 0.5


def test_embeddings_learn_with_the_rate_of_scores_and_stay_bounded(tiny_bart):
    method, handle = start(tiny_bart, "hat")
    method.begin_task(handle, "asc/1", KINDS["classification"])
    groups = method.make_optimizer(handle, RATES).param_groups
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("scores", 0.01),
        ("head", 0.01),
        ("embeddings", 0.05),
    ]
    with torch.no_grad():
        masked_sites(handle)[0].embedding.fill_(7.0)
    train(handle, method, make_batches(1))
    assert all(site.embedding.abs().max() <= 6.0 for site in masked_sites(handle))

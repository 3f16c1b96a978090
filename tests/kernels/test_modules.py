"""The layers behave as PyTorch users expect of a layer."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch.nn.functional import gelu, linear, relu, silu
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import tss_kernels
from tss_kernels import GatedAdapter, GatedAdapterLinear


def layer(in_features: int = 9, out_features: int = 5, **options) -> GatedAdapterLinear:
    torch.manual_seed(0)
    return GatedAdapterLinear(in_features, out_features, **options)


def dense(module: GatedAdapterLinear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, torch.where(module.gate(), module.weight, 0).to(x.dtype), module.bias.to(x.dtype))


def test_only_scores_are_trained():
    module = layer()
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["scores"]
    assert set(module.state_dict()) == {"weight", "bias", "scores"}
    assert layer(bias=False).bias is None


def test_initial_values():
    module = layer(400, 300, weight_init="normal")
    assert module.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert (module.bias == 0).all()
    assert module.scores.abs().max().item() <= 1 / 20
    assert module.scores.var().item() == pytest.approx(1 / 400 / 3, rel=0.02)
    assert module.density() == pytest.approx(0.5, abs=0.01)
    signed = layer(400, 300).weight  # the default
    torch.testing.assert_close(signed.abs(), torch.full_like(signed, math.sqrt(2 / 400)))
    assert signed.sign().mean().item() == pytest.approx(0, abs=0.01)
    adapter = GatedAdapter(400, 300)  # beside a residual the normal one
    assert adapter.down.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_the_default_learns_in_place_of_linear():
    """A toy network of three layers by which gated ones, as they come, do as well as trained weights."""

    def accuracy(make) -> float:
        torch.manual_seed(0)
        teacher = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        x = torch.randn(1000, 20)
        labels = teacher(x).argmax(-1)
        net = torch.nn.Sequential(make(20, 256), torch.nn.ReLU(), make(256, 256), torch.nn.ReLU(), make(256, 4))
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[:500]), labels[:500]).backward()
            optimizer.step()
        return (net(x[500:]).argmax(-1) == labels[500:]).float().mean().item()

    trained, gated = accuracy(torch.nn.Linear), accuracy(GatedAdapterLinear)
    assert trained > 0.6
    assert gated > trained - 0.1


def test_a_generator_decides_the_values_in_every_dtype():
    one, two = layer(), layer(dtype=torch.bfloat16)
    for module in (one, two):
        module.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.weight.bfloat16(), two.weight)
    one.reset_scores(torch.Generator().manual_seed(4))
    assert not torch.equal(one.scores, two.scores)
    assert torch.equal(one.weight.bfloat16(), two.weight)


def test_forward_gate_density_and_pack():
    module, x = layer(threshold=0.01), torch.randn(2, 3, 9)
    assert torch.equal(module.gate(), module.scores >= 0.01)
    torch.testing.assert_close(module(x), dense(module, x))
    assert module.density() == module.gate().float().mean().item()
    assert torch.equal(tss_kernels.unpack_gates(module.pack(), 9), module.gate())


def test_importance_masks_the_gradient_unless_told_not_to():
    module, x = layer(), torch.randn(4, 9)
    gradients = []
    module.importance = torch.rand(5, 9)
    for masked in (True, False):
        module.mask_gradient = masked
        module.zero_grad()
        module(x).sum().backward()
        gradients.append(module.scores.grad)
    torch.testing.assert_close(gradients[0], gradients[1] * (1 - module.importance))


def test_packed_gates_replace_the_scores():
    module, x = layer(), torch.randn(4, 9, requires_grad=True)
    live, packed = module(x), module.pack()
    module.scores.data.neg_()
    module.set_packed(packed)
    assert torch.equal(module(x), live)
    assert torch.equal(module.pack(), packed)
    module(x).sum().backward()
    assert module.scores.grad is None
    assert x.grad is not None
    assert "packed" not in module.state_dict()
    assert module.to("meta").packed.is_meta
    module.set_packed(None)
    with pytest.raises(ValueError, match=r"\(5, 2\) but have \(5, 1\)"):
        module.set_packed(packed[:, :1])


def test_from_linear_keeps_the_weight_frozen():
    source = torch.nn.Linear(9, 5)
    module = GatedAdapterLinear.from_linear(source)
    assert module.weight.data_ptr() == source.weight.data_ptr()
    assert not module.weight.requires_grad
    assert not module.bias.requires_grad
    assert source.weight.requires_grad
    assert 0 < module.density() < 1
    assert GatedAdapterLinear.from_linear(torch.nn.Linear(9, 5, bias=False)).bias is None


@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
def test_scores_and_importance_stay_float32_bit_for_bit(convert):
    module = layer()
    module.importance = torch.rand(5, 9)
    module(torch.randn(2, 9)).sum().backward()
    scores, grad, importance = module.scores.clone(), module.scores.grad.clone(), module.importance.clone()
    convert(module)
    assert module.weight.dtype == module.bias.dtype != torch.float32
    for kept, before in ((module.scores, scores), (module.scores.grad, grad), (module.importance, importance)):
        assert kept.dtype == torch.float32
        assert torch.equal(kept, before)
    x = torch.randn(2, 9, dtype=module.weight.dtype)
    module(x).sum().backward()
    assert module(x).dtype == x.dtype


def test_meta_device_and_back():
    module = layer(device="meta")
    assert module(torch.empty(3, 9, device="meta")).shape == (3, 5)
    module.half().to_empty(device="cpu")
    module.reset_parameters()
    assert module.scores.dtype == torch.float32
    assert module(torch.randn(3, 9).half()).isfinite().all()


def test_state_dict_carries_importance():
    source, target = layer(), layer()
    source.importance = torch.rand(5, 9)
    source.scores.data.normal_()
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.importance, source.importance)
    assert torch.equal(target.scores, source.scores)
    target.load_state_dict(layer().state_dict())
    assert target.importance is None


@pytest.mark.parametrize(
    ("part", "strict"),
    [([], False), (["scores"], False), (["weight", "bias"], False), (["scores"], True)],
    ids=["nothing of the layer", "its scores", "its weights", "not all of it, strictly"],
)
def test_loading_a_part_of_a_model_leaves_importance_as_it_is(part, strict):
    model = torch.nn.Sequential(GatedAdapterLinear(8, 4), torch.nn.Linear(4, 2))
    model[0].importance = expected = torch.rand(4, 8)
    state = {f"0.{name}": model.state_dict()[f"0.{name}"] for name in part} | {"1.weight": torch.zeros(2, 4)}
    if strict:
        with pytest.raises(RuntimeError, match=r"Missing key.*0\.importance"):
            model.load_state_dict(state)
    else:
        assert "0.importance" in model.load_state_dict(state, strict=False).missing_keys
    assert model[0].importance is expected


def test_loading_a_whole_layer_from_before_any_task_removes_importance():
    layer, fresh = GatedAdapterLinear(8, 4, bias=False), GatedAdapterLinear(8, 4, bias=False)
    layer.importance = torch.rand(4, 8)
    layer.load_state_dict(fresh.state_dict())
    assert layer.importance is None


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize(("sizes", "threshold"), [((1024, 64), 0.1), ((1024, 64), 0.03), ((64, 1024), 0.1)])
def test_an_adapter_none_of_whose_scores_can_train_warns(activation, sizes, threshold):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = GatedAdapter(*sizes, activation, threshold=threshold)
    adapter(torch.randn(64, sizes[0])).square().mean().backward()
    trains = adapter.down.scores.grad.any() or adapter.up.scores.grad.any()
    expected = [] if trains else ["GatedAdapter: threshold 0.1 is above all first scores of the down layer"]
    assert [str(one.message).split(",")[0] for one in caught] == expected


@pytest.mark.parametrize("how", ["pruned", "parametrized"])
def test_a_whole_state_is_recognized_wherever_the_scores_are(how):
    def made():
        layer = GatedAdapterLinear(8, 4)
        if how == "pruned":
            prune.identity(layer, "scores")
        else:
            parametrize.register_parametrization(layer, "scores", torch.nn.Identity())
        return layer

    layer = made()
    layer.importance = torch.rand(4, 8)
    layer.load_state_dict(made().state_dict())
    assert layer.importance is None
    layer.importance = expected = torch.rand(4, 8)
    state = {name: tensor for name, tensor in made().state_dict().items() if "scores" not in name}
    layer.load_state_dict(state, strict=False)
    assert layer.importance is expected


def test_deepcopy():
    module = GatedAdapter(9, 4)
    module.up.importance = torch.rand(9, 4)
    twin, x = copy.deepcopy(module), torch.randn(3, 9)
    assert torch.equal(twin(x), module(x))
    twin.down.scores.data.neg_()
    assert not torch.equal(twin.down.gate(), module.down.gate())


ACTIVATIONS = {"relu": relu, "gelu": gelu, "silu": silu, "tanh": torch.tanh}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adapter_is_its_two_maps_and_the_residual(activation, dtype):
    module = GatedAdapter(9, 4, activation)
    x = torch.randn(2, 3, 9, dtype=dtype)
    expected = x + dense(module.up, ACTIVATIONS[activation](dense(module.down, x)))
    live = module(x)
    assert live.dtype == dtype
    torch.testing.assert_close(live, expected)
    for part in (module.down, module.up):
        part.set_packed(part.pack())
        assert torch.equal(module(x), live)


def test_adapter_gradients():
    module = GatedAdapter(9, 4, threshold=0.05)
    module.down.importance = torch.rand(4, 9)
    x = torch.randn(6, 9, requires_grad=True)
    dy = torch.randn(6, 9)
    module(x).backward(dy)
    hidden = dense(module.down, x.detach())
    d_hidden = dy @ torch.where(module.up.gate(), module.up.weight, 0) * (hidden > 0)
    torch.testing.assert_close(module.up.scores.grad, dy.T @ relu(hidden) * module.up.weight)
    expected = d_hidden.T @ x.detach() * module.down.weight * (1 - module.down.importance)
    torch.testing.assert_close(module.down.scores.grad, expected)
    torch.testing.assert_close(x.grad, dy + d_hidden @ torch.where(module.down.gate(), module.down.weight, 0))


@pytest.mark.parametrize("packed", [False, True])
def test_autocast_as_torchs_linear(packed):
    module, x = layer(), torch.randn(4, 9)
    twin = torch.nn.Linear(9, 5)
    twin.weight.data, twin.bias.data = torch.where(module.gate(), module.weight, 0), module.bias.data
    module.set_packed(module.pack() if packed else None)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x.requires_grad_())
        assert torch.equal(y, twin(x))
        y.float().square().sum().backward()
        assert layer().double()(torch.randn(2, 9).double()).dtype == torch.float64
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == torch.float32
    if not packed:
        product = (2 * y.detach()).float().T @ x.detach().bfloat16().float()
        torch.testing.assert_close(module.scores.grad, product * module.weight.bfloat16().float())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    module, x = GatedAdapter(9, 4), torch.randn(3, 9, requires_grad=True)
    module(x).square().sum().backward()
    plain = [x.grad, *(p.grad for p in module.parameters() if p.requires_grad)]
    x.grad = None
    module.zero_grad()
    checkpoint(module, x, use_reentrant=reentrant).square().sum().backward()
    again = [x.grad, *(p.grad for p in module.parameters() if p.requires_grad)]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module, x = GatedAdapter(9, 4), torch.randn(3, 9)
        module(x).square().sum().backward()
        alone = [p.grad for p in module.parameters() if p.requires_grad]
        module.zero_grad(set_to_none=True)
        torch.nn.parallel.DistributedDataParallel(module)(x).square().sum().backward()
        together = [p.grad for p in module.parameters() if p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_it_learns():
    """Gates alone, on fixed random weights, fit what another choice of gates computes."""
    student, teacher, x = layer(16, 8), layer(16, 8), torch.randn(256, 16)
    teacher.scores.data.normal_(generator=torch.Generator().manual_seed(1))
    target = teacher(x).detach()
    optimizer = tss_kernels.SoftMaskedAdamW([student.scores], lr=0.02, weight_decay=0.0)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (student(x) - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: layer(weight_init="zeros"), "'signed_constant' but is 'zeros'"),
        (lambda: GatedAdapter(4, 2, "softmax"), "'tanh' but is 'softmax'"),
    ],
)
def test_errors_name_values(call, says):
    with pytest.raises(ValueError, match=says):
        call()

"""What explain takes: an operation with its arguments, or a layer with its input; anything else is told what."""

from __future__ import annotations

import pytest
import torch

import tss_kernels
from tss_kernels import GatedAdapter, GatedAdapterLinear, explain
from tss_kernels.explain import CEILINGS


@pytest.mark.parametrize("masked", [True, False])
def test_a_layer_is_explained_as_the_operation_that_it_runs(masked):
    layer, x = GatedAdapterLinear(8, 4, threshold=0.1), torch.randn(3, 8)
    layer.importance, layer.mask_gradient = torch.rand(4, 8), masked
    importance = layer.importance if masked else None
    expected = explain("gated_linear", x, layer.weight, layer.scores, layer.bias, threshold=0.1, importance=importance)
    assert explain(layer, x) == expected
    layer.set_packed(layer.pack())
    assert explain(layer, x) == explain("packed_linear", x, layer.weight, layer.packed, layer.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_explained_as_one_operation(dtype):
    adapter, x = GatedAdapter(8, 4, "gelu"), torch.randn(3, 8, dtype=dtype)
    down, up = adapter.down, adapter.up
    expected = explain(
        tss_kernels.gated_adapter, x, down.weight.to(dtype), down.scores, up.weight.to(dtype), up.scores,
        down.bias.to(dtype), up.bias.to(dtype), activation="gelu",
    )  # fmt: skip
    assert explain(adapter, x) == expected
    up.set_packed(up.pack())
    with pytest.raises(ValueError, match=r"up layer has packed gates: explain its layers"):
        explain(adapter, x)


@pytest.mark.parametrize("name", ["gated_linear", "gated_adapter", "pack_gates", "soft_masked_adamw_"])
def test_an_operation_without_its_arguments_says_which_it_needs(name):
    with pytest.raises(TypeError, match=rf"takes the arguments of the call that it explains, {name}\(.*missing a requ"):
        explain(name)


def test_what_is_neither_is_refused():
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match="explain knows the layers GatedAdapterLinear and GatedAdapter, not Linear"):
        explain(torch.nn.Linear(8, 4), x)
    for args in ((), (x, x), ("x",)):
        with pytest.raises(TypeError, match="takes a GatedAdapterLinear and its input tensor x"):
            explain(GatedAdapterLinear(8, 4), *args)
    with pytest.raises(TypeError, match="too many positional arguments"):
        explain("pack_gates", x, 0.0, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_roofline_says_that_its_ceilings_are_assumed(monkeypatch, dtype):
    ceiling = CEILINGS["NVIDIA H200"]
    monkeypatch.setitem(CEILINGS, "cpu", ceiling)
    x, weight, packed = torch.randn(8, 64, dtype=dtype), torch.randn(16, 64, dtype=dtype), torch.zeros(16, 8).byte()
    told = explain("packed_linear", x, weight, packed)
    assert told.roofline_seconds == pytest.approx(told.bytes / ceiling.bytes_per_second)
    assert told.roofline_note.startswith("memory of cpu, assumed")

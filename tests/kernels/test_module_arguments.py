"""What the layers' constructors refuse, by the name of the argument, its value and the remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tss_kernels import GatedAdapter, GatedAdapterLinear


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GatedAdapterLinear(3.5, 16), TypeError, r"in_features must be a whole number but is 3\.5, a float"),
        (lambda: GatedAdapterLinear(16, "8"), TypeError, "out_features must be a whole number but is '8', a str"),
        (lambda: GatedAdapterLinear(True, 8), TypeError, "in_features must be a whole number but is True, a bool"),
        (lambda: GatedAdapterLinear(-1, 16), ValueError, "in_features must be at least 0 but is -1"),
        (lambda: GatedAdapterLinear(16, None), TypeError, "out_features must be a whole number but is None"),
        (lambda: GatedAdapterLinear(8, 8, dtype=torch.int8), TypeError, r"dtype must be one of .*, but is torch\.int8"),
        (lambda: GatedAdapter(16, 4.0), TypeError, r"bottleneck must be a whole number but is 4\.0"),
        (lambda: GatedAdapter(-16, 4), ValueError, "hidden_size must be at least 0 but is -16"),
        (lambda: GatedAdapter(16, -4), ValueError, "bottleneck must be at least 0 but is -4"),
        (lambda: GatedAdapter(16, 4, dtype=torch.int64), TypeError, r"dtype must be one of .*torch\.int64"),
        (
            lambda: GatedAdapterLinear.from_linear(torch.nn.Conv1d(2, 2, 1)),
            TypeError,
            r"takes a torch\.nn\.Linear",
        ),
        (lambda: GatedAdapterLinear.from_linear(8), TypeError, r"takes a torch\.nn\.Linear but got a int: 8"),
    ],
)
def test_arguments_that_make_no_layer(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_whole_numbers_of_other_types_and_empty_layers_are_sizes():
    layer = GatedAdapterLinear(np.int64(6), np.int32(4))
    assert (layer.in_features, layer.out_features) == (6, 4)
    assert type(layer.in_features) is int
    assert GatedAdapterLinear(0, 4)(torch.zeros(2, 0)).shape == (2, 4)

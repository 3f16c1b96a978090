"""What a step refuses, on every backend and in the optimizer, before it writes anything."""

from __future__ import annotations

import pytest
import torch

import tss_kernels
from tss_kernels import SoftMaskedAdamW
from tss_kernels.backends.registry import why_not

HYPER = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01}
NAN, INF = float("nan"), float("inf")
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "importances")
FLOAT8 = torch.float8_e4m3fn

NUMBERS = {
    "lr": [(NAN, ValueError, "lr must be at least 0 and finite, but is nan"), (-1.0, ValueError, "lr .* is -1.0"),
           (INF, ValueError, "lr .* is inf"), (torch.tensor(-INF), ValueError, "lr .* is -inf"),
           (torch.ones(2), ValueError, r"lr must be one number but is a tensor of shape \(2,\)"),
           ("fast", TypeError, "lr must be a number but is 'fast', a str"), (None, TypeError, "lr must be a number"),
           (True, TypeError, "lr must be a number but is True, a bool"), (1j, TypeError, "complex")],
    "eps": [(-1e-8, ValueError, "eps must be at least 0 and finite, but is -1e-08"), (NAN, ValueError, "eps .* nan"),
            ("small", TypeError, "eps must be a number but is 'small'")],
    "weight_decay": [(-0.1, ValueError, "weight_decay must be at least 0"), (INF, ValueError, "weight_decay .* inf")],
    "beta1": [(1.0, ValueError, r"beta1 must be in \[0, 1\), but is 1.0"), (NAN, ValueError, "beta1 .* nan")],
    "beta2": [(-0.1, ValueError, r"beta2 must be in \[0, 1\), but is -0.1"), (1, ValueError, "beta2 .* is 1")],
    "site": [("both", ValueError, "site must be one of 'update', 'gradient' but is 'both'")],
}  # fmt: skip
ONE_STEP = {
    "step": [(0, ValueError, "step must be at least 1, since steps count from 1, and finite, but is 0"),
             (NAN, ValueError, "step .* nan"), (INF, ValueError, "step .* inf"),
             ("first", TypeError, "step must be a number"), (None, TypeError, "step must be a number but is None")],
}  # fmt: skip


def cases(table):
    return [pytest.param(name, *case, id=f"{name}={case[0]}") for name, several in table.items() for case in several]


def good(device) -> dict[str, list]:
    """Two parameters' tensors with nothing wrong."""
    generator = torch.Generator().manual_seed(0)
    return {name: [torch.rand(4, 8, generator=generator).to(device) for _ in range(2)] for name in LISTS}


def assert_refused(lists: dict[str, list], kind: type[Exception], says: str, **numbers) -> None:
    tensors = [one for several in lists.values() for one in several if isinstance(one, torch.Tensor)]
    before = [(tensor.clone(), tensor._version) for tensor in tensors]
    with pytest.raises(kind, match=says):
        tss_kernels.soft_masked_adamw_(**lists, **{**HYPER, **numbers})
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert tensor._version == version
        assert tensor.layout != torch.strided or tensor.is_meta or torch.equal(tensor, values)


@pytest.mark.parametrize(("name", "value", "kind", "says"), [*cases(NUMBERS), *cases(ONE_STEP)])
def test_numbers_of_a_step(backend, device, name, value, kind, says):
    backend.runs("soft_masked_adamw_", torch.float32)
    with tss_kernels.use_backend(backend):
        assert_refused(good(device), kind, says, **{name: value})


@pytest.mark.parametrize("number", [0.1, 1, torch.tensor(0.1), torch.tensor([1])], ids=str)
def test_numbers_of_other_types_are_taken(number):
    lists = good(torch.device("cpu"))
    tss_kernels.soft_masked_adamw_(**lists, **HYPER | {"lr": number, "eps": number, "step": 2.0})
    SoftMaskedAdamW([torch.nn.Parameter(torch.ones(2))], lr=number)


def swapped(change):
    """The good lists with the first entries changed."""

    def make(device) -> dict[str, list]:
        lists = good(device)
        return lists | change(lists)

    return make


M = torch.arange(32.0).view(4, 8)
WRONG = {
    "a list too short": (lambda t: {"grads": t["grads"][:1]}, ValueError, "grads .* one entry per parameter, 2, .* 1"),
    "no importances": (lambda t: {"importances": []}, ValueError, "importances .* one entry per parameter, 2, .* 0"),
    "a shape": (lambda t: {"exp_avgs": [M[:3], M]}, ValueError, r"exp_avgs\[0\] .* shape \(4, 8\) but has \(3, 8\)"),
    "an importance's shape": (
        lambda t: {"importances": [None, M[0]]}, ValueError, r"importances\[1\] .* shape \(4, 8\) but has \(8,\)"
    ),
    "a device": (
        lambda t: {"grads": [t["grads"][0], M.to("meta")]}, ValueError, r"grads\[1\] .* device .* is on meta.*\.to\(\)"
    ),
    "no tensor": (lambda t: {"grads": [[1.0], M]}, TypeError, r"grads\[0\] must be a tensor but is \[1.0\], a list"),
    "None": (lambda t: {"exp_avg_sqs": [None, M]}, TypeError, r"exp_avg_sqs\[0\] must be a tensor but is None"),
    "integers": (lambda t: {"grads": [M.long(), M]}, TypeError, r"grads\[0\] .* floating dtype.* torch.int64"),
    "8 bits": (lambda t: {"importances": [M.to(FLOAT8), None]}, TypeError, r"importances\[0\] .*float8_e4m3"),
    "parameters of 8 bits": (lambda t: {"params": [M.to(FLOAT8), M]}, TypeError, r"params\[0\] .*float8_e4m3"),
    "complex": (lambda t: {"grads": [M.cfloat(), M]}, TypeError, r"grads\[0\] .* torch.complex64"),
    "a sparse gradient": (lambda t: {"grads": [M, M.to_sparse()]}, TypeError, r"grads\[1\] .*sparse_coo.*to_dense"),
    "sparse rows": (lambda t: {"grads": [M, M.to_sparse_csr()]}, TypeError, r"grads\[1\] .*sparse_csr"),
    "a sparse importance": (lambda t: {"importances": [M.to_sparse(), None]}, TypeError, r"importances\[0\] .*sparse"),
    "an expanded parameter": (
        lambda t: {"params": [M[:1].expand(4, 8), t["params"][1]]}, ValueError, r"params\[0\] .* at one address.*clone"
    ),
    "an expanded average": (
        lambda t: {"exp_avgs": [M[:, :1].expand(4, 8), t["params"][1]]}, ValueError, r"exp_avgs\[0\] .* at one address"
    ),
    "one parameter twice": (
        lambda t: {"params": [M, M]}, ValueError, r"params\[0\] .* shares memory with params\[1\]"
    ),
    "averages that are one": (
        lambda t: {"exp_avg_sqs": t["exp_avgs"]}, ValueError, r"exp_avgs\[(.)\] .* memory with exp_avg_sqs\[\1\]"
    ),
    "parameters that meet": (
        lambda t: {"params": list(torch.rand(7, 8).unfold(0, 4, 3).transpose(1, 2))}, ValueError,
        r"params\[0\] .* shares memory with params\[1\]",
    ),
    "another's gradient": (
        lambda t: {"grads": [M, t["params"][0]]}, ValueError, r"params\[0\] .* shares memory with grads\[1\]"
    ),
    "an importance beside": (
        lambda t: (lambda m: {"params": [m[:4], M], "importances": [None, m[1:]]})(torch.rand(5, 8)), ValueError,
        r"params\[0\] .* shares memory with importances\[1\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_tensors_of_a_step(backend, wrong):
    backend.runs("soft_masked_adamw_", torch.float32)
    change, kind, says = WRONG[wrong]
    lists = good(torch.device("cpu"))
    if not backend_takes_cpu(backend):
        pytest.skip(f"{backend} does not run on the CPU here")
    with tss_kernels.use_backend(backend):
        assert_refused(lists | change(lists), kind, says)


def backend_takes_cpu(backend: str) -> bool:
    return why_not(backend, "soft_masked_adamw_", torch.device("cpu"), torch.float32) is None


def test_tensors_that_are_only_read_may_share_memory():
    lists = good(torch.device("cpu"))
    one = torch.rand(4, 8)
    lists |= {"grads": [one, one[:1].expand(4, 8)], "importances": [one, one]}
    tss_kernels.soft_masked_adamw_(**lists, **HYPER)


def test_a_rate_in_a_tensor_of_a_step_on_the_device():
    for rate, says in ((torch.tensor(NAN), "lr .* nan"), (-1.0, "lr .* -1.0"), (torch.tensor(-1.0), "lr .* -1.0")):
        assert_refused(good(torch.device("cpu")), ValueError, says, step=torch.tensor(1.0), lr=rate)


# The optimizer


def stepped(**options) -> SoftMaskedAdamW:
    """Two groups after one step, with gradients for another."""
    params = [torch.nn.Parameter(torch.rand(4, 8)) for _ in range(3)]
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.2}]
    optimizer = SoftMaskedAdamW(groups, importance={params[0]: torch.rand(4, 8)}, **options)
    for param in params:
        param.grad = torch.rand(4, 8)
    optimizer.step()
    return optimizer


def snapshot(optimizer: SoftMaskedAdamW) -> list:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    own = [tensor for param in params for tensor in optimizer.state[param].values()]
    return [tensor.detach().clone() for tensor in (*params, *own)]


def assert_step_refused(optimizer: SoftMaskedAdamW, kind: type[Exception], says: str) -> None:
    before = snapshot(optimizer)
    with pytest.raises(kind, match=says):
        optimizer.step()
    torch.testing.assert_close(snapshot(optimizer), before, rtol=0, atol=0, equal_nan=True)


OPTIONS = {name: several for name, several in NUMBERS.items() if not name.startswith("beta")}


@pytest.mark.parametrize(("name", "value", "kind", "says"), cases(OPTIONS))
@pytest.mark.parametrize("capturable", [False, True])
def test_options_of_the_optimizer(name, value, kind, says, capturable):
    """When it is made, when a group joins, and when the option is set later: then no group takes a step."""
    parameter = torch.nn.Parameter(torch.rand(2))
    with pytest.raises(kind, match=says):
        SoftMaskedAdamW([parameter], **{name: value})
    with pytest.raises(kind, match=says):
        SoftMaskedAdamW([{"params": [parameter], name: value}])
    optimizer = stepped(capturable=capturable)
    optimizer.param_groups[1][name] = value
    if capturable and name == "lr" and isinstance(value, torch.Tensor) and value.numel() == 2:
        kind, says = ValueError, "lr must be one number"
    assert_step_refused(optimizer, kind, says)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (NAN, 0.9), (0.9,), 0.9, ("a", 0.9)], ids=str)
def test_betas_of_the_optimizer(betas):
    with pytest.raises((ValueError, TypeError), match="beta"):
        SoftMaskedAdamW([torch.nn.Parameter(torch.rand(2))], betas=betas)
    optimizer = stepped()
    optimizer.param_groups[1]["betas"] = betas
    assert_step_refused(optimizer, (ValueError, TypeError), "beta")


def sparse_gradient(optimizer):
    optimizer.param_groups[1]["params"][0].grad = torch.rand(4, 8).to_sparse()


def expanded_average(optimizer):
    state = optimizer.state[optimizer.param_groups[1]["params"][0]]
    state["exp_avg"] = torch.zeros(1, 8).expand(4, 8)


def average_of_another(optimizer):
    first, second = (optimizer.state[param] for param in optimizer.param_groups[0]["params"])
    second["exp_avg"] = first["exp_avg"]


def no_number(optimizer):
    optimizer.state[optimizer.param_groups[1]["params"][0]]["step"].fill_(NAN)


def backend_without_float64(optimizer):
    parameter = torch.nn.Parameter(torch.rand(3).double())
    parameter.grad = torch.rand(3).double()
    optimizer.add_param_group({"params": [parameter]})


BROKEN = {
    "a sparse gradient": (sparse_gradient, TypeError, r"grads\[0\] .*sparse_coo.*to_dense"),
    "an expanded average": (expanded_average, ValueError, r"exp_avgs\[0\] .* at one address"),
    "an average of another": (average_of_another, ValueError, r"exp_avgs\[0\] .* shares memory with exp_avgs\[1\]"),
    "no number of steps": (no_number, ValueError, "step .* nan"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("maximize", [False, True])
def test_tensors_of_the_optimizer(broken, maximize):
    change, kind, says = BROKEN[broken]
    optimizer = stepped(maximize=maximize)
    change(optimizer)
    assert_step_refused(optimizer, kind, says)


def test_a_first_step_that_is_refused_leaves_no_state():
    params = [torch.nn.Parameter(torch.rand(4, 8)) for _ in range(2)]
    optimizer = SoftMaskedAdamW(params)
    params[0].grad, params[1].grad = torch.rand(4, 8), torch.rand(4, 8).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("capturable", [False, True])
def test_a_backend_that_cannot_run_a_later_group(capturable, cuda_kernels):
    optimizer = stepped(capturable=capturable)
    backend_without_float64(optimizer)
    with tss_kernels.use_backend("cuda"):
        assert_step_refused(optimizer, tss_kernels.BackendUnavailable, "float64")


P = torch.nn.Parameter(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: SoftMaskedAdamW([P], amsgrad=True), ValueError, "no amsgrad"),
        (lambda: SoftMaskedAdamW([P], importance={P: torch.zeros(3)}), ValueError, r"\(2, 3\) but has \(3,\)"),
        (
            lambda: SoftMaskedAdamW([P], importance={P: 0.5}),
            TypeError,
            "importance must be a tensor but is 0.5, a float",
        ),
        (lambda: SoftMaskedAdamW([P], importance={P: torch.zeros(2, 3).to_sparse()}), TypeError, "sparse"),
        (lambda: SoftMaskedAdamW([P], importance={P: torch.zeros(2, 3).to(FLOAT8)}), TypeError, "float8"),
        (lambda: SoftMaskedAdamW([P], importance={torch.zeros(2): None}), ValueError, "not a parameter"),
    ],
)
def test_what_the_optimizer_is_given(call, kind, says):
    with pytest.raises(kind, match=says):
        call()

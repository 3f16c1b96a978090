"""One whole training step, against the same step without adapters, with eager ones, and with another method."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.cases import rivals
from bench.cases.models import LABELS, Apply, Setting, adapters_replaced, backbone, batch_for, learning
from bench.cases.sizes import Sizes
from bench.core.case import PEERS, Case, Inputs, Outputs, Variant, by_backend
from tss_kernels import use_backend

CHECKED = {"batch": 2, "source": 16}  # sizes of the check in float64
LORA_RANK = 64
COMPILED = "eager, compiled"
REMOVED = "adapters removed"
OURS = "tss"


def eager(adapter: Any, masked: bool = True) -> Apply:
    """Return an adapter in plain PyTorch; masked: with the soft mask on the gradients of its scores."""
    tensors: dict[str, Any] = {}
    for name, layer in (("down", adapter.down), ("up", adapter.up)):
        tensors |= {f"{name}_{part}": getattr(layer, part) for part in ("weight", "scores", "bias")}
        tensors[f"{name}_keep"] = 1 - layer.importance if masked else None
    return lambda hidden: rivals.adapter(rivals.eager_linear, hidden, tensors)


def _removed(adapter: Any) -> Apply:
    # Without trained adapters autograd would stop early: the backward pass must still reach the first one.
    return lambda hidden: hidden if hidden.requires_grad else hidden.detach().requires_grad_()


def instead_of(model: Any, make: Callable[[Any], Apply] | None) -> dict[str, Apply] | None:
    """Return the argument of `adapters_replaced`: site -> make(adapter); None replaces nothing."""
    return None if make is None else {site: make(adapter) for site, adapter in model.tss.adapters.items()}


Results = tuple[torch.Tensor, torch.Tensor]


def _results(model: Any, setting: Setting, make: Callable[[Any], Apply] | None, compiled: bool = False) -> Results:
    """Return the loss, and the gradients of all scores in one vector, without dropout."""
    scores: list[nn.Parameter] = model.tss.trainable_parameters()["scores"]
    checked = replace(setting, **CHECKED, target=min(setting.target, 8))
    run = _compiled(model, setting) if compiled else model
    model.eval()
    with adapters_replaced(model, instead_of(model, make)):
        loss = run(**batch_for(checked, model.config.vocab_size)).loss
        grads = torch.autograd.grad(loss, scores)
    model.train()
    return loss.detach().double(), torch.cat([grad.flatten().double() for grad in grads])


class Judge:
    """Check of the variants of one setting's step against float64.

    In float64, TSS, as the specification, and the eager adapters must agree. In the model's dtype a variant's error may
    be at most twice that of the eager step.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @cached_property
    def _references(self) -> tuple[Results, Results, Results]:
        """Results of eager in the model's dtype, and of TSS and eager in float64."""
        model = learning(self.setting)
        own = _results(model, self.setting, eager)
        model.double()
        exact, apart = _results(model, self.setting, None), _results(model, self.setting, eager)
        model.to(self.setting.dtype)
        return own, exact, apart

    def failure_of(self, variant: Variant) -> str | None:
        """Return what is wrong with the loss or the score gradients, or None."""
        model, make = learning(self.setting), None if variant.role == "ours" else eager
        with use_backend(variant.backend):
            found = _results(model, self.setting, make, variant.name == COMPILED)
        own, exact, apart = self._references
        rounding = torch.finfo(self.setting.dtype).eps / 2
        failures = [
            norm_failure(name, rounding, *(results[i] for results in (found, own, exact, apart)))
            for i, name in enumerate(("loss", "score gradients"))
        ]
        return next((failure for failure in failures if failure is not None), None)


def norm_failure(name: str, rounding: float, *vectors: torch.Tensor) -> str | None:
    """Return what is wrong with a result by the norm of its error, or None.

    vectors: the result and PyTorch's own in the model's dtype; TSS's and PyTorch's own in float64, which must agree.
    """
    found, own, exact, other = vectors
    rounded, apart = rounding * exact.norm().item(), (other - exact).norm().item()
    if not apart <= rounded:
        return f"{name}: eager adapters are {apart:.3g} away from the reference in float64, more than {rounded:.3g}"
    bound, error = 2 * max((own - exact).norm().item(), rounded), (found - exact).norm().item()
    return None if error <= bound else f"{name}: the error's norm {error:.3g} is over the bound {bound:.3g}"


def _optimizer(model: Any, name: str) -> torch.optim.Optimizer | None:
    """Return TSS's own, or PyTorch's fused AdamW on head and scores, or on the head only; None without parameters."""
    groups = model.tss.trainable_parameters()
    if name == OURS:
        return model.tss.optimizer(score_lr=1e-4, head_lr=1e-4)
    parameters = groups["head"] if name == REMOVED else groups["head"] + groups["scores"]
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True) if parameters else None


def one_step(
    model: Callable[..., Any], optimizer: torch.optim.Optimizer | None, batch: Mapping[str, torch.Tensor]
) -> None:
    """Compute gradients, starting from none, and take the optimizer's step if there is one."""
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    if optimizer is not None:
        optimizer.step()


def _compiled(model: Any, setting: Setting) -> Callable[..., Any]:
    """Compile the model; for a tiny one, graphs are captured but no code is generated."""
    return torch.compile(model, backend="eager" if setting.backbone == "tiny" else "inductor")


def _bind(setting: Setting, name: str, make: Callable[[Any], Apply] | None, t: Inputs) -> Callable[[], Outputs]:
    model, optimizer, instead = t["model"], _optimizer(t["model"], name), instead_of(t["model"], make)
    run = _compiled(model, setting) if name == COMPILED else model

    def step() -> Outputs:
        with adapters_replaced(model, instead):
            one_step(run, optimizer, t["batch"])
        return {}

    return step


class Labelled(nn.Module):
    """A BART backbone with a classification head that reads the same as TSS's.

    It reads the source, and in the decoder the source shifted right; the head gets the last token of each row.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.body, self.start = model.base_model, model.config.decoder_start_token_id
        like = next(model.parameters())
        self.head = nn.Linear(model.config.d_model, LABELS, device=like.device, dtype=like.dtype)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
        """Return an object with the loss, as models of transformers do."""
        shifted = torch.cat([torch.full_like(input_ids[:, :1], self.start), input_ids[:, :-1]], 1)
        output = self.body(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=shifted, use_cache=False
        )
        return SimpleNamespace(loss=cross_entropy(self.head(output.last_hidden_state[:, -1]), labels))


def _bind_lora(setting: Setting, t: Inputs) -> Callable[[], Outputs]:
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]  -- an optional rival

    config = LoraConfig(r=LORA_RANK, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    whole: Any = get_peft_model(backbone(setting), config)
    model = (whole if setting.target else Labelled(whole.get_base_model())).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> Outputs:
        one_step(model, optimizer, t["batch"])
        return {}

    return step


def _variants(setting: Setting) -> tuple[Variant, ...]:
    bind = partial(partial, _bind, setting)
    ours = Variant(OURS, "ours", bind(OURS, None))
    # On a CPU, the other backends are measured only per operation.
    peers = PEERS["cuda"] if setting.device.type == "cuda" else ()
    peft = None if importlib.util.find_spec("peft") else "the package peft is not installed: pip install peft"
    # On a CPU, compiling a whole model takes minutes: only one setting is compiled.
    chosen = setting.backbone != "BART-Large" and setting.dtype == torch.float32 and setting.target > 0
    costly = setting.device.type == "cpu" and not chosen
    return (
        ours,
        *(by_backend(peer, ours) for peer in peers),
        Variant(REMOVED, "floor", bind(REMOVED, _removed), differs="no adapters"),
        Variant("eager", "rival", bind("eager", eager)),
        Variant(
            COMPILED, "rival", bind(COMPILED, eager),
            missing="minutes of compiling on a CPU, for each setting" if costly else None,
        ),
        Variant(
            "PEFT LoRA", "floor", partial(_bind_lora, setting), missing=peft,
            differs=f"another function: rank-{LORA_RANK} matrices beside q_proj and v_proj; the same tokens",
        ),
    )  # fmt: skip


def _draw(setting: Setting, seed: int) -> Inputs:
    model = learning(setting)
    return {"model": model, "batch": batch_for(setting, model.config.vocab_size)}


def case(setting: Setting) -> Case:
    """Return the case of a step of one model; all variants share it, so its weights change from call to call."""
    return Case(
        f"training step, {setting.backbone}", setting.shape, setting.dtype, partial(_draw, setting), None,
        _variants(setting), check=Judge(setting).failure_of, sets=1, cold=False,
        checked="float64: loss and all score gradients, error at most twice that of the eager step",
    )  # fmt: skip


def settings(sizes: Sizes) -> list[Setting]:
    """Return the measured steps: small ones of the embedded backbone, and those of BART-Large's shape."""
    device, bf16 = sizes.device, torch.bfloat16
    if sizes.tiny:
        return [Setting("tiny", bf16, device, 2, 8), Setting("tiny", torch.float32, device, 2, 8, 4)]
    if device.type == "cuda":
        return [
            Setting("BART-Large", bf16, device, 32, 128), Setting("BART-Large", bf16, device, 16, 128, 32),
            Setting("embedded", bf16, device, 16, 64, 24),
        ]  # fmt: skip
    return [
        Setting("embedded", torch.float32, device, 16, 64, 24), Setting("embedded", torch.float32, device, 16, 64),
        Setting("embedded", bf16, device, 16, 64, 24), Setting("BART-Large", torch.float32, device, 4, 64),
    ]  # fmt: skip


def cases(sizes: Sizes) -> Iterator[Case]:
    """Return one case per setting."""
    return map(case, settings(sizes))

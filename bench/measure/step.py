"""One training step of TSS on BART-Large's shape, against the same step without adapters and with eager ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from bench.measure import rivals
from bench.measure.runner import Budget, Record
from bench.measure.timing import Timer
from tss_kernels.backends import why_not
from tss_kernels.dispatch import use_backend

BATCH, LENGTH, LABELS = 32, 128, 3
CHECKED = (2, 16)  # batch and length of the check in float64
Apply = Callable[[torch.Tensor], torch.Tensor]


def _model(device: torch.device, tiny: bool) -> Any:
    """BART-Large's shape with random weights in bfloat16, adapters of TSS on every layer, one task being learned."""
    from transformers import BartConfig, BartForConditionalGeneration

    import tss

    config = BartConfig()  # its defaults are BART-Large's
    if tiny:
        config = BartConfig(
            vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model: Any = BartForConditionalGeneration(config)
    model.to(torch.bfloat16)
    tss.attach(model, tss.AdapterConfig(bottleneck=4 if tiny else 64))
    model.tss.add_task("measured", tss.Classification(labels=tuple(str(i) for i in range(LABELS))))
    model.tss.train_task("measured")
    for layer in model.tss.layers.values():  # as from the second task on
        layer.importance = torch.rand_like(layer.scores.detach())
    return model.to(device)


def _batch(model: Any, rows: int, length: int) -> dict[str, torch.Tensor]:
    device, words = model.tss.device, model.config.vocab_size
    generator = torch.Generator(device).manual_seed(1)
    return {
        "input_ids": torch.randint(4, words, (rows, length), generator=generator, device=device),
        "attention_mask": torch.ones(rows, length, dtype=torch.long, device=device),
        "labels": torch.randint(LABELS, (rows,), generator=generator, device=device),
    }


def _eager(adapter: Any) -> Apply:
    tensors = {
        f"{name}_{part}": getattr(layer, part)
        for name, layer in (("down", adapter.down), ("up", adapter.up))
        for part in ("weight", "scores", "bias")
    } | {f"{name}_keep": 1 - getattr(adapter, name).importance for name in ("down", "up")}
    return lambda hidden: rivals.adapter(rivals.eager_linear, hidden, tensors)


def _removed(adapter: Any) -> Apply:
    # Without trained adapters autograd would stop early: the backward pass still has to come down to the first one.
    return lambda hidden: hidden if hidden.requires_grad else hidden.detach().requires_grad_()


VARIANTS: dict[str, tuple[str, Callable[[Any], Apply] | None]] = {
    "tss": ("ours", None),
    "adapters removed": ("floor", _removed),
    "eager": ("rival", _eager),
    "tss, cuda": ("ours", None),
    "tss, triton": ("ours", None),
}
BACKENDS = {"tss": None, "tss, cuda": "cuda", "tss, triton": "triton"}  # of ours; None: as dispatch chooses
# What a step runs, and in which dtype: the scores are float32 parameters.
RUN = {
    "gated_adapter": torch.bfloat16, "gated_linear": torch.bfloat16, "pack_gates": torch.float32,
    "soft_masked_adamw_": torch.float32,
}  # fmt: skip


def _obstacle(name: str, device: torch.device) -> str | None:
    """Why a variant's backend cannot run the whole step, or None."""
    backend = BACKENDS.get(name)
    if backend is None:
        return None
    reasons = [why_not(backend, op, device, dtype) for op, dtype in RUN.items()]
    return next((reason.reason for reason in reasons if reason is not None), None)


def _by(name: str) -> Any:
    """A variant's context: everything by its backend, where it has one of its own."""
    return nullcontext() if BACKENDS.get(name) is None else use_backend(BACKENDS[name])


@contextmanager
def _replaced(model: Any, make: Callable[[Any], Apply] | None) -> Iterator[None]:
    """Every adapter computes what `make` gives for it; None: itself."""
    adapters = [bank.adapter for bank in model.tss.banks.values()]
    for adapter in adapters:
        if make is not None:
            adapter.forward = make(adapter)
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.__dict__.pop("forward", None)


def _optimizer(model: Any, name: str) -> torch.optim.Optimizer:
    """TSS's own; for the others PyTorch's fused one, of all scores or of the head alone."""
    groups = model.tss.trainable_parameters()
    if name in BACKENDS:
        return model.tss.optimizer(score_lr=1e-4, head_lr=1e-4)
    parameters = groups["head"] if name == "adapters removed" else groups["head"] + groups["scores"]
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)


def _results(model: Any, make: Callable[[Any], Apply] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradients of all scores in one vector, without dropout."""
    scores: list[nn.Parameter] = model.tss.trainable_parameters()["scores"]
    model.eval()
    with _replaced(model, make):
        loss = model(**_batch(model, *CHECKED)).loss
        grads = torch.autograd.grad(loss, scores)
    model.train()
    return loss.detach().double(), torch.cat([grad.flatten().double() for grad in grads])


def _difference(found: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """The norm of the difference, and that of rounding the reference to bfloat16."""
    return (found - reference).norm().item(), torch.finfo(torch.bfloat16).eps / 2 * reference.norm().item()


def step_failures(model: Any) -> dict[str, str | None]:
    """What is wrong with the loss or the score gradients of each of ours that can run here, or None.

    In float64, which the specification computes, TSS and the eager adapters must agree. In bfloat16 the error of TSS
    may be at most twice that of the eager step.
    """
    actual = {}
    for name in BACKENDS:
        if _obstacle(name, model.tss.device) is None:
            with _by(name):
                actual[name] = _results(model, None)
    own = _results(model, _eager)
    model.double()
    exact, eager = _results(model, None), _results(model, _eager)
    model.to(torch.bfloat16)
    return {name: _failure(found, own, exact, eager) for name, found in actual.items()}


def _failure(*results: tuple[torch.Tensor, torch.Tensor]) -> str | None:
    """results: ours and eager in bfloat16, ours and eager in float64."""
    for name, found, pytorch, reference, other in zip(("loss", "score gradients"), *results, strict=True):
        apart, rounding = _difference(other, reference)
        if not apart <= rounding:
            return f"{name}: the eager step is {apart:.3g} away from the reference in float64, more than {rounding:.3g}"
        bound, (error, _) = 2 * max(_difference(pytorch, reference)[0], rounding), _difference(found, reference)
        if not error <= bound:
            return f"{name}: the error's norm {error:.3g} is over the bound {bound:.3g}"
    return None


def _bind(model: Any, name: str, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    optimizer = _optimizer(model, name)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        optimizer.step()

    return step


def measure_step(timer: Timer, budget: Budget, tiny: bool, keep: Callable[[list[Record]], None]) -> list[Record]:
    """The records of the step: one case with its variants. Raises ImportError where transformers is missing."""
    model = _model(timer.device, tiny)
    rows, length = (2, 8) if tiny else (BATCH, LENGTH)
    variants: Record = {}
    record: Record = {
        "operation": "training step", "shape": {"batch": rows, "length": length}, "dtype": "bfloat16",
        "variants": variants,
    }  # fmt: skip
    failures = step_failures(model)
    batch = _batch(model, rows, length)
    for name, (role, make) in VARIANTS.items():
        obstacle = _obstacle(name, timer.device)
        if obstacle is not None:
            variants[name] = {"role": role, "skipped": obstacle}
            keep([record])
            continue
        failure = failures.get(name)
        if role == "rival" and all(failures.values()):
            failure = failures["tss"]
        if failure is not None:
            variants[name] = {"role": role, "failed": failure}
            keep([record])
            continue
        if budget.over():
            variants[name] = {"role": role, "skipped": "the time was up"}
            keep([record])
            continue
        with _by(name), _replaced(model, make):
            step = _bind(model, name, batch)
            timing = timer.measure([step], budget.per_variant, cold=False)
            variants[name] = {
                "role": role, "peak_bytes": timer.peak_bytes(step),
                **{f"{part}_us": round(getattr(timing, part), 1) for part in ("median", "low", "high", "host")},
                "repeats": timing.repeats, "tokens_per_second": round(rows * length / (timing.median / 1e6)),
            }  # fmt: skip
        for parameter in model.parameters():
            parameter.grad = None
        keep([record])
    return [record]

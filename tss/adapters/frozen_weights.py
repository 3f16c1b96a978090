"""Weights that sealed tasks share, the backbone's and the adapters' frozen ones, and checks that they are unchanged."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

import torch
from torch import nn

from tss.adapters.fingerprints import Checksums, Fingerprints, backbone_tensors, differing
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.storage import Tensors, digest, load_exactly
from tss.errors import ForgettingError, StateError
from tss.io import sha256

# Entries of a configuration that change no output in evaluation mode, or that users set for their own purposes.
VOLATILE = {
    "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "tokenizer_class",
    "attn_implementation", "use_cache", "return_dict",
    "output_attentions", "output_hidden_states", "gradient_checkpointing", "id2label", "label2id", "num_labels",
    "problem_type", "finetuning_task", "task_specific_params", "initializer_range", "pad_token_id", "bos_token_id",
    "eos_token_id",
}  # fmt: skip


class FrozenWeights:
    """Frozen values of a model: parameters and persistent buffers of its backbone, and tensors of its adapters.

    Values are compared in the widest dtype that both sides have, so that casting the whole model is not a change.

    Args:
        core: the transformers model.
        adapters: site -> adapter.
    """

    def __init__(self, core: Any, adapters: Mapping[str, SiteAdapter]) -> None:
        self.core, self.adapters = core, dict(adapters)
        self._of_backbone, self._of_adapters = Fingerprints(), Fingerprints()
        self._remembered: tuple[Checksums, Checksums] | None = None
        self._remembered_peft: dict[str, str] = {}

    def tensors(self) -> Tensors:
        """Return the adapters' tensors that never change."""
        return {name: tensor for adapter in self.adapters.values() for name, tensor in adapter.frozen().items()}

    def backbone(self) -> dict[str, torch.Tensor]:
        """Return the backbone's untrained tensors; those that PEFT moved into a layer of its own keep their name."""
        trained = {name for adapter in self.adapters.values() for name in adapter.trained_below()}
        found = {name: tensor for name, tensor in backbone_tensors(self.core).items() if name not in trained}
        return {name.replace(".base_layer.", "."): tensor for name, tensor in found.items()}

    def checksums(self, *, fresh: bool = False) -> Checksums:
        """Return the backbone's checksums; `fresh` recomputes all, because writes through `.data` leave no trace."""
        return self._of_backbone.of(self.backbone(), fresh=fresh)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all frozen values, read anew."""
        own = [f"{name} {sums[next(iter(sums))]}" for name, sums in self.checksums(fresh=True).items()]
        return sha256("\n".join([*own, digest(self.tensors())]))

    def remember(self, *, fresh: bool) -> None:
        """Record the current values for `verify` to compare with; called when the model gets its first sealed task."""
        self._remembered = self.checksums(fresh=fresh), self._of_adapters.of(self.tensors(), fresh=fresh)
        self._remembered_peft = self.peft()

    def verify(self, *, fresh: bool) -> None:
        """Raise ForgettingError, naming what changed, if values are not what they were when the first task was sealed.

        Tensors added since, such as PEFT's, do not count as changed; a tensor that was removed is named.
        """
        if self._remembered is None:
            return
        parts = (("backbone", self.backbone(), self._of_backbone), ("adapters", self.tensors(), self._of_adapters))
        for (owner, now, prints), known in zip(parts, self._remembered, strict=True):
            gone = next((f"{name} is gone" for name in known if name not in now), None)
            name = differing(known, prints.of(now, fresh=fresh))
            if gone or name:
                raise ForgettingError(
                    f"frozen weights of the {owner} changed since the first task was sealed: "
                    f"{gone or f'{name} was written to'}. Sealed tasks depend on it and their outputs would change: "
                    "restore its values, or load the tasks on the weights that they were trained on"
                )
        now = self.peft()
        if other := next((name for name, then in self._remembered_peft.items() if now.get(name, then) != then), None):
            raise ForgettingError(
                f"PEFT in the backbone changed since the first task was sealed: {other} has {now[other]}, and had "
                f"{self._remembered_peft[other]}. Sealed tasks depend on it: activate the same adapters again"
            )

    def describe(self) -> dict[str, Any]:
        """Return what is saved about the backbone: `geometry`, checksums, name, `settings` and `peft`."""
        name = getattr(self.core.config, "_name_or_path", "")
        about = {"checksums": self.checksums(), "name": name, "settings": self.settings(), "peft": self.peft()}
        return self.geometry() | about

    def settings(self) -> dict[str, Any]:
        """Return the entries of the backbone's configuration that outputs may depend on, by path."""
        return dict(_leaves(self.core.config.to_dict()))

    def peft(self) -> dict[str, str]:
        """Return layer of PEFT in the backbone -> its active adapters and their scaling."""
        found = {}
        for name, module in self.core.named_modules():
            active = getattr(module, "active_adapters", None)
            if isinstance(active, list | tuple) and hasattr(module, "disable_adapters"):
                scaling = getattr(module, "scaling", {})
                scaled = [f"{one} x {scaling[one]:g}" if one in scaling else one for one in active]
                found[name] = "no adapter" if module.disable_adapters else ", ".join(scaled) or "no adapter"
        return found

    def geometry(self) -> dict[str, Any]:
        """Return what a backbone must have in common with the one that tasks were trained on, besides all values."""
        shapes = [f"{name} {tuple(p.shape)}" for name, p in sorted(self.core.named_parameters())]
        return {
            "class": _class_name(self.core),
            "parameters": len(shapes),
            "shapes_sha256": sha256("\n".join(shapes)),
            "sites": {site: adapter.width for site, adapter in self.adapters.items()},
        }

    def check_same(self, backbone: Mapping[str, Any], frozen: Tensors, origin: str) -> None:
        """Raise StateError unless a save belongs to the same weights.

        Args:
            backbone: the saved result of `describe`.
            frozen: the saved result of `tensors`.
            origin: folder of the save, for messages.
        """
        here = self.geometry()
        for key, now in here.items():
            then = backbone.get(key)
            if then == now:
                continue
            if isinstance(then, dict) and isinstance(now, dict):
                differ = sorted(set(then.items()) ^ set(now.items()))[0][0]
                then, now = (f"{differ}: {widths.get(differ, 'none')}" for widths in (then, now))
            raise StateError(
                f"{origin} was saved from another backbone: {key} {then} there, {now} in this {here['class']}; "
                "load it on the model that it was trained on"
            )
        if name := differing(backbone["checksums"], self.checksums()):
            raise StateError(
                f"{origin} was saved from another backbone, with these sizes but different weights: the checksum of "
                f"{name} differs from that of this model (in the widest dtype that both have); load it on the weights "
                "that it was trained on, in the dtype that it was saved in or a narrower one"
            )
        peft, now = backbone.get("peft", {}), self.peft()
        if other := [name for name in {**peft, **now} if peft.get(name) != now.get(name)]:
            raise StateError(
                f"{origin} was saved with other adapters of PEFT in its backbone: {other[0]} has "
                f"{peft.get(other[0], 'none')} there, {now.get(other[0], 'none')} here; activate the same"
            )
        then, settings = backbone.get("settings", {}), self.settings()
        if other := [key for key in then if key in settings and settings[key] != then[key]]:
            warnings.warn(
                f"{origin} was saved from a backbone with another configuration, so its tasks may answer otherwise: "
                + "; ".join(f"{key} {then[key]} there, {settings[key]} here" for key in other),
                stacklevel=2,
            )
        own = self.tensors()
        load_exactly({name: tensor.clone() for name, tensor in own.items()}, frozen, origin)
        if off := [name for name, tensor in own.items() if not torch.equal(frozen[name].to(tensor), tensor)]:
            raise StateError(
                f"{origin}: the frozen adapter weights {off[0]} differ from those of this model: one of the two was "
                "drawn from another seed, or written to"
            )


def _leaves(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each entry of a configuration that outputs may depend on, nested ones too."""
    for key, value in entries.items():
        if key in VOLATILE or "drop" in str(key) or str(key).startswith("_"):
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | str | NoneType) or (isinstance(value, float) and math.isfinite(value)):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", str(value)


def _class_name(model: nn.Module) -> str:
    """Return the name of a model's class, or of its base if a tool such as FSDP derived an anonymous class from it."""
    classes = [c for c in type(model).__mro__ if issubclass(c, nn.Module)]
    named = (c for c in classes if getattr(sys.modules.get(c.__module__), c.__name__, None) is c)
    return next(named, type(model)).__name__
